"""The user's cache folder: raw files and prepared data, each entry whole or not there."""

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from objectives.errors import UserError


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
        raise _unwritable(target, error) from error


@contextlib.contextmanager
def made_by_one(target: Path) -> Iterator[None]:
    """Lets one process of the host into the block at a time; whoever waits says so.

    The system unlocks the file when a process ends, however it does. What a killed one has left
    beside the entry is removed.

    Raises:
        UserError: The cache folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(target.with_name(f"{target.name}.lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that makes {target}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _unwritable(target, error) from error
        for left in target.parent.glob(f"{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _unwritable(target: Path, error: OSError) -> UserError:
    return UserError(
        f"{target.parent}: the cache folder cannot be written ({error.strerror}); name another in "
        "PARETOCUT_CACHE"
    )
