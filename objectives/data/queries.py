"""Interactions out of a database: the rows of a query, kept as files."""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa

from objectives.data.cache import cache_batches, cache_folder
from objectives.errors import UserError

_ROWS = 1 << 16


def fetch_query(url: str, query: str) -> tuple[list[Path], tuple[str, ...]]:
    """The rows of a query in the cache, fetched on first use.

    They stay as they were, so that a study goes on with the data that it began with.

    Args:
        url: Of the database, as SQLAlchemy has it.
        query: SQL that returns rows.

    Returns:
        The files, and what to tell the user.

    Raises:
        UserError: The database or the query cannot be used.
    """
    import sqlalchemy as sa

    try:
        address = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise UserError(
            "--data: not the URL of a database; write one such as postgresql+psycopg://host/name"
        ) from None
    # Without what lets its reader in.
    place = sa.URL.create(
        address.drivername, host=address.host, port=address.port, database=address.database
    )
    shown = str(place)
    if address.get_backend_name() == "sqlite" and address.database:
        shown = str(place.set(database=str(Path(address.database).resolve())))
    key = hashlib.sha256(f"{shown} {query}".encode()).hexdigest()[:16]
    target = cache_folder() / "raw" / f"query-{key}"
    if not target.is_dir():
        try:
            cache_batches(target, _rows(address, query))
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
            raise UserError(f"--query: {shown} cannot answer it: {reason}") from error
    files = sorted(target.glob("*.parquet"))
    if not files:
        raise UserError(f"--query: {shown} has no such rows; delete {target} to ask again")
    taken = datetime.fromtimestamp(target.stat().st_mtime).isoformat(" ", "minutes")
    return files, (f"rows of {shown} as of {taken}; delete {target} to ask again",)


def _rows(address: Any, query: str) -> Iterator[pa.RecordBatch]:
    import sqlalchemy as sa

    engine = sa.create_engine(address)
    try:
        with engine.connect() as connection:
            # A colon is none of a parameter.
            statement = sa.text(re.sub(":", r"\\:", query))
            options = {"stream_results": True, "yield_per": _ROWS}
            result = connection.execute(statement, execution_options=options)
            if not result.returns_rows:
                raise UserError("--query: it returns no rows; write a SELECT")
            names = list(result.keys())
            for rows in result.partitions(_ROWS):
                columns = zip(*rows, strict=True)
                arrays = [_array(*each) for each in zip(names, columns, strict=True)]
                yield pa.record_batch(arrays, names)
    finally:
        engine.dispose()


def _array(name: str, values: tuple[Any, ...]) -> pa.Array:
    try:
        return pa.array([str(value) if isinstance(value, UUID) else value for value in values])
    except (pa.ArrowException, OverflowError) as error:
        raise UserError(
            f"--query: the column {name!r} holds values of several types, or of one that is not "
            "known here; cast it in the query"
        ) from error
