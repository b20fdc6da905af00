"""When a search may stop: whether the front still grows, and what more trials may add."""

import math
import random
import statistics

from study.front import Point, hypervolume, is_beaten, pareto_front
from study.records import StudyRecord

_FEWEST = 10
"""Finished trials below which nothing is said of what more would add."""
_HALVES = 100
_ENOUGH = 20_000
"""Trials in all halves together: of a long search few halves are as telling."""


def hypervolumes(record: StudyRecord) -> list[float]:
    """Hypervolume of the front after each finished trial; see `study.front.hypervolume`."""
    limits = record.limits
    front: list[Point] = []
    volume = 0.0
    volumes = []
    for point in _points(record):
        if point is not None and not is_beaten(point, front):
            points = [*front, point]
            front = [points[index] for index in pareto_front(points)]
            volume = hypervolume(front, *limits)
        volumes.append(volume)
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
    points = _points(record)
    limits = record.limits
    whole = hypervolume(list(filter(None, points)), *limits)
    if len(points) < _FEWEST or whole <= 0:
        return None
    draw = random.Random(0)
    count = min(_HALVES, max(10, _ENOUGH // len(points)))
    halves = (draw.sample(points, len(points) // 2) for _ in range(count))
    mean = statistics.fmean(hypervolume(list(filter(None, half)), *limits) for half in halves)
    return 1 - mean / whole


def _points(record: StudyRecord) -> list[Point | None]:
    """Where the finished trials stand; None for those without a quality."""
    return [
        record.point(trial) if trial.outcome == "complete" else None for trial in record.finished
    ]
