"""Small data and contexts for the tests of this package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from objectives.data import PreparedData, Sequences, Targets
from objectives.trial import TrialContext

Lists = list[list[int]]
Report = Callable[[int, Mapping[str, float]], None]


def sequences(lists: Lists) -> Sequences:
    items = np.array([item for ids in lists for item in ids], dtype=np.int32)
    return Sequences(items, np.cumsum([0, *map(len, lists)], dtype=np.int64))


@pytest.fixture
def sequences_of() -> Callable[[Lists], Sequences]:
    return sequences


@pytest.fixture
def targets_of() -> Callable[[Lists], Targets]:
    """Each list is a history and, at its end, its target."""
    return lambda lists: Targets(
        sequences([ids[:-1] for ids in lists]), np.array([ids[-1] for ids in lists], np.int32)
    )


@pytest.fixture
def cycle(targets_of: Callable[[Lists], Targets]) -> PreparedData:
    """Twelve items, each always followed by the next; the last by the first."""
    num_items = 12
    train = [[(start + step) % num_items for step in range(6)] for start in range(num_items)]
    return PreparedData(
        "cycle",
        "0" * 16,
        num_items,
        pa.array(range(num_items)),
        sequences(train * 4),
        targets_of(train),
        targets_of(train[::-1]),
        (),
    )


@dataclass(frozen=True)
class _Context:
    seed: int
    memory_budget: int
    checkpoint: Path | None
    on_report: Report
    leaving: bool

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.on_report(epoch, metrics)


@pytest.fixture
def make_context() -> Callable[..., TrialContext]:
    def make(
        report: Report = lambda epoch, metrics: None,
        *,
        seed: int = 0,
        budget: int = 1 << 30,
        checkpoint: Path | None = None,
        leaving: bool = False,
    ) -> TrialContext:
        return _Context(seed, budget, checkpoint, report, leaving)

    return make
