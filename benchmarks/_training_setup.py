"""What every system of `benchmarks.training` trains on, and how its measurement is handed over.

Shapes: M interactions, U users, V items.

Nothing of ours but this is imported by the workers of the peers, one of which has a package
`kernels` too.
"""

import argparse
import dataclasses
import json
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_LENGTH_DEVIATION = 1.0
"""Standard deviation of the logarithm of a length: 1.2 % of the users have more than 512 items."""
_POPULARITY_OFFSET = 20
"""Popularity falls as 1 / (rank + this): the first item has about 0.7 % of all interactions."""


@dataclass(frozen=True)
class Setup:
    """One shape, the same for all systems.

    Attributes:
        users: Users, each with one sequence.
        items: Items of the catalogue.
        mean_length: Items of a sequence in the mean.
        max_length: Items that a sequence predicts at most: the last that it has.
        batch_size: Sequences of a step.
        negatives: Sampled items of a loss that samples.
        width: Width of item vectors and states.
        blocks: Transformer blocks.
        heads: Attention heads.
        dropout: Dropout rate.
        seed: Seeds data and training.
        device: "cuda" or "cpu".
        steps: Timed steps of a peer at most.
        time_limit: Seconds that a system may train, but for what it has begun.
    """

    users: int
    items: int
    mean_length: int
    max_length: int
    batch_size: int
    negatives: int
    width: int
    seed: int
    device: str
    steps: int
    time_limit: float
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.2

    @staticmethod
    def like_movielens(arguments: argparse.Namespace, **others: Any) -> "Setup":
        """Lengths of MovieLens-20M; users, items, sequences and device as a command asks."""
        return Setup(
            users=arguments.users,
            items=arguments.items,
            mean_length=88,
            max_length=arguments.max_length,
            batch_size=arguments.batch_size,
            negatives=min(511, arguments.items - 1),
            seed=0,
            device=arguments.device,
            time_limit=arguments.time_limit,
            **others,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Of a trial of ours, by their names."""
        return {
            "max_length": self.max_length,
            "width": self.width,
            "num_blocks": self.blocks,
            "num_heads": self.heads,
            "dropout": self.dropout,
            "negatives": self.negatives,
            "batch_size": self.batch_size,
            "max_epochs": 1000,
        }

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over all users."""
        return math.ceil(self.users / self.batch_size)


@dataclass(frozen=True)
class Arrays:
    """The sequences, one after the other, and an item that follows each.

    Attributes:
        items: [M], int32.
        offsets: Sequence u is items[offsets[u] : offsets[u + 1]]; [U + 1], int64.
        targets: [U], int32.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each sequence [U]."""
        return np.diff(self.offsets)

    def num_tokens(self, max_length: int) -> int:
        """Predictions of an epoch: every item but a sequence's first, and at most so many."""
        return int(np.minimum(self.lengths - 1, max_length).sum())

    def save(self, folder: Path) -> None:
        """Writes them where `load` looks."""
        np.savez(folder / "arrays.npz", **vars(self))

    @staticmethod
    def load(folder: Path) -> "Arrays":
        """What was saved in this folder."""
        with np.load(folder / "arrays.npz") as arrays:
            return Arrays(**arrays)


def synthesize(setup: Setup) -> Arrays:
    """Sequences with heavy-tailed lengths of at least 2, and items with a Zipf-like popularity."""
    random = np.random.default_rng(setup.seed)
    lengths = np.exp(_LENGTH_DEVIATION * random.standard_normal(setup.users))
    lengths = np.maximum(2, np.rint(lengths * (setup.mean_length / lengths.mean())))
    offsets = np.append(0, lengths.cumsum()).astype(np.int64)
    popularity = 1 / (np.arange(setup.items) + _POPULARITY_OFFSET)
    chances = (popularity / popularity.sum()).cumsum()
    ids = random.permutation(setup.items).astype(np.int32)

    def draw(count: int) -> NDArray[np.int32]:
        ranks = np.searchsorted(chances, random.random(count))
        return ids[np.minimum(ranks, setup.items - 1)]

    return Arrays(draw(int(offsets[-1])), offsets, draw(setup.users))


def result_path(folder: Path, system: str) -> Path:
    """Where a worker leaves its measurement."""
    return folder / f"{system}.json"


def work(measure: Callable[[str, Setup, Arrays, Path], dict[str, Any]]) -> None:
    """The main function of a worker: SYSTEM FOLDER, of which it reads, and writes the result to.

    What goes wrong is a result too.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    setup = Setup(**json.loads((folder / "setup.json").read_text()))
    try:
        result = measure(arguments.system, setup, Arrays.load(folder), folder)
        result.setdefault("outcome", "ok")
    except torch.OutOfMemoryError:
        result = {"outcome": "out of memory", "peak_bytes": peak_bytes(setup)}
    except Exception as error:
        traceback.print_exc()
        result = {"outcome": f"failed: {(str(error) or repr(error)).splitlines()[0]}"}
    result_path(folder, arguments.system).write_text(json.dumps(result))


def save_setup(setup: Setup, folder: Path) -> None:
    """Writes it where the workers look."""
    (folder / "setup.json").write_text(json.dumps(dataclasses.asdict(setup)))


def synchronize(setup: Setup) -> None:
    """Waits for the device."""
    if setup.device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(setup: Setup) -> int | str:
    """Peak memory of this process's tensors on the device; nothing on a CPU."""
    return torch.cuda.max_memory_allocated() if setup.device == "cuda" else ""


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median, 20 % and 80 % quantiles, as columns that end in this."""
    p20, median, p80 = np.quantile(values, (0.2, 0.5, 0.8)).tolist()
    return {f"median_{name}": median, f"p20_{name}": p20, f"p80_{name}": p80}
