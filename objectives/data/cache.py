"""The user's cache folder: raw files and prepared data, each entry whole or not there."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet

from objectives.errors import UserError

_SILENT_SECONDS = 1.0
"""So long a process waits for another without saying so."""


def cache_folder() -> Path:
    """The user's cache folder of this project: PARETOCUT_CACHE, else below XDG_CACHE_HOME."""
    if folder := os.environ.get("PARETOCUT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paretocut"


@contextlib.contextmanager
def cache_entry(target: Path) -> Iterator[Path]:
    """A temporary path that becomes the entry when the block ends well: whole or not at all.

    Raises:
        UserError: The cache folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as folder:
            temporary = Path(folder) / target.name
            yield temporary
            try:
                temporary.replace(target)
            except OSError:
                # Another process may have been first: a folder that is full is not replaced.
                if not target.exists():
                    raise
    except OSError as error:
        raise unwritable(target, error) from error


@contextlib.contextmanager
def made_by_one(target: Path) -> Iterator[None]:
    """Lets one process of the host into the block at a time; whoever waits long says so.

    The system unlocks the file when a process ends, however it does. What a killed one has left
    beside the entry is removed.

    Raises:
        UserError: The cache folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(target.with_name(f"{target.name}.lock").open("w"))
            deadline = time.monotonic() + _SILENT_SECONDS
            while not (is_held := _locks(lock)) and time.monotonic() < deadline:
                time.sleep(0.02)
            if not is_held:
                print(f"waiting for another process that makes {target}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise unwritable(target, error) from error
        for left in target.parent.glob(f"{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _locks(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unwritable(target: Path, error: OSError) -> UserError:
    """What to say where an entry of the cache cannot be written."""
    return UserError(
        f"{target.parent}: the cache folder cannot be written ({error.strerror}); name another in "
        "PARETOCUT_CACHE"
    )


def cache_batches(target: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes batches as Parquet files, parts of a folder that is an entry: whole or not at all.

    Another process may have been first.

    Raises:
        UserError: The cache folder cannot be written.
    """
    with made_by_one(target):
        if target.is_dir():
            return
        with cache_entry(target) as temporary:
            temporary.mkdir()
            for number, batch in enumerate(batches):
                path = temporary / f"{number:06}.parquet"
                pa.parquet.write_table(pa.Table.from_batches([batch]), path, compression="zstd")
