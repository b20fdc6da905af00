"""How far long reading and fetching is, shown on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator

WORTH_SHOWING = 64 << 20
"""Bytes that are read in a second or so."""


@contextlib.contextmanager
def bytes_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of the bytes done, where there are many and a person looks on.

    Args:
        what: What is done, for people.
        total: Bytes in all.

    Yields:
        What is told how many are done.
    """
    if not sys.stderr.isatty() or total < WORTH_SHOWING:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
