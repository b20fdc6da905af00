"""Downloads, from a server of this machine that can cut connections."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from objectives.data.download import download
from objectives.errors import UserError

CONTENT = bytes(range(256)) * 4000
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Host(ThreadingHTTPServer):
    """Serves one file.

    Attributes:
        content: Of the file.
        cuts: After how many bytes the next connections are cut.
        ranges: Whether it can go on in the middle.
        asked: What `Range` each request had.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.cuts: list[int] = []
        self.ranges = True
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/log.zip"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        host = self.server
        assert isinstance(host, Host)
        asked = self.headers.get("Range")
        host.asked.append(asked)
        if self.path != "/log.zip":
            self.send_error(404)
            return
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and host.ranges else 0
        if begin and begin >= len(host.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(host.content)}")
            self.end_headers()
            return
        body = host.content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: host.cuts.pop(0)] if host.cuts else body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def host() -> Iterator[Host]:
    with Host() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def refusal(url: str, target: Path, expected: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        download(url, target, expected)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_fetched_once_and_verified(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "raw" / "log.zip"
    assert download(host.url, target, SHA256) == (f"fetched {host.url}",)
    assert target.read_bytes() == CONTENT
    assert download(host.url, target, SHA256) == ()
    assert len(host.asked) == 1
    assert not target.with_name("log.zip.part").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_is_cut_goes_on(ranges: bool, host: Host, tmp_path: Path) -> None:
    host.cuts, host.ranges = [100_000, 300_000], ranges
    target = tmp_path / "log.zip"
    download(host.url, target, SHA256)
    assert target.read_bytes() == CONTENT
    begins = ["bytes=100000-", "bytes=400000-"] if ranges else ["bytes=100000-", "bytes=300000-"]
    assert host.asked == [None, *begins]


def test_a_later_command_goes_on_where_another_stopped(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "log.zip"
    target.with_name("log.zip.part").write_bytes(CONTENT[:1234])
    download(host.url, target, SHA256)
    assert target.read_bytes() == CONTENT
    assert host.asked == ["bytes=1234-"]


@pytest.mark.parametrize("begun", [CONTENT, CONTENT + b"more"])
def test_what_was_there_already_is_whole_or_no_part(
    begun: bytes, host: Host, tmp_path: Path
) -> None:
    target = tmp_path / "log.zip"
    target.with_name("log.zip.part").write_bytes(begun)
    download(host.url, target, SHA256)
    assert target.read_bytes() == CONTENT


def test_another_file_than_expected_is_not_kept(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "log.zip"
    message = refusal(host.url, target, "md5:" + "0" * 32)
    assert message.startswith(f"{host.url}: what came is not the file that is expected")
    assert list(tmp_path.iterdir()) == []


def test_without_a_digest_the_first_one_counts(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "log.zip"
    (note,) = download(host.url, target, None)
    assert note.endswith("; unverified: its publisher gives no digest")
    assert download(host.url, target, None) == ()
    target.write_bytes(CONTENT[:-1] + b"x")
    assert refusal(host.url, target) == (
        f"{target}: not the file that is expected; delete it to fetch it"
    )


def test_a_file_that_is_not_there_is_one_sentence(host: Host, tmp_path: Path) -> None:
    target = tmp_path / "log.zip"
    message = refusal(host.url.replace("log", "no"), target)
    assert "the host answers 404 (Not Found); fetch the file by hand" in message
    assert message.endswith(f"put it at {target}")


def test_without_a_network_there_is_one_sentence(tmp_path: Path) -> None:
    message = refusal("http://127.0.0.1:1/log.zip", tmp_path / "log.zip")
    assert "cannot be fetched (" in message
    assert "refused" in message


def test_a_host_that_always_cuts_is_given_up(host: Host, tmp_path: Path) -> None:
    host.cuts = [1000] + [0] * 9
    message = refusal(host.url, tmp_path / "log.zip")
    assert "cannot be fetched (the connection was cut); the same command goes on" in message
    assert (tmp_path / "log.zip.part").stat().st_size == 1000
    host.cuts = []
    download(host.url, tmp_path / "log.zip", SHA256)


def test_two_at_once_fetch_it_once(host: Host, tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=download, args=(host.url, tmp_path / "log.zip", SHA256))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "log.zip").read_bytes() == CONTENT
    assert len(host.asked) == 1
