from collections.abc import Callable
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboards.page import render
from dashboards.pareto import drawn_losses, pareto_figure
from dashboards.queries import build_view
from dashboards.theme import LOSS_COLORS, MANY, NEUTRAL
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.fixture
def several(mixed: StudyRecord) -> StudyRecord:
    """Trials of cce-, bce+ and sce in turn; one of the last is not yet known."""
    losses = ["cce-", "bce+", "sce"]
    trials = tuple(
        replace(trial, config={"loss": losses[trial.number % 3]}) for trial in mixed.trials
    )
    return replace(mixed, trials=trials)


def drawn(figure: go.Figure) -> dict[int, Any]:
    """The colour of every trial."""
    return {
        number: color
        for trace in figure.data
        if trace.customdata is not None
        for number, color in zip(trace.customdata, trace.marker.color, strict=True)
    }


def test_losses_are_told_apart_by_colour_and_outcomes_by_shape(several: StudyRecord) -> None:
    view = build_view(several, "x")
    assert drawn_losses(view) == ["cce-", "bce+", "sce"]
    figure = pareto_figure(view)
    assert drawn(figure) == {
        number: LOSS_COLORS[("cce-", "bce+", "sce")[number % 3]] for number in range(7)
    }
    listed = [trace.name for trace in figure.data if trace.legend == "legend2"]
    assert listed == ["cce-", "bce+", "sce"]
    shapes = [
        (trace.name, trace.marker.symbol, trace.marker.color)
        for trace in figure.data
        if trace.showlegend is None and trace.legend is None
    ]
    assert shapes == [
        ("on the front", "circle", NEUTRAL),
        ("dominated", "circle-open", NEUTRAL),
    ]
    (line,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert line.line.color == NEUTRAL


def test_losses_of_many_are_numbers_on_a_scale_of_their_colours(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    losses = ["cce-", "bce+", "sce"]
    trials = [
        make_trial(number, quality=0.1 - number * 1e-6, config={"loss": losses[number % 3]})
        for number in range(MANY + 2)
    ]
    view = build_view(make_study(*trials), "x")
    cloud = max(pareto_figure(view).data, key=lambda trace: len(trace.x))
    scale = [color for _, color in cloud.marker.colorscale]
    assert len(cloud.x) > MANY
    assert (cloud.marker.cmin, cloud.marker.cmax) == (0, 2)
    assert [scale[number] for number in cloud.marker.color] == [
        LOSS_COLORS[losses[number % 3]] for number in cloud.customdata
    ]


def test_one_loss_has_the_colours_of_the_outcomes(mixed: StudyRecord) -> None:
    trials = tuple(replace(trial, config={"loss": "cce-"}) for trial in mixed.trials)
    view = build_view(replace(mixed, trials=trials), "x")
    assert drawn_losses(view) == []
    figure = pareto_figure(view)
    assert not any(trace.legend == "legend2" for trace in figure.data)
    colors = {trace.marker.color for trace in figure.data if trace.customdata is not None}
    assert len(colors) == 5
    assert not colors & set(LOSS_COLORS.values())


def test_a_loss_of_a_later_version_is_grey(several: StudyRecord) -> None:
    trials = (replace(several.trials[0], config={"loss": "next"}), *several.trials[1:])
    figure = pareto_figure(build_view(replace(several, trials=trials), "x"))
    assert drawn(figure)[0] == NEUTRAL


def test_colours_of_time_are_not_those_of_losses(timed: StudyRecord) -> None:
    trials = tuple(
        replace(trial, config={"loss": ["cce", "cce-"][trial.number % 2]})
        for trial in timed.trials
    )
    figure = pareto_figure(build_view(replace(timed, trials=trials), "x"))
    assert not any(trace.legend == "legend2" for trace in figure.data)


def test_fronts_of_the_worst_and_best_trainings_are_the_ends_of_a_band(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    record = make_study(
        make_trial(0, quality=0.10, peak_memory=256 * MIB),
        make_trial(1, quality=0.20, peak_memory=512 * MIB),
        make_trial(2, quality=0.21, peak_memory=768 * MIB),
        make_trial(3, quality=0.14, peak_memory=256 * MIB, repeat_of=0),
        make_trial(4, quality=0.18, peak_memory=512 * MIB, repeat_of=1),
        make_trial(5, quality=0.30, peak_memory=512 * MIB, repeat_of=1),
        make_trial(6, quality=0.30, peak_memory=768 * MIB, repeat_of=2),
    )
    view = build_view(record, "x")
    assert view.trials[1].qualities == (0.20, 0.18, 0.30)
    figure = pareto_figure(view)
    worst, best, line = [trace for trace in figure.data if trace.mode == "lines"]
    assert (worst.fill, best.fill) == (None, "tonexty")
    assert list(worst.x) == list(best.x) == list(line.x) == [256, 512, 768, 1024]
    assert list(worst.y) == [0.10, 0.18, 0.21, 0.21]
    assert list(best.y) == [0.14, 0.30, 0.30, 0.30]
    assert list(line.y) == pytest.approx([0.12, 0.68 / 3, 0.255, 0.255])
    low, high = figure.layout.yaxis.range
    assert low < 0.10
    assert high > 0.30


def test_without_repeats_there_is_no_band(mixed: StudyRecord) -> None:
    figure = pareto_figure(build_view(mixed, "x"))
    assert not any(trace.fill for trace in figure.data)


@pytest.mark.parametrize("log", [True, False])
def test_the_axis_of_memory_is_as_asked(
    log: bool, mixed: StudyRecord, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    wide = make_study(*(make_trial(i, peak_memory=mib * MIB) for i, mib in enumerate((9, 999))))
    single = make_study(make_trial(0), memory_budget=80 * GIB)
    for record in (mixed, wide, single):
        axis = pareto_figure(build_view(record, "x"), log=log).layout.xaxis
        assert (axis.type == "log") == log
        assert axis.range[0] < axis.range[1]


def test_page_has_a_button_where_there_is_a_front_figure(
    mixed: StudyRecord, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    button = '<button type="button" aria-pressed="false" data-figure="front">'
    assert button in render(build_view(mixed, "x"))
    wide = make_study(*(make_trial(i, peak_memory=mib * MIB) for i, mib in enumerate((9, 999))))
    assert button.replace("false", "true") in render(build_view(wide, "x"))
    assert '<button type="button" aria-pressed' not in render(build_view(make_study(), "x"))
