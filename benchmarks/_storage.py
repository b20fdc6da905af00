"""A PostgreSQL for a benchmark that is given none."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from tests.postgres import serving


@contextmanager
def storage_of(arguments: argparse.Namespace) -> Iterator[None]:
    """Sets `arguments.storage`, if it is not, to a server that is there within the block."""
    if arguments.storage is not None:
        yield
        return
    with serving(durable=True) as server:
        arguments.storage = server.url("benchmark")
        yield
