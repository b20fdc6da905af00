"""Locks that the processes of a study share, on one host or many: gone with who holds them."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from study import tables
from study.patience import ridden_out

_HELD_SECONDS = 120
"""A host that vanishes holds a lock of PostgreSQL no longer than this."""


@contextlib.contextmanager
def locked(engine: sa.Engine, name: str, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock within the block.

    On a server it is a row that is locked, in a transaction of its own, which ends with the
    connection; beside an SQLite file a file, which the system unlocks when a process ends.

    Args:
        engine: The database.
        name: What is locked.
        wait: Whether to wait for whoever holds it.

    Yields:
        Whether it is held; always if it was waited for.
    """
    if engine.dialect.name == "sqlite":
        with _file_lock(Path(engine.url.database or ""), name, wait) as held:
            yield held
        return
    connection = _lock_row(engine, name, wait)
    try:
        yield connection is not None
    finally:
        if connection is not None:
            # A lock whose connection is gone is open already.
            with contextlib.suppress(DBAPIError):
                connection.close()


@contextlib.contextmanager
def _file_lock(database: Path, name: str, wait: bool) -> Iterator[bool]:
    kind = name.partition(" ")[0]
    with database.with_name(f"{database.name}.{kind}.lock").open("w") as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        yield held


@ridden_out
def _lock_row(engine: sa.Engine, name: str, wait: bool) -> sa.Connection | None:
    """A connection whose transaction holds the lock; None if another does and there is no wait."""
    mine = sa.select(tables.locks.c.name).where(tables.locks.c.name == name)
    connection = engine.connect()
    try:
        if connection.execute(mine).first() is None:
            with contextlib.suppress(IntegrityError), engine.begin() as other:
                other.execute(sa.insert(tables.locks).values(name=name))
        connection.rollback()
        if engine.dialect.name == "postgresql":
            timeout = f"SET LOCAL idle_in_transaction_session_timeout = '{_HELD_SECONDS}s'"
            connection.execute(sa.text(timeout))
        if connection.execute(mine.with_for_update(skip_locked=not wait)).first() is not None:
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    return None
