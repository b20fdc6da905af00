import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from objectives.config import DataConfig, FilterConfig
from objectives.data import queries, sources
from objectives.errors import UserError
from tests.postgres import Postgres

ROWS = [(1, "a", 5), (2, "b", 3), (1, "c", None), (1, "b", 4)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table log (user, item, time)")
        connection.executemany("insert into log values (?, ?, ?)", ROWS)
    connection.close()
    return path


def read(url: str, query: str) -> sources.Interactions:
    files, columns, _ = sources.locate(DataConfig(data=url, query=query))
    return sources.read(files, columns, FilterConfig())


def refusal(url: str, query: str) -> str:
    with pytest.raises(UserError) as caught:
        read(url, query)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rows", [1 << 16, 2, 1])
def test_the_rows_of_a_query(rows: int, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "_ROWS", rows)
    log = read(f"sqlite:///{database}", "select * from log where item != 'x:y' order by rowid")
    assert log.users.tolist() == [0, 1, 0]
    assert log.item_ids.to_pylist() == [b"a", b"b"]
    assert log.times is not None
    assert log.times.tolist() == [5, 3, 4]
    assert log.notes == ("dropped 1 of 4 rows without a user, item or time",)


def test_rows_stay_as_they_were_until_they_are_deleted(database: Path, tmp_path: Path) -> None:
    url, query = f"sqlite:///{database}", "select * from log where time is not null"
    config = DataConfig(data=url, query=query)
    _, _, (note,) = sources.locate(config)
    assert note.startswith(f"rows of sqlite:///{database} as of ")
    assert len(read(url, query).users) == 3
    with sqlite3.connect(database) as connection:
        connection.execute("insert into log values (1, 'd', 7)")
    connection.close()
    assert len(read(url, query).users) == 3
    (kept,) = filter(Path.is_dir, (tmp_path / "cache" / "raw").iterdir())
    assert f"delete {kept} to ask again" in note
    for part in kept.iterdir():
        part.unlink()
    kept.rmdir()
    assert len(read(url, query).users) == 4
    assert len(read(url, query + " and user = 2").users) == 1
    assert sources.name_of(config) == "shop"


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("select * from missing", "cannot answer it: no such table: missing"),
        ("select 1 as user, 2 as item where 1 = 0", "has no such rows; delete "),
        ("create table other (x)", "it returns no rows; write a SELECT"),
        ("select user, 1.5 as item from log", "the item column has fractions"),
        ("select 1 as user, 2 as thing", "no item column; choose one with --columns.item from"),
        ("select user, 9 as item from log union all select 'x', 1", "of several types"),
    ],
)
def test_queries_that_cannot_be_used(query: str, reason: str, database: Path) -> None:
    assert reason in refusal(f"sqlite:///{database}", query)


@pytest.mark.parametrize("url", ["log.csv", "nothing://u:hunter2@h/d", "postgresql://u:hunter2@"])
def test_places_that_are_no_database(url: str) -> None:
    assert "hunter2" not in refusal(url, "select 1")


def test_a_database_needs_a_query() -> None:
    with pytest.raises(UserError, match="rows of a database are named with --query"):
        sources.locate(DataConfig(data="postgresql://u:hunter2@h/d"))


def test_postgresql_streams_and_its_password_is_nowhere(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.url("queries")
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("create table log (who uuid, item_id numeric, at timestamptz, n int)")
        connection.execute(
            "insert into log select ('00000000-0000-0000-0000-00000000000' || g % 2)::uuid, "
            "g % 5, timestamptz '2024-03-03 11:34:56Z' + g * interval '1 s', g "
            "from generate_series(0, 99) g"
        )
    secret = url.replace("paretocut@", "paretocut:hunter2@")
    assert secret != url
    query = 'select who as "user", item_id, at as time from log where n % 10 < 10 order by n'
    config = DataConfig(data=f"{secret}?password=hunter2", query=query)
    files, columns, notes = sources.locate(config)
    log = sources.read(files, columns, FilterConfig())
    assert (len(log.users), log.num_users, log.item_ids.to_pylist()) == (100, 2, [0, 1, 2, 3, 4])
    assert log.times is not None
    assert log.times[0] == datetime(2024, 3, 3, 11, 34, 56, tzinfo=UTC).timestamp()
    assert "hunter2" not in " ".join(notes)
    told = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hunter2" not in told
    assert UUID(int=0).bytes not in told  # ids are text


def test_a_database_that_does_not_answer_is_said_without_its_password() -> None:
    message = refusal("postgresql+psycopg://me:hunter2@127.0.0.1:1/d", "select 1")
    assert message.startswith("--query: postgresql+psycopg://127.0.0.1:1/d cannot answer it: ")
    assert "hunter2" not in message
