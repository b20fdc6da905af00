"""Files of other hosts, fetched once: what was cut off goes on, and what arrives is verified."""

import fcntl
import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from objectives.data.cache import unwritable
from objectives.data.progress import bytes_progress
from objectives.errors import UserError

_BLOCK = 1 << 20
_TRIES, _TIMEOUT = 5, 60
_CUT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


def download(url: str, target: Path, expected: str | None) -> tuple[str, ...]:
    """Fetches a file, unless it is there, and verifies it.

    Args:
        url: Where it is.
        target: Where it is to be; until it is whole, what there is of it is beside, as .part.
        expected: The digest that its publisher gives, such as `md5:…`; without one, that of the
            first time is kept beside it, and has to be the same later.

    Returns:
        What to tell the user.

    Raises:
        UserError: It cannot be had, or is not the file that is expected.
    """
    kept = target.with_name(f"{target.name}.sha256")
    try:
        if target.is_file():
            known = expected or (f"sha256:{kept.read_text()}" if kept.is_file() else None)
            if known and not _is(target, known):
                raise UserError(f"{target}: not the file that is expected; delete it to fetch it")
            return ()
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        with part.open("ab") as stream:
            # Of two processes the second waits, and finds the file.
            fcntl.flock(stream, fcntl.LOCK_EX)
            if target.is_file():
                return ()
            _fetch(url, part)
            if expected and not _is(part, expected):
                part.unlink()
                raise UserError(
                    f"{url}: what came is not the file that is expected ({expected[:16]}…); "
                    "nothing was kept, so try again later"
                )
            if not expected:
                kept.write_text(_digest(part, "sha256"))
            part.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    note = "" if expected else "; unverified: its publisher gives no digest"
    return (f"fetched {url}{note}",)


def _fetch(url: str, part: Path) -> None:
    """Appends what is missing; goes on where the connection is cut, as long as more comes."""
    tries = _TRIES
    while True:
        before = part.stat().st_size
        try:
            if _fetch_on(url, part, before):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            raise UserError(
                f"{url}: the host answers {error.code} ({error.reason}); fetch the file by hand, "
                f"and put it at {part.with_suffix('')}"
            ) from None
        except _CUT as error:
            reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
        tries = _TRIES if part.stat().st_size > before else tries - 1
        if not tries or part.stat().st_size == before == 0:
            raise UserError(
                f"{url}: cannot be fetched ({reason}); the same command goes on where it stopped, "
                f"or put the file at {part.with_suffix('')}"
            )


def _fetch_on(url: str, part: Path, done: int) -> bool:
    """Whether the file is whole afterwards."""
    headers = {"User-Agent": "paretocut", **({"Range": f"bytes={done}-"} if done else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        # Nothing is missing, or what there is is not of this file.
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return True
        part.write_bytes(b"")
        return False
    with response:
        goes_on = response.status == http.HTTPStatus.PARTIAL_CONTENT
        done = done if goes_on else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with (
            part.open("r+b") as stream,
            bytes_progress(f"fetching {url.rpartition('/')[2]}", total or 0) as show,
        ):
            stream.seek(done)
            stream.truncate()
            while block := response.read(_BLOCK):
                stream.write(block)
                done += len(block)
                show(done)
    return total is None or done == total


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _is(path: Path, expected: str) -> bool:
    algorithm, _, digest = expected.partition(":")
    return _digest(path, algorithm) == digest
