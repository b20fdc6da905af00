import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboards.axes import memory_axis, number_axis, time_axis, value_range
from dashboards.duration import duration_figure
from dashboards.history import history_figure
from dashboards.parameters import parameter_figure
from dashboards.pareto import pareto_figure
from dashboards.queries import StudyView, build_view
from study.front import hypervolume
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30
STORE = "sqlite:////tmp/mlflow.db"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


def traces(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name]


def points(trace: go.Scatter) -> list[tuple[Any, Any]]:
    return list(zip(trace.x, trace.y, strict=True))


def lines(figure: go.Figure) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.mode == "lines"]


def test_front_is_drawn_in_the_unit_of_the_axis(mixed: StudyRecord) -> None:
    figure = pareto_figure(build_view(mixed, STORE))
    (front,) = traces(figure, "on the front")
    (dominated,) = traces(figure, "dominated")
    assert figure.layout.xaxis.title.text == "Peak memory, GiB"
    assert points(front) == [(0.25, 0.10), (0.5, 0.12)]
    assert points(dominated) == [(0.75, 0.11)]


def test_line_gives_the_best_quality_for_every_limit_up_to_the_budget(mixed: StudyRecord) -> None:
    (line,) = lines(pareto_figure(build_view(mixed, STORE)))
    assert line.line.shape == "hv"
    assert points(line) == [(0.25, 0.10), (0.5, 0.12), (1.0, 0.12)]


def test_trials_without_quality_stand_in_a_strip_at_their_memory(mixed: StudyRecord) -> None:
    figure = pareto_figure(build_view(mixed, STORE))
    (over,) = traces(figure, "over budget")
    assert over.yaxis == "y2"
    assert list(over.x) == [1.25, 1.0]
    assert list(over.marker.symbol) == ["diamond", "triangle-right"]
    assert "at least 1.00 GiB" in over.hovertext[1]
    assert list(figure.layout.yaxis2.ticktext) == ["over budget", "diverged", "pruned"]
    for row, name in enumerate(figure.layout.yaxis2.ticktext):
        (trace,) = traces(figure, name)
        assert set(trace.y) == {row}
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]


def test_repeats_are_error_bars(mixed: StudyRecord, make_trial: MakeTrial) -> None:
    repeats = [
        make_trial(number, quality=quality, peak_memory=memory * MIB, repeat_of=repeat_of)
        for number, quality, memory, repeat_of in (
            (9, 0.12, 260, 0),
            (10, 0.17, 250, 0),
            (11, 0.08, 768, 2),
        )
    ]
    view = build_view(replace(mixed, trials=(*mixed.trials, *repeats)), STORE)
    assert len(view.trials) == 9, "a repeat is no trial of its own"
    figure = pareto_figure(view)
    (front,) = traces(figure, "on the front")
    (dominated,) = traces(figure, "dominated")
    # The first has the largest peak of the three, and beats the second by its mean.
    assert points(front) == [(260 / 1024, pytest.approx(0.13))]
    assert list(front.error_y.array) == [pytest.approx(0.0360555)]
    assert points(dominated) == [(0.5, 0.12), (0.75, pytest.approx(0.095))]
    assert list(dominated.error_y.array) == [0, pytest.approx(0.0212132)]
    low, high = figure.layout.yaxis.range
    assert low < 0.095 - 0.0212132
    assert high > 0.13 + 0.0360555
    assert "0.1300 ± 0.0361 (3 trainings)" in front.hovertext[0].replace("<br>", " ")
    (front,) = traces(pareto_figure(build_view(mixed, STORE)), "on the front")
    assert front.error_y.array is None, "without repeats there are none"


def test_trials_after_repeats_are_within_the_history(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    record = make_study(make_trial(0), *(make_trial(n, repeat_of=0) for n in range(1, 6)))
    record = replace(record, trials=(*record.trials, make_trial(6)))
    assert history_figure(build_view(record, STORE)).layout.xaxis.range[1] > 6


def test_hover_says_all_that_is_known(mixed: StudyRecord) -> None:
    (front,) = traces(pareto_figure(build_view(mixed, STORE)), "on the front")
    assert front.hovertext[1].split("<br>") == [
        "<b>Trial 1</b>, on the front",
        "NDCG@10, validation 0.1200",
        "NDCG@10, test 0.1000",
        "peak memory 512.0 MiB",
        "seconds 12.0",
        "batch_size 16",
        "learning_rate 0.001",
        "MLflow run " + "b" * 32,
    ]


@pytest.mark.parametrize(
    ("memories", "budget", "place"),
    [
        ([300, 600], 800, "inside"),
        ([300, 600], 8000, "right"),
        ([10, 800], 1200, "inside"),
        ([10, 800], 12 * 1024, "right"),
        ([700, 800], 40, "left"),
        ([1100, 1300], 1000, "inside"),
        ([490, 1000], 600, "inside"),
        ([500], 600, "inside"),
        ([500], 6000, "right"),
        ([], 800, "inside"),
    ],
)
def test_budget_never_squashes_the_data(
    memories: list[int], budget: int, place: str, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    trials = [make_trial(i, peak_memory=memory * MIB) for i, memory in enumerate(memories)]
    view = build_view(make_study(*trials, memory_budget=budget * MIB), STORE)
    axis = memory_axis(view.measured, view.budget)
    figure = pareto_figure(view)
    assert axis.budget == place
    assert axis.log == (memories == [10, 800])
    assert all(axis.low <= trial.peak_memory <= axis.high for trial in trials if trial.peak_memory)
    (label,) = figure.layout.annotations
    if place == "inside":
        (line,) = figure.layout.shapes
        assert line.x0 == line.x1 == axis.place(budget * MIB)
        assert label.x == (math.log10(line.x0) if axis.log else line.x0)
        assert "→" not in label.text
        assert "←" not in label.text
    else:
        assert not figure.layout.shapes
        assert ("→" in label.text) == (place == "right")
        assert ("←" in label.text) == (place == "left")


def test_logarithmic_memory_axis_is_marked_with_sizes(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    trials = [make_trial(i, peak_memory=memory * MIB) for i, memory in enumerate((40, 2048))]
    layout = pareto_figure(build_view(make_study(*trials), STORE)).layout.xaxis
    assert layout.type == "log"
    assert list(layout.ticktext[-3:]) == ["512 MiB", "1 GiB", "2 GiB"]
    assert list(layout.tickvals[-3:]) == [0.5, 1, 2]


def test_numbers_of_the_front_do_not_overlap(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [
        make_trial(i, quality=0.1 + i / 100, peak_memory=memory * MIB)
        for i, memory in enumerate((200, 201, 202, 600))
    ]
    (front,) = traces(pareto_figure(build_view(make_study(*trials), STORE)), "on the front")
    assert list(front.text) == ["0", "", "2", "3"]
    assert list(front.textposition) == ["top left", "top right", "top right", "top left"]


def test_history_shows_the_best_so_far_and_the_hypervolume(mixed: StudyRecord) -> None:
    best, volume, *_ = lines(history_figure(build_view(mixed, STORE)))
    # Trial 3 was refused: it never ran.
    rest = (2, 4, 5, 6)
    assert points(best) == [(0, 0.10), (1, 0.12), *((number, 0.12) for number in rest)]
    first = hypervolume([(0.10, 256 * MIB)], GIB)
    both = hypervolume([(0.10, 256 * MIB), (0.12, 512 * MIB)], GIB)
    assert points(volume) == [(0, first), (1, both), *((number, both) for number in rest)]
    assert both == pytest.approx(0.25 * 0.10 + 0.5 * 0.12)
    assert volume.yaxis == "y2"


def test_history_begins_before_the_first_complete_trial(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    view = build_view(make_study(make_trial(0, "pruned"), make_trial(1)), STORE)
    best, volume, _ = lines(history_figure(view))
    assert points(best) == [(1, 0.1)]
    assert volume.y[0] == 0
    assert volume.y[1] > 0


def test_with_three_objectives_memory_and_time_have_a_line_each(timed: StudyRecord) -> None:
    view = build_view(timed, STORE)
    (memory,) = lines(pareto_figure(view))
    assert points(memory) == [(0.25, 0.10), (0.5, 0.12), (1.0, 0.12)]
    (time,) = lines(duration_figure(view))
    assert points(time) == [(5.0, 0.08), (20.0, 0.12), (50.0, 0.12)]
    (front,) = traces(pareto_figure(view), "on the front")
    assert points(front) == [(0.25, 0.10), (0.5, 0.12), (0.75, 0.08)]
    (front,) = traces(duration_figure(view), "on the front")
    assert points(front) == [(40.0, 0.10), (20.0, 0.12), (5.0, 0.08)]
    (dominated,) = traces(duration_figure(view), "dominated")
    assert points(dominated) == [(50.0, 0.07)]


def test_the_longer_a_trial_of_the_front_took_the_darker_it_is(timed: StudyRecord) -> None:
    figure = pareto_figure(build_view(timed, STORE))
    (front,) = traces(figure, "on the front")
    reds = [int(color.removeprefix("rgb(").split(",")[0]) for color in front.marker.color]
    assert reds[0] < reds[1] < reds[2]
    (scale,) = (trace for trace in figure.data if list(trace.x) == [None])
    assert list(scale.marker.colorbar.ticktext) == ["5 s", "40 s"]


def test_without_memory_as_an_objective_it_has_no_line(timed: StudyRecord) -> None:
    identity = {**timed.identity, "objectives": ["quality", "time"]}
    view = build_view(replace(timed, identity=identity), STORE)
    assert [trial.number for trial in view.front] == [2, 1]
    assert lines(pareto_figure(view)) == []
    (front,) = traces(pareto_figure(view), "on the front")
    assert points(front) == [(0.5, 0.12), (0.75, 0.08)]
    assert isinstance(front.marker.color, str)
    assert len(lines(duration_figure(view))) == 1


def test_with_quality_alone_the_best_is_marked_and_nothing_else(mixed: StudyRecord) -> None:
    view = build_view(
        replace(mixed, identity={**mixed.identity, "objectives": ["quality"]}), STORE
    )
    figure = pareto_figure(view)
    assert lines(figure) == []
    (best,) = traces(figure, "best")
    assert points(best) == [(0.5, 0.12)]
    assert best.hovertext[0].startswith("<b>Trial 1</b>, best<br>")
    (others,) = traces(figure, "dominated")
    assert points(others) == [(0.25, 0.10), (0.75, 0.11)]
    history = history_figure(view)
    assert len([line for line in lines(history) if line.yaxis != "y3"]) == 1
    assert not any(trace.yaxis == "y2" for trace in history.data)
    assert len(traces(history, "best")) == 1


@pytest.mark.parametrize(
    ("seconds", "kind", "ticks"),
    [([3.0, 20.0], None, None), ([0.0, 20.0], None, None), ([4.0, 90.0], "log", [10, 30])],
)
def test_axis_of_time(seconds: list[float], kind: str | None, ticks: list[float] | None) -> None:
    axis = time_axis(seconds)
    assert (axis.get("type"), axis.get("tickvals")) == (kind, ticks)


def test_hypervolume_of_the_history_never_falls_where_time_counts(timed: StudyRecord) -> None:
    """It has one limit of time throughout, that of the longest trial."""
    volumes = [moment.hypervolume for moment in build_view(timed, STORE).history]
    assert volumes == sorted(volumes)
    assert volumes[0] == pytest.approx(0.10 * 0.75 * 0.2)


def test_parameter_is_drawn_against_quality_and_memory(mixed: StudyRecord) -> None:
    figure = parameter_figure(build_view(mixed, STORE), "batch_size")
    quality, memory = traces(figure, "on the front")
    assert (quality.yaxis, memory.yaxis) == ("y", "y2")
    assert points(quality) == [(8, 0.10), (16, 0.12)]
    assert points(memory) == [(8, 0.25), (16, 0.5)]
    assert [points(trace) for trace in traces(figure, "over budget")] == [[(32, 1.25)], [(40, 1)]]
    assert "at least" in traces(figure, "over budget")[1].hovertemplate
    assert list(traces(figure, "over budget")[1].marker.symbol) == ["triangle-up"]
    assert traces(figure, "pruned")[0].marker.symbol == "line-ew-open"
    assert figure.data[-1].name == "on the front"
    assert figure.layout.xaxis.type == "linear"


@pytest.mark.parametrize(
    ("values", "kind", "ticks"),
    [
        ([1, 2, 4], "linear", [1, 2, 4]),
        ([8, 30, 100, 500, 700, 2000], "log", [8, 32, 128, 512]),
        ([1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 1e-2], "log", [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
        ([0.1, 0.2, 0.25, 0.3, 0.4, 0.5], "linear", None),
        ([0, 1, 2, 3, 50, 80], "linear", None),
    ],
)
def test_axis_of_numbers(values: Sequence[float], kind: str, ticks: list[float] | None) -> None:
    axis = number_axis(values)
    assert axis["type"] == kind
    assert axis.get("tickvals") == (None if ticks is None else pytest.approx(ticks))


@pytest.mark.parametrize(
    ("values", "ends"),
    [([1, 2], [0.9, 2.1]), ([0.1], [0.08, 0.12]), ([0, 0], [-0.1, 0.1]), ([], [-0.1, 1.1])],
)
def test_values_have_a_margin(values: list[float], ends: list[float]) -> None:
    assert value_range(values) == pytest.approx(ends)


def test_words_become_categories_in_the_order_of_the_space(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    view = build_view(
        make_study(
            make_trial(0, params={"loss": "<b>cce</b>"}),
            make_trial(1, params={"loss": "cce-"}),
            open=["loss"],
            space={"loss": ["cce-", "<b>cce</b>"]},
        ),
        STORE,
    )
    axis = parameter_figure(view, "loss").layout.xaxis
    assert axis.type == "category"
    assert list(axis.categoryarray) == ["cce-", "&lt;b&gt;cce&lt;/b&gt;"]


def test_numbers_that_cannot_be_drawn_are_left_out(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    record = make_study(
        make_trial(0, quality=math.nan),
        make_trial(1, quality=math.inf),
        make_trial(2, metrics={"test/ndcg_at_10": math.nan}),
        make_trial(3, peak_memory=None),
        make_trial(4, "pruned", peak_memory=math.nan, seconds=math.inf),
    )
    view = build_view(replace(record, baseline={"ndcg_at_10": math.nan}), STORE)
    assert [trial.group for trial in view.trials] == [
        "diverged",
        "diverged",
        "front",
        "diverged",
        "pruned",
    ]
    assert "not a finite number" in view.trials[0].reason
    assert view.trials[2].metrics == {}
    assert view.trials[4].memory is None
    assert view.baseline is None
    assert [moment.best for moment in view.history] == [None, None, 0.1, 0.1, 0.1]


def _numbers_drawn(view: StudyView) -> list[int]:
    return sorted(
        number
        for trace in pareto_figure(view).data
        if trace.customdata is not None
        for number in trace.customdata
    )


def test_every_trial_of_known_memory_is_drawn_once(mixed: StudyRecord) -> None:
    assert _numbers_drawn(build_view(mixed, STORE)) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("outcomes", [[], ["running"], ["infeasible"], ["complete"], ["waiting"]])
def test_odd_studies_have_figures(
    outcomes: list[str], make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    view = build_view(make_study(*(make_trial(i, o) for i, o in enumerate(outcomes))), STORE)
    assert _numbers_drawn(view) == [trial.number for trial in view.trials]
    history_figure(view).to_json()
    parameter_figure(view, "batch_size").to_json()
