import math
from collections.abc import Callable
from dataclasses import replace

import plotly.graph_objects as go
import pytest

from dashboards.losses import losses_figure
from dashboards.page import render
from dashboards.queries import build_view
from dashboards.theme import LOSS_COLORS, NEUTRAL
from study.records import StudyRecord, TrialRecord

MIB = 2**20
STORE = "sqlite:////tmp/mlflow.db"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.fixture
def compared(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Two losses that are complete, the cheaper of which ends lower, and one that never is."""
    cheap, full, sce = ({"loss": loss} for loss in ("cce-", "cce", "sce"))
    return make_study(
        make_trial(0, quality=0.10, peak_memory=256 * MIB, config=cheap),
        make_trial(1, quality=0.12, peak_memory=512 * MIB, config=cheap),
        make_trial(2, quality=0.11, peak_memory=600 * MIB, config=cheap),
        make_trial(3, quality=0.13, peak_memory=768 * MIB, config=full),
        make_trial(4, "pruned", config=full),
        make_trial(5, "infeasible", config=sce),
        make_trial(6, "running", peak_memory=None),
    )


def lines(figure: go.Figure) -> dict[str, go.Scatter]:
    return {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}


def test_each_loss_has_its_front_up_to_the_budget(compared: StudyRecord) -> None:
    figure = losses_figure(build_view(compared, STORE))
    found = lines(figure)
    assert list(found) == [
        "cce: 1 of 2 trials complete",
        "cce-: 3 of 3 trials complete",
        "sce: 0 of 1 trials complete",
    ]
    full, cheap, sce = found.values()
    assert list(zip(cheap.x, cheap.y, strict=True)) == [(256, 0.10), (512, 0.12), (1024, 0.12)]
    assert list(zip(full.x, full.y, strict=True)) == [(768, 0.13), (1024, 0.13)]
    assert (list(cheap.customdata), cheap.line.shape) == ([0, 1], "hv")
    assert cheap.line.color == LOSS_COLORS["cce-"]
    assert "Trial 1" in cheap.hovertext[1]
    assert (list(sce.x), list(sce.customdata)) == ([None], [])
    (labels,) = (trace for trace in figure.data if trace.mode == "text")
    assert list(zip(labels.x, labels.text, strict=True)) == [(1024, " cce-"), (1024, " cce")]


def test_ties_have_one_point(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [make_trial(i, config={"loss": "cce" if i else "cce-"}) for i in range(4)]
    found = lines(losses_figure(build_view(make_study(*trials), STORE)))
    assert [list(trace.customdata) for trace in found.values()] == [[0], [1]]


def test_over_the_budget_a_line_ends_at_its_last_trial(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    """As where a budget was lowered."""
    trials = [make_trial(i, config={"loss": loss}) for i, loss in enumerate(("cce", "cce-"))]
    found = lines(losses_figure(build_view(make_study(*trials, memory_budget=MIB), STORE)))
    assert [trace.x[-1] for trace in found.values()] == [100, 100]


def test_page_compares_only_what_there_is(
    compared: StudyRecord, mixed: StudyRecord, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    assert "Loss against loss" in render(build_view(compared, STORE))
    assert "Loss against loss" not in render(build_view(mixed, STORE))
    nothing = replace(compared, trials=compared.trials[4:])
    assert "Loss against loss" not in render(build_view(nothing, STORE))
    unsound = [
        make_trial(i, quality=math.nan, config={"loss": loss}) for i, loss in enumerate("ab")
    ]
    assert "Loss against loss" not in render(build_view(make_study(*unsound), STORE))


def test_hostile_losses_are_text(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    evil = "<img src=x>"
    trials = [make_trial(i, config={"loss": loss}) for i, loss in enumerate((evil, "cce"))]
    figure = losses_figure(build_view(make_study(*trials), STORE))
    assert "<img" not in str(figure.to_json())
    assert lines(figure)["&lt;img src=x&gt;: 1 of 1 trials complete"].line.color == NEUTRAL
