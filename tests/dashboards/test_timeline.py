from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboards.history import history_figure
from dashboards.page import render
from dashboards.queries import build_view
from dashboards.theme import MARKS
from dashboards.timeline import Clock, timeline_figure
from study.records import StudyRecord, TrialRecord

MIB = 2**20
STORE = "sqlite:////tmp/mlflow.db"
BEGIN = datetime(2026, 11, 27, 9)

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


def at(start: float, stop: float | None, worker: str = "a") -> dict[str, Any]:
    """When and where a trial ran, in minutes since the study began."""
    ended = None if stop is None else BEGIN + timedelta(minutes=stop)
    return {"started": BEGIN + timedelta(minutes=start), "finished": ended, "worker": worker}


@pytest.fixture
def worked(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Two processes of a first command, and a day later one of a second, which is at work."""
    return make_study(
        make_trial(0, quality=0.10, peak_memory=256 * MIB, **at(0, 10)),
        make_trial(1, quality=0.12, peak_memory=512 * MIB, **at(1, 6, "b")),
        make_trial(2, "pruned", **at(10, 14)),
        make_trial(3, "infeasible", reason="predicted", **at(6, 6, "b")),
        make_trial(4, quality=0.11, peak_memory=768 * MIB, **at(1440, 1445, "c")),
        make_trial(5, "running", peak_memory=None, **at(1445, None, "c")),
        make_trial(6, "waiting", peak_memory=None),
    )


def bars(figure: go.Figure) -> dict[tuple[int, str], tuple[float, float, int]]:
    """Number of a trial and its outcome -> start, end and row."""
    found = {}
    for trace in figure.data:
        if trace.yaxis == "y2":
            x, rows, numbers = trace.x, trace.y, trace.customdata
            gaps = [-1, *(index for index, place in enumerate(x) if place is None)]
            for before, after in pairwise(gaps):
                first = before + 1
                found[numbers[first], trace.name] = x[first], x[after - 1], rows[first]
    return found


def test_bars_are_where_and_when_trials_ran(worked: StudyRecord) -> None:
    figure = timeline_figure(build_view(worked, STORE))
    assert figure.layout.xaxis.title.text == "Minutes at work"
    found = bars(figure)
    # Minutes 14 to 1440 had no worker; the third process takes the first's row.
    expected = {
        (0, "on the front"): (0, 10, 0),
        (1, "on the front"): (1, 6, 1),
        (2, "pruned"): (10, 14, 0),
        (3, "over budget"): (6, 6, 1),
        (4, "dominated"): (14, 19, 0),
        (5, "running"): (19, 19 * 1.03, 0),
    }
    assert found.keys() == expected.keys()
    for trial, place in expected.items():
        assert found[trial] == pytest.approx(place, abs=0.03)
    start, stop, _ = found[3, "over budget"]
    assert stop > start, "what took no time is seen"
    assert list(figure.layout.yaxis2.ticktext) == ["worker 1", "worker 2"]
    assert figure.layout.xaxis.range[1] >= found[5, "running"][1]
    colors = {trace.name: trace.line.color for trace in figure.data if trace.yaxis == "y2"}
    assert colors["pruned"] == MARKS["pruned"].color


def test_hypervolume_grows_once_all_before_it_have_ended(worked: StudyRecord) -> None:
    view = build_view(worked, STORE)
    (volume,) = (trace for trace in timeline_figure(view).data if trace.yaxis != "y2")
    # Trial 1 ended before trial 0.
    assert list(volume.x) == [10, 10, 14, 19]
    assert list(volume.customdata) == [0, 1, 2, 4]
    assert list(volume.y) == [moment.hypervolume for moment in view.history]


def test_with_quality_alone_there_is_no_hypervolume(worked: StudyRecord) -> None:
    view = build_view(
        replace(worked, identity={**worked.identity, "objectives": ["quality"]}), STORE
    )
    figure = timeline_figure(view)
    assert all(trace.yaxis == "y2" for trace in figure.data)
    assert not figure.layout.yaxis.visible


def test_all_of_a_bar_can_be_pointed_at(worked: StudyRecord) -> None:
    figure = timeline_figure(build_view(worked, STORE))
    (front,) = (trace for trace in figure.data if trace.name == "on the front")
    places = front.x[: front.x.index(None)]
    assert set(front.customdata[: len(places)]) == {0}
    assert max(right - left for left, right in pairwise(places)) <= 0.02 * 19


def test_a_first_trial_that_runs_is_drawn(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    view = build_view(make_study(make_trial(0, "running", **at(0, None))), STORE)
    start, stop, _ = bars(timeline_figure(view))[0, "running"]
    assert stop > start + 0.9


@pytest.mark.parametrize(("factor", "unit"), [(1 / 60, "Seconds"), (1, "Minutes"), (20, "Hours")])
def test_unit_of_time(worked: StudyRecord, factor: float, unit: str) -> None:
    trials = [
        replace(trial, started=BEGIN, finished=BEGIN + timedelta(minutes=19 * factor))
        for trial in worked.trials[:1]
    ]
    figure = timeline_figure(build_view(replace(worked, trials=tuple(trials)), STORE))
    assert figure.layout.xaxis.title.text == f"{unit} at work"


def test_without_workers_trials_share_rows_where_they_can(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    """As in studies of earlier versions."""
    times = [(0, 4), (1, 3), (4, 6), (9, 10)]
    trials = [make_trial(i, **at(*each, worker="")) for i, each in enumerate(times)]
    clock = Clock(build_view(make_study(*trials), STORE).trials)
    assert list(clock.lanes.values()) == [0, 1, 0, 0]
    assert clock.end == 7 * 60


def test_many_workers_stay_on_one_screen(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [make_trial(i, **at(0, 9, f"host:{i}")) for i in range(200)]
    layout = timeline_figure(build_view(make_study(*trials), STORE)).layout
    assert layout.height < 800
    assert len(layout.yaxis2.ticktext) == 20


def test_thousands_of_bars_are_few_lines(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    view = build_view(make_study(make_trial(0, "pruned", **at(0, 1))), STORE)
    (one,) = view.trials
    trials = tuple(
        replace(
            one,
            number=number,
            started=BEGIN + timedelta(minutes=number),
            finished=BEGIN + timedelta(minutes=number + 1),
        )
        for number in range(10_000)
    )
    figure = timeline_figure(replace(view, trials=trials))
    assert len(figure.data) == 1
    assert len(bars(figure)) == 10_000


@pytest.mark.parametrize(
    ("outcome", "stop"), [("running", None), ("failed", None), ("pruned", -3), ("complete", 0)]
)
def test_odd_times_are_drawn(
    outcome: str, stop: float | None, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    """Half-written, or of clocks that were set."""
    trial = make_trial(0, outcome, **at(0, stop))
    page = render(build_view(make_study(trial), STORE))
    assert 'id="figure-timeline"' in page


def test_without_times_the_page_says_so(mixed: StudyRecord) -> None:
    assert "No trial has started yet." in render(build_view(mixed, STORE))


def test_history_counts_what_had_no_quality(mixed: StudyRecord, make_trial: MakeTrial) -> None:
    view = build_view(mixed, STORE)
    figure = history_figure(view)
    counts = {trace.line.color: trace for trace in figure.data if trace.yaxis == "y3"}
    over = counts[MARKS["infeasible"].color]
    assert list(zip(over.x, over.y, strict=True)) == [(3, 1), (4, 2), (8, 2)]
    (labels,) = (trace for trace in figure.data if trace.mode == "text")
    assert sorted(labels.text) == ["diverged 1", "failed 1", "over budget 2", "pruned 1"]
    assert len(set(labels.y)) == 4
    assert figure.layout.xaxis.anchor == "y3"
    sound = history_figure(build_view(replace(mixed, trials=mixed.trials[:3]), STORE))
    assert sound.layout.xaxis.anchor == "y2"
    assert sound.layout.height < figure.layout.height
