import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import plotly.graph_objects as go
import pytest

from dashboards.curves import curves_figure, with_lines
from dashboards.page import render
from dashboards.queries import build_view
from dashboards.theme import LOSS_COLORS, MARKS, NEUTRAL
from study.records import StudyRecord, TrialRecord

MIB = 2**20
STORE = "sqlite:////tmp/mlflow.db"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.fixture
def curved(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Two trials on the front with a loss each, one dominated, one pruned and one that runs."""
    return make_study(
        make_trial(0, quality=0.10, peak_memory=256 * MIB, curve=(0.02, 0.10)),
        make_trial(
            1,
            quality=0.12,
            peak_memory=512 * MIB,
            config={"loss": "cce"},
            curve=(0.01, 0.08, 0.12),
        ),
        make_trial(2, quality=0.09, peak_memory=768 * MIB, curve=(0.03, 0.09)),
        make_trial(3, "pruned", curve=(0.01,), config={"loss": "cce-"}),
        make_trial(4, "running", peak_memory=None, curve=(0.01, 0.05)),
        make_trial(5, "infeasible"),
        make_trial(6, "diverged", curve=(0.01, math.nan, math.inf)),
    )


def lines(figure: go.Figure) -> dict[tuple[str, tuple[int, ...]], list[float | None]]:
    """Colour and numbers of the trials of each line -> its heights."""
    return {
        (trace.line.color, tuple(sorted(set(trace.customdata)))): list(trace.y)
        for trace in figure.data
        if trace.mode == "lines"
    }


def test_front_is_bold_before_the_others(curved: StudyRecord) -> None:
    figure = curves_figure(build_view(curved, STORE))
    assert lines(figure) == {
        (NEUTRAL, (2,)): [0.03, 0.09, None],
        (NEUTRAL, (3,)): [0.01, None],
        (NEUTRAL, (4,)): [0.01, 0.05, None],
        (NEUTRAL, (6,)): [0.01, None, None, None],
        (NEUTRAL, (0,)): [0.02, 0.10, None],  # Its loss is not known.
        (LOSS_COLORS["cce"], (1,)): [0.01, 0.08, 0.12, None],
    }
    assert [trace.line.width for trace in figure.data if trace.mode == "lines"] == [1] * 4 + [
        2
    ] * 2
    assert "after epoch %{x}" in figure.data[0].hovertemplate
    (labels,) = (trace for trace in figure.data if trace.mode == "text")
    assert list(zip(labels.x, labels.y, labels.text, strict=True)) == [
        (2, 0.10, " 0"),
        (3, 0.12, " 1"),
    ]


def test_what_ended_early_has_its_mark_at_its_end(curved: StudyRecord) -> None:
    figure = curves_figure(build_view(curved, STORE))
    ends = {
        trace.name: (trace.x, trace.y, trace.marker.symbol)
        for trace in figure.data
        if trace.mode == "markers"
    }
    assert ends == {
        "diverged": ((1,), (0.01,), MARKS["diverged"].symbol),
        "pruned": ((1,), (0.01,), MARKS["pruned"].symbol),
        "running": ((2,), (0.05,), MARKS["running"].symbol),
    }


def test_chosen_trials_are_bold_instead(curved: StudyRecord) -> None:
    found = lines(curves_figure(build_view(curved, STORE), [2, 3]))
    assert (LOSS_COLORS["cce-"], (3,)) in found
    assert (NEUTRAL, (1,)) not in found
    assert (NEUTRAL, (0, 1)) in found


def test_of_one_loss_the_front_is_blue(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    view = build_view(make_study(make_trial(0, curve=(0.1,), config={"loss": "cce"})), STORE)
    figure = curves_figure(view)
    assert list(lines(figure)) == [(MARKS["front"].color, (0,))]
    (mark,) = (trace for trace in figure.data if trace.mode == "markers")
    assert (list(mark.x), list(mark.y)) == ([1], [0.1])  # A line of one epoch is not seen.


@pytest.mark.parametrize("count", [3, 60])
def test_numbers_do_not_overlap(count: int, make_trial: MakeTrial, make_study: MakeStudy) -> None:
    qualities = [0.1 + i / 1e6 for i in range(count)]
    trials = [
        make_trial(i, quality=quality, peak_memory=(i + 1) * MIB, curve=(0, quality))
        for i, quality in enumerate(qualities)
    ]
    figure = curves_figure(build_view(make_study(*trials), STORE))
    (labels,) = (trace for trace in figure.data if trace.mode == "text")
    low, high = figure.layout.yaxis.range
    apart = [(upper - lower) / (high - low) for lower, upper in pairwise(labels.y)]
    assert min(apart) * figure.layout.height > 14
    assert low < labels.y[0]
    assert labels.y[-1] < high
    if count == 3:
        assert labels.text == (" 0", " 1", " 2")
        assert labels.y[1] == pytest.approx(0.1, abs=1e-5), "they are spread to both sides"
    else:
        assert len(labels.text) < 60, "there is no room for all"


def test_of_thousands_a_hundred_are_drawn(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    view = build_view(make_study(make_trial(0, "pruned", curve=(0.1, 0.2))), STORE)
    trials = tuple(replace(view.trials[0], number=number) for number in range(10_000))
    (line, mark) = curves_figure(replace(view, trials=trials)).data
    assert len(set(line.customdata)) == len(mark.x) == 100
    assert line.customdata[-1] == 9900


def test_without_curves_the_page_says_so(mixed: StudyRecord, curved: StudyRecord) -> None:
    assert "No trial has reported an epoch yet." in render(build_view(mixed, STORE))
    assert 'id="figure-curves"' in render(build_view(curved, STORE))


def test_hostile_losses_are_text(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [
        make_trial(
            i, curve=(0.1, 0.1 + i), quality=0.1 + i, peak_memory=i + 1, params={"loss": loss}
        )
        for i, loss in enumerate(("<b>", "cce"))
    ]
    figure = curves_figure(build_view(make_study(*trials), STORE))
    assert [trace.name for trace in figure.data if trace.showlegend] == ["&lt;b&gt;", "cce"]


def test_a_hundred_others_at_most_have_lines(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [make_trial(number, quality=0.2 - number / 1e4) for number in range(300)]
    study = make_study(*trials, make_trial(300, "infeasible"))
    shown = [trial.number for trial in with_lines(build_view(study, STORE))]
    assert len(shown) == len(set(shown)) == 101
    assert shown[0] == 0
    assert 300 not in shown
