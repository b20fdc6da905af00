"""Prepared data, and its files: NumPy arrays that all processes of a host map into their memory.

Shapes: M interactions, S sequences.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from objectives.data.log import runs
from objectives.data.splits import Part, Split

_WRITTEN_TOGETHER = 1 << 22
"""Interactions that are written at a time."""


@dataclass(frozen=True)
class Sequences:
    """Item sequences, one after the other.

    Attributes:
        items: Item ids [M], int32, oldest first in each sequence.
        offsets: Sequence s is items[offsets[s] : offsets[s + 1]]; [S + 1], int64.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each sequence [S]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Targets:
    """Histories and the one item that followed each.

    Attributes:
        inputs: The histories, S sequences of at least one item.
        items: What followed [S], int32.
    """

    inputs: Sequences
    items: NDArray[np.int32]


@dataclass(frozen=True)
class PreparedData:
    """What a trial trains and is judged on.

    Attributes:
        name: Short name for people.
        digest: Identifies content, filters and split.
        num_items: V; ids are 0 .. V-1.
        item_ids: The source's id of every item.
        train: Sequences of at least two items.
        validation: Targets that the search sees.
        test: Targets that it never sees.
        notes: What was dropped or is odd, for people.
    """

    name: str
    digest: str
    num_items: int
    item_ids: pa.Array
    train: Sequences
    validation: Targets
    test: Targets
    notes: tuple[str, ...]


def write(
    folder: Path, split: Split, numbers: NDArray[np.int32], item_ids: pa.Array, notes: list[str]
) -> None:
    """Writes prepared data into a new folder.

    Args:
        folder: Where to.
        split: The parts.
        numbers: The number of each of the source's items in the catalogue [V of the source].
        item_ids: The source's ids of the catalogue.
        notes: For people.
    """
    folder.mkdir()
    _write_sequences(folder, "train", split.train, numbers)
    for name, part in (("validation", split.validation), ("test", split.test)):
        _write_sequences(folder, name, part, numbers)
        np.save(folder / f"{name}_targets.npy", numbers[part.log.items[part.ends]])
    pa.parquet.write_table(pa.table({"item": item_ids}), folder / "item_ids.parquet")
    (folder / "notes.json").write_text(json.dumps(notes))


def load(folder: Path, name: str, digest: str, notes: tuple[str, ...]) -> PreparedData:
    """The prepared data of a folder; pages are read when they are used.

    Args:
        folder: What `write` has written.
        name: For people.
        digest: What it is identified by.
        notes: What else there is to tell; those of the folder follow.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged.
    """

    def array(file: str) -> NDArray[Any]:
        # Who writes there, writes into a copy: torch warns of arrays that are read-only.
        return np.asarray(np.load(folder / f"{file}.npy", mmap_mode="c"))

    def sequences(part: str) -> Sequences:
        return Sequences(array(f"{part}_items"), array(f"{part}_offsets"))

    # `read_table` would import pandas, in half a second.
    with pa.parquet.ParquetFile(folder / "item_ids.parquet") as file:
        item_ids = file.read()["item"].combine_chunks()
    return PreparedData(
        name,
        digest,
        len(item_ids),
        item_ids,
        sequences("train"),
        Targets(sequences("validation"), array("validation_targets")),
        Targets(sequences("test"), array("test_targets")),
        notes + tuple(json.loads((folder / "notes.json").read_text())),
    )


def _write_sequences(folder: Path, name: str, part: Part, numbers: NDArray[np.int32]) -> None:
    lengths = part.ends - part.begins
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), lengths.cumsum()])
    np.save(folder / f"{name}_offsets.npy", offsets)
    form = {"descr": numbers.dtype.str, "fortran_order": False, "shape": (int(offsets[-1]),)}
    with (folder / f"{name}_items.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, form)
        for some in runs(offsets, _WRITTEN_TOGETHER):
            places = np.repeat(part.begins[some] - offsets[some], lengths[some])
            places += np.arange(offsets[some.start], offsets[some.stop])
            numbers[part.log.items[places]].tofile(file)
