"""Every set that is fetched, from files of its form that lie here."""

import dataclasses
import gzip
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from objectives.config import DataConfig, FilterConfig
from objectives.data import hosted_sets, prepare, sources
from objectives.data.hosted_sets import BY_HAND, HOSTED_SETS, HostedSet
from objectives.errors import UserError

FILES = {
    "ml-1m": ("ml-1m/ratings.dat", b"1::1193::5::978300760\n1::661::3::978302109\n"),
    "ml-20m": (
        "ml-20m/ratings.csv",
        b"userId,movieId,rating,timestamp\r\n1,1193,5.0,978300760\r\n1,661,3.5,978302109\r\n",
    ),
    "ml-25m": (
        "ml-25m/ratings.csv",
        b"userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n1,661,3.5,978302109\n",
    ),
    "gowalla": (
        None,
        gzip.compress(
            b"1\t2000-12-31T22:12:40Z\t30.23\t-97.79\t1193\n"
            b"1\t2000-12-31T22:35:09Z\t30.26\t-97.76\t661\n"
        ),
    ),
    "steam": (
        None,
        gzip.compress(
            b"{u'username': u'1', u'product_id': u'1193', u'date': u'2000-12-31'}\n"
            b"{u'username': u'1', u'product_id': u'661', u'date': u'2001-01-01', u'text': u'\"'}\n"
        ),
    ),
    "amazon-2018-all-beauty": (None, b"1193,1,5.0,978300760\n661,1,3.0,978302109\n"),
    "amazon-2023-all-beauty": (
        None,
        gzip.compress(
            b"user_id,parent_asin,rating,timestamp\n1,1193,5.0,978300760000\n"
            b"1,661,3.0,978302109000\n"
        ),
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def offer(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """Puts a file of the form of a set where the set is looked for."""
    source = HOSTED_SETS[name]
    member, content = FILES[name]
    file = folder / source.url.rpartition("/")[2]
    if member is None:
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(member, content)
    digest = f"md5:{hashlib.md5(file.read_bytes()).hexdigest()}"
    offered = dataclasses.replace(source, url=file.as_uri(), digest=digest, **changes)
    monkeypatch.setitem(HOSTED_SETS, name, offered)
    return file


def read(data: str) -> tuple[sources.Interactions, tuple[str, ...]]:
    files, columns, notes = sources.locate(DataConfig(data=data))
    return sources.read(files, columns, FilterConfig()), notes


@pytest.mark.parametrize("name", FILES)
def test_a_set_is_fetched_and_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = offer(name, tmp_path, monkeypatch)
    log, notes = read(name)
    assert (log.users.tolist(), log.item_ids.to_pylist()) == ([0, 0], [b"1193", b"661"])
    assert log.times is not None
    first, second = log.times.tolist()
    assert 978_200_000 < first < second < 978_310_000
    assert notes == (f"fetched {file.as_uri()}", f"licence: {HOSTED_SETS[name].licence}")
    file.unlink()
    again, notes = read(name)
    assert (again.items.tolist(), notes) == ([0, 1], ())
    config = DataConfig(data=name, min_item_users=1, min_user_items=1)
    assert sources.name_of(config) == name


def test_ratings_of_a_set_can_be_filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer("ml-1m", tmp_path, monkeypatch)
    files, columns, _ = sources.locate(DataConfig(data="ml-1m"))
    log = sources.read(files, columns, FilterConfig(min_rating=4))
    assert log.item_ids.to_pylist() == [b"1193"]


def test_each_form_of_a_host_is_tested() -> None:
    def form(source: HostedSet) -> tuple[object, ...]:
        return source.header, source.separator, *source.columns.values()

    tested = {form(HOSTED_SETS[name]) for name in FILES}
    assert {form(source) for source in HOSTED_SETS.values()} == tested
    assert len({source.url for source in HOSTED_SETS.values()}) == len(HOSTED_SETS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ml-1m", b"not a zip"),
        ("gowalla", b"not gzip"),
        ("gowalla", gzip.compress(b"1\t2000-12-31T22:12:40Z\n")),
        ("gowalla", FILES["gowalla"][1][:-12]),
        ("steam", gzip.compress(b"__import__('os').system('false')\n")),
        ("steam", gzip.compress(b"{'username': \xff}\n")),
        ("amazon-2023-all-beauty", gzip.compress(b"user,item\n1,2\n")),
    ],
    # Else they would have the time in them.
    ids=["no zip", "no gzip", "no rows", "cut", "code", "no text", "no columns"],
)
def test_a_damaged_file_is_one_sentence(
    name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = offer(name, tmp_path, monkeypatch)
    file.write_bytes(content)
    digest = f"md5:{hashlib.md5(content).hexdigest()}"
    monkeypatch.setitem(HOSTED_SETS, name, dataclasses.replace(HOSTED_SETS[name], digest=digest))
    with pytest.raises(UserError) as caught:
        read(name)
    assert "is damaged, or not of the form that is expected; delete it to fetch it again" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_a_zip_without_the_file_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("ml-1m", tmp_path, monkeypatch, member="ml-1m/moved.dat")
    with pytest.raises(UserError, match="is damaged, or not of the form"):
        read("ml-1m")


@pytest.mark.parametrize("name", BY_HAND)
def test_what_cannot_be_fetched_is_answered_with_where_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError) as caught:
        read(name)
    assert str(caught.value).startswith(f"--data {name}: https://")
    assert "; then --data " in str(caught.value)
    # A file of that name is a file.
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "log.csv").write_text("user,item\n1,2\n")
    assert len(read(name)[0].users) == 1


def test_a_set_that_is_prepared_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = b"".join(b"%d::%d::5::%d\n" % (u, i, 978300760 + i) for u in range(4) for i in range(5))
    monkeypatch.setitem(FILES, "ml-1m", ("ml-1m/ratings.dat", rows))
    file = offer("ml-1m", tmp_path, monkeypatch)
    config = DataConfig(data="ml-1m", min_item_users=1, min_user_items=1)
    first = prepare(config)
    file.unlink()
    monkeypatch.setattr(hosted_sets, "download", None)
    assert prepare(config).digest == first.digest
