import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from objectives.data.digests import file_digest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute after the files were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60_000_000_000)


def digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@pytest.mark.usefixtures("later")
def test_a_digest_is_remembered_while_the_file_looks_the_same(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"first")
    assert file_digest(path) == digest(b"first")
    (record,) = (cache / "digests").iterdir()
    remembered = json.loads(record.read_text())
    record.write_text(json.dumps(remembered | {"sha256": "00"}))
    assert file_digest(path) == b"\0"  # not read again
    before = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_ctime_ns > before.st_ctime_ns
    assert file_digest(path) == digest(b"other")
    other = tmp_path / "other"
    other.write_bytes(b"first")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert file_digest(path) == digest(b"first")


def test_that_of_a_file_that_has_just_changed_is_not(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"first")
    assert file_digest(path) == digest(b"first")
    assert not cache.exists()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"looks": 1}', "null"])
def test_a_damaged_record_counts_for_nothing(content: str, cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"first")
    file_digest(path)
    (record,) = (cache / "digests").iterdir()
    record.write_text(content)
    assert file_digest(path) == digest(b"first")
    assert json.loads(record.read_text())["sha256"] == digest(b"first").hex()


@pytest.mark.usefixtures("later")
def test_without_a_cache_nothing_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"first")
    monkeypatch.setenv("PARETOCUT_CACHE", str(path / "cache"))
    assert file_digest(path) == digest(b"first")
