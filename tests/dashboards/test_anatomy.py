import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dashboards.anatomy import anatomy_figure, dissected
from dashboards.page import render
from dashboards.queries import build_view
from study.estimate_table import PARTS
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30
TITLE = "Where the memory goes"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.fixture
def known(mixed: StudyRecord) -> StudyRecord:
    """The parts of every trial are 200 MiB in all; those on the front took 256 and 512 MiB."""
    parts = {"activations": 150 * MIB, "parameters": 50 * MIB, "data": 0}
    trials = tuple(replace(trial, memory_parts=parts) for trial in mixed.trials)
    return replace(mixed, trials=trials)


def bars(figure: Any) -> dict[str, list[float]]:
    return {trace.name: list(trace.x) for trace in figure.data if trace.type == "bar"}


def test_parts_are_stacked_beside_the_measured_peak(known: StudyRecord) -> None:
    figure = anatomy_figure(build_view(known, "x"))
    assert bars(figure) == {"parameters": [50, 50], "activations": [150, 150]}
    assert figure.layout.barmode == "stack"
    assert figure.layout.xaxis.title.text == "Peak memory, MiB"
    mark = figure.data[-1]
    assert (mark.name, list(mark.x)) == ("measured", [256, 512])
    for trace in figure.data:
        assert list(trace.y) == ["trial 0", "trial 1"]
        assert list(trace.customdata) == [0, 1], "a click leads to the trial's run"
    assert figure.data[0].hovertext[1] == (
        "<b>Trial 1</b><br>parameters 50.0 MiB, 25% of the prediction"
    )


def test_what_the_measured_peak_differs_by_is_said(known: StudyRecord) -> None:
    annotations = anatomy_figure(build_view(known, "x")).layout.annotations
    assert [(note.y, note.text) for note in annotations[1:]] == [
        ("trial 0", "+28.0%"),
        ("trial 1", "+156.0%"),
    ]


def test_parts_have_the_order_and_colours_of_all_parts(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    colors: dict[str, str] = {}
    for left_out in (None, "optimizer"):
        parts = {part: MIB for part in reversed(PARTS) if part != left_out}
        view = build_view(make_study(make_trial(0, memory_parts=parts)), "x")
        drawn = [trace for trace in anatomy_figure(view).data if trace.type == "bar"]
        assert [trace.name for trace in drawn] == [part for part in PARTS if part != left_out]
        for trace in drawn:
            assert colors.setdefault(trace.name, trace.marker.color) == trace.marker.color
    assert len(set(colors.values())) == len(PARTS)


def test_budget_far_away_does_not_squash_the_bars(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    trial = make_trial(0, peak_memory=GIB, memory_parts={"loss": GIB})
    figure = anatomy_figure(build_view(make_study(trial, memory_budget=80 * GIB), "x"))
    assert figure.layout.xaxis.range[1] < 1.5
    assert figure.layout.annotations[0].text == "budget 80.00 GiB →"


def test_a_long_front_is_thinned_evenly(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [
        make_trial(i, quality=i / 100, peak_memory=(i + 1) * MIB, memory_parts={"loss": MIB})
        for i in range(40)
    ]
    numbers = [trial.number for trial in dissected(build_view(make_study(*trials), "x"))]
    assert len(numbers) == 12
    assert (numbers[0], numbers[-1]) == (0, 39)
    assert {3, 4} >= {right - left for left, right in itertools.pairwise(numbers)}


def test_trials_without_parts_are_left_out(known: StudyRecord) -> None:
    trials = (replace(known.trials[0], memory_parts={}), *known.trials[1:])
    assert [t.number for t in dissected(build_view(replace(known, trials=trials), "x"))] == [1]


@pytest.mark.parametrize(
    ("source", "words"),
    [("cuda", "has a predicted peak"), ("tracked", "on a GPU only"), ("recorded", "GPU only")],
)
def test_without_parts_the_page_says_why(mixed: StudyRecord, source: str, words: str) -> None:
    record = replace(mixed, identity={**mixed.identity, "memory_source": source})
    section = render(build_view(record, "x")).split(TITLE)[1]
    assert words in section.partition("</section>")[0]


def test_page_shows_the_parts(known: StudyRecord) -> None:
    section = render(build_view(known, "x")).split(TITLE)[1].partition("</section>")[0]
    assert 'id="figure-anatomy"' in section
    assert 'class="none"' not in section
