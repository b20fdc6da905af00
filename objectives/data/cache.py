"""The user's cache folder: raw files and prepared data, each entry whole or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

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
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            temporary = Path(folder) / target.name
            yield temporary
            try:
                temporary.replace(target)
            except OSError:
                # Another process may have been first: a folder that is full is not replaced.
                if not target.exists():
                    raise
    except OSError as error:
        raise UserError(
            f"{target.parent}: the cache folder cannot be written ({error.strerror}); name "
            "another in PARETOCUT_CACHE"
        ) from error


def cache_batches(target: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes batches as Parquet files, parts of a folder that is an entry: whole or not at all.

    Raises:
        UserError: The cache folder cannot be written.
    """
    with cache_entry(target) as temporary:
        temporary.mkdir()
        for number, batch in enumerate(batches):
            table = pa.Table.from_batches([batch])
            pa.parquet.write_table(table, temporary / f"{number:06}.parquet", compression="zstd")
