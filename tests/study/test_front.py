import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.front import Point, hypervolume, pareto_front

POINTS = st.lists(
    st.tuples(st.integers(0, 6).map(float), st.integers(1, 6).map(float)), max_size=12
)


def dominates(a: Point, b: Point) -> bool:
    return a[0] >= b[0] and a[1] <= b[1] and a != b


@given(POINTS)
def test_front_is_what_no_other_point_beats(points: list[Point]) -> None:
    front = pareto_front(points)
    expected = {point for point in points if not any(dominates(other, point) for other in points)}
    assert {points[index] for index in front} == expected
    assert len(front) == len(expected)
    assert [points[i][1] for i in front] == sorted(points[i][1] for i in front)


def test_of_equal_points_the_first_is_on_the_front() -> None:
    assert pareto_front([(0.5, 2.0), (0.5, 2.0), (0.4, 3.0)]) == [0]


@given(POINTS)
def test_hypervolume_is_the_best_quality_averaged_over_limits(points: list[Point]) -> None:
    budget = 5.0
    steps = 50
    limits = [(step + 0.5) * budget / steps for step in range(steps)]
    best = [max((q for q, m in points if m <= limit), default=0.0) for limit in limits]
    assert hypervolume(points, budget) == pytest.approx(sum(best) / steps)


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
