"""How far the reading of files is, shown on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from objectives.data.files import File, size_of

_WORTH_SHOWING = 64 << 20
"""Bytes that are read in a second or so."""


@contextlib.contextmanager
def reading_progress(
    files: list[File],
) -> Iterator[Callable[[File], Callable[[int], None]]]:
    """A bar of the bytes read of all files, where there are many and a person looks on.

    Yields:
        From a file to what is told how many of its bytes have been read.
    """
    if not sys.stderr.isatty() or (total := sum(map(size_of, files))) < _WORTH_SHOWING:
        yield lambda _: lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    before = dict(zip(files, _sums(files), strict=True))
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=total)
        yield lambda file: lambda done: progress.update(task, completed=before[file] + done)


def _sums(files: list[File]) -> Iterator[int]:
    total = 0
    for file in files:
        yield total
        total += size_of(file)
