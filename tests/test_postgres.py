"""The server that other tests rely on."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from tests.postgres import Postgres, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with serving(durable=True) as server:
        yield server


def count(url: str) -> int:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("create table if not exists rows (n int)"))
        connection.execute(sa.text("insert into rows values (1)"))
        return int(connection.execute(sa.text("select count(*) from rows")).scalar_one())


def test_databases_are_apart(server: Postgres) -> None:
    assert count(server.url("a")) == 1
    assert count(server.url("b")) == 1
    assert count(server.url("a")) == 2


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_was_committed_is_there_after_a_restart(server: Postgres, end: str) -> None:
    url = server.url(f"restart_{end}")
    assert count(url) == 1
    getattr(server, end)()
    with pytest.raises(OperationalError, match="refused"):
        count(url)
    server.start()
    assert count(url) == 2
