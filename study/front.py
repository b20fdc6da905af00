"""The Pareto front of quality against memory, and its hypervolume."""

from collections.abc import Sequence

Point = tuple[float, float]
"""Quality, to be high, and peak memory, to be low."""


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other beats, by rising memory; the first of equal ones."""
    order = sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0], i))
    front: list[int] = []
    for index in order:
        if not front or points[index][0] > points[front[-1]][0]:
            front.append(index)
    return front


def hypervolume(points: Sequence[Point], budget: float) -> float:
    """Area under the front up to the budget, over the budget.

    That is the best quality found for a memory limit, averaged over all limits from 0 to the
    budget: one figure, in units of quality.
    """
    front = [points[index] for index in pareto_front(points) if points[index][1] <= budget]
    ends = [memory for _, memory in front[1:]] + [budget]
    areas = (quality * (end - memory) for (quality, memory), end in zip(front, ends, strict=False))
    return sum(areas) / budget
