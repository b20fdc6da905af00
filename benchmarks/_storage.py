"""A PostgreSQL for a benchmark that is given none."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.postgres import Postgres


@contextmanager
def storage_of(arguments: argparse.Namespace) -> Iterator[None]:
    """Sets `arguments.storage`, if it is not, to a server that is there within the block."""
    if arguments.storage is not None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        server = Postgres(Path(folder), durable=True)
        server.start()
        arguments.storage = server.url("benchmark")
        yield
        server.stop()
