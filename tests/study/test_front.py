import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.front import Point, hypervolume, pareto_front

QUALITY, COST = st.integers(0, 6).map(float), st.integers(1, 6).map(float)


def lists_of(*values: st.SearchStrategy[float]) -> st.SearchStrategy[list[Point]]:
    return st.lists(st.tuples(*values), max_size=12)


POINTS = lists_of(QUALITY, COST)
POINTS_3 = lists_of(QUALITY, COST, COST)


def dominates(a: Point, b: Point) -> bool:
    return a[0] >= b[0] and all(x <= y for x, y in zip(a[1:], b[1:], strict=True)) and a != b


@given(lists_of(QUALITY) | POINTS | POINTS_3)
def test_front_is_what_no_other_point_beats(points: list[Point]) -> None:
    front = pareto_front(points)
    expected = {point for point in points if not any(dominates(other, point) for other in points)}
    assert {points[index] for index in front} == expected
    assert len(front) == len(expected)
    assert [points[i][1:] for i in front] == sorted(points[i][1:] for i in front)


def test_of_equal_points_the_first_is_on_the_front() -> None:
    assert pareto_front([(0.5, 2.0), (0.5, 2.0), (0.4, 3.0)]) == [0]
    assert pareto_front([(0.4,), (0.5,), (0.5,)]) == [1]


@given(POINTS)
def test_hypervolume_is_the_best_quality_averaged_over_limits(points: list[Point]) -> None:
    budget = 5.0
    steps = 50
    limits = [(step + 0.5) * budget / steps for step in range(steps)]
    best = [max((q for q, m in points if m <= limit), default=0.0) for limit in limits]
    assert hypervolume(points, budget) == pytest.approx(sum(best) / steps)


@given(POINTS_3)
def test_hypervolume_of_two_costs_is_averaged_over_limits_of_both(points: list[Point]) -> None:
    memory_budget, longest = 5.0, 4.0
    volume = 0.0
    # All values are whole: between them the best quality stays as it is.
    for memory, time in itertools.product(range(5), range(4)):
        volume += max((q for q, m, t in points if m <= memory and t <= time), default=0.0)
    expected = pytest.approx(volume / (memory_budget * longest))
    assert hypervolume(points, memory_budget, longest) == expected


def test_hypervolume_without_a_cost_is_the_best_quality() -> None:
    assert hypervolume([(0.1,), (0.3,), (0.2,)]) == 0.3
    assert hypervolume([]) == 0.0


def test_hypervolume_does_not_depend_on_the_order() -> None:
    points = [(0.1, 1.0), (0.3, 2.0), (0.2, 3.0), (0.9, 7.0)]
    values = {hypervolume(order, 5.0) for order in itertools.permutations(points)}
    assert values == {(0.1 * 1 + 0.3 * 3) / 5}


def test_hypervolume_never_falls_when_a_point_is_added() -> None:
    draw = random.Random(0)
    points: list[Point] = []
    volumes = []
    for _ in range(50):
        points.append((draw.random(), 10 * draw.random()))
        volumes.append(hypervolume(points, 8.0))
    assert volumes == sorted(volumes)
    assert volumes[0] < volumes[-1]
