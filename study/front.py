"""What a study searches for: its objectives, their Pareto front and its hypervolume."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "quality": "maximize",
    "memory": "minimize",
    "time": "minimize",
}
"""All that a study may search for, in the order of a trial's values, with Optuna's directions."""

DEFAULT_OBJECTIVES = ("quality", "memory")

Point = tuple[float, ...]
"""Quality, to be high, and costs, to be low: peak memory, seconds, both or none."""


def objectives_of(identity: Mapping[str, Any]) -> list[str]:
    """The objectives of a study; those of an earlier version have quality and memory."""
    return list(identity.get("objectives", DEFAULT_OBJECTIVES))


def point_of(objectives: Sequence[str], quality: float, memory: float, seconds: float) -> Point:
    """What of these are objectives."""
    values = {"quality": quality, "memory": memory, "time": seconds}
    return tuple(values[name] for name in objectives)


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats, by rising costs; the first of equal ones."""
    keys = [(*point[1:], -point[0]) for point in points]
    order = sorted(range(len(points)), key=keys.__getitem__)
    front: list[int] = []
    for index in order:
        if len(points[index]) > 2:
            beaten = is_beaten(points[index], [points[rival] for rival in front])
        else:
            # With one cost the last of the front is the best so far.
            beaten = bool(front) and points[front[-1]][0] >= points[index][0]
        if not beaten:
            front.append(index)
    return front


def knee(points: Sequence[Point]) -> int | None:
    """Index of the point from which on a doubling of the cost buys less than it does on average.

    The one farthest above the chord, the straight line between the ends of the front, of quality
    over the logarithm of the cost (Satopaa et al., "Finding a 'Kneedle' in a Haystack", 2011).
    None where the front has no point between its ends, or none above the chord.

    Args:
        points: Quality and one cost.
    """
    front = pareto_front(points)
    if len(front) < 3:
        return None
    y, x = zip(*((points[i][0], math.log(points[i][1] or 1)) for i in front), strict=True)
    slope = (y[-1] - y[0]) / (x[-1] - x[0])
    heights = [y[i] - y[0] - slope * (x[i] - x[0]) for i in range(len(front))]
    highest = max(range(1, len(front) - 1), key=heights.__getitem__)
    return front[highest] if heights[highest] > 0 else None


def is_beaten(point: Point, rivals: Iterable[Point]) -> bool:
    """Whether one of the rivals is as good as the point in everything."""
    quality, *costs = point
    return any(rival[0] >= quality and all(map(operator.le, rival[1:], costs)) for rival in rivals)


def hypervolume(points: Sequence[Point], *limits: float) -> float:
    """The best quality found for limits of the costs, averaged over all limits from 0 to these.

    One figure, in units of quality. It is exact: a sweep over the last cost, between whose values
    the hypervolume of the other costs stays as it is.
    """
    if not limits:
        return max((quality for quality, *_ in points), default=0.0)
    *others, limit = limits
    front = sorted((points[index] for index in pareto_front(points)), key=lambda point: point[-1])
    inside = [point for point in front if point[-1] <= limit]
    volume = 0.0
    for count, (point, after) in enumerate(pairwise([*inside, (limit,)]), 1):
        reached = point[0]  # With one cost it is the best so far.
        if others:
            reached = hypervolume([cheaper[:-1] for cheaper in inside[:count]], *others)
        volume += reached * (after[-1] - point[-1])
    return volume / limit
