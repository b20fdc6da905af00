from collections.abc import Callable

import pytest

from dashboards.axes import memory_axis
from dashboards.limits import draw_budget, draw_cards
from dashboards.queries import build_view
from dashboards.theme import figure
from study.records import StudyRecord, TrialRecord

GIB = 2**30

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.mark.parametrize(
    ("peaks", "budget", "cards"),
    [
        ([1, 14], 16, ["8 GiB"]),
        ([5, 70], 80, ["8 GiB", "24 GiB", "40 GiB"]),
        ([4, 30], 32, ["8 GiB", "16 GiB", "24 GiB"]),
        ([0.4, 30], 200, ["8 GiB", "24 GiB", "80 GiB"]),
        ([0.4, 30], 400, ["8 GiB"]),
        ([22, 30], 30, ["24 GiB"]),
        ([0.1, 0.9], 1, []),
    ],
)
def test_cards_on_the_axis_are_drawn_apart(
    peaks: list[float],
    budget: int,
    cards: list[str],
    make_trial: MakeTrial,
    make_study: MakeStudy,
) -> None:
    trials = [make_trial(i, peak_memory=int(peak * GIB)) for i, peak in enumerate(peaks)]
    view = build_view(make_study(*trials, memory_budget=budget * GIB), "x")
    drawn = figure(300)
    axis = memory_axis(view.measured, view.budget)
    draw_cards(drawn, view.budget, axis)
    draw_budget(drawn, view.budget, axis)
    *labels, last = drawn.layout.annotations
    assert [label.text for label in labels] == cards
    assert last.text.strip(" →") == f"budget {budget}.00 GiB"
    inside = axis.budget == "inside"
    assert len(drawn.layout.shapes) == len(cards) + inside
    for label, line in zip(labels, drawn.layout.shapes[: len(cards)], strict=True):
        gib = int(label.text.removesuffix(" GiB"))
        assert line.x0 == gib
        assert axis.low < gib * GIB < axis.high
        assert label.x == axis.position(gib * GIB)
        assert label.yanchor != last.yanchor, "a card's label is no neighbour of the budget's"
