"""When a search may stop: whether the front still grows, and what more trials may add."""

import math
import random
import statistics
from collections.abc import Sequence

from study.front import Point, hypervolume, pareto_front
from study.records import StudyRecord, TrialRecord

_FEWEST = 10
"""Finished trials below which nothing is said of what more would add."""
_HALVES = 100


def hypervolumes(record: StudyRecord) -> list[float]:
    """Hypervolume of the front after each finished trial; see `study.front.hypervolume`."""
    front: list[Point] = []
    volumes = []
    for trial in record.finished:
        if trial.outcome == "complete":
            points = [*front, record.point(trial)]
            front = [points[index] for index in pareto_front(points)]
        volumes.append(hypervolume(front, *record.limits))
    return volumes


def is_exhausted(record: StudyRecord, patience: int | None) -> bool:
    """Whether the last `patience` finished trials brought no hypervolume; None: never.

    Repeats change nothing: a trial counts with the quality of its first training, by which the
    search went on.
    """
    if patience is None or len(record.finished) < patience:
        return False
    volumes = [0.0, *hypervolumes(record)]
    return math.isclose(volumes[-1], volumes[-1 - patience], rel_tol=1e-9)


def expected_gain(record: StudyRecord) -> float | None:
    """Share by which as many trials again are expected to raise the hypervolume.

    It is what a random half of the finished trials falls short of all of them, on average: what
    the last doubling brought, the next one may. How far off that was on recorded grids stands in
    docs/search.md.

    Returns:
        None before there are ten finished trials and a front.
    """
    finished = record.finished
    whole = _hypervolume(record, finished)
    if len(finished) < _FEWEST or whole <= 0:
        return None
    draw = random.Random(0)
    halves = [
        _hypervolume(record, draw.sample(finished, len(finished) // 2)) for _ in range(_HALVES)
    ]
    return 1 - statistics.fmean(halves) / whole


def _hypervolume(record: StudyRecord, trials: Sequence[TrialRecord]) -> float:
    points = [record.point(trial) for trial in trials if trial.outcome == "complete"]
    return hypervolume(points, *record.limits)
