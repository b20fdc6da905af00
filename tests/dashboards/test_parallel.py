from collections.abc import Callable
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
import pytest

from dashboards.page import render
from dashboards.parallel import parallel_figure
from dashboards.queries import build_view
from dashboards.theme import LOSS_COLORS, MARKS, NEUTRAL
from study.records import StudyRecord, TrialRecord

MIB = 2**20
STORE = "sqlite:////tmp/mlflow.db"
EVIL = "<script>alert(1)</script>"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.fixture
def conditional(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Two losses on the front, of which one has negatives, a dominated trial, and a pruned one."""
    chosen: list[dict[str, Any]] = [
        {"loss": "cce-", "negatives": 32, "dropout": 0.1},
        {"loss": "cce", "dropout": 0.5},
        {"loss": "cce-", "negatives": 3200, "dropout": 0.2},
        {"loss": "cce-", "negatives": 64, "dropout": 0.2},
    ]
    return make_study(
        make_trial(0, quality=0.10, peak_memory=100 * MIB, params=chosen[0]),
        make_trial(1, quality=0.14, peak_memory=300 * MIB, params=chosen[1]),
        make_trial(2, quality=0.11, peak_memory=700 * MIB, params=chosen[2]),
        make_trial(3, "pruned", params=chosen[3]),
        open=["loss", "negatives", "dropout"],
        space={"loss": ["sce", "cce", "cce-"], "negatives": [32, 3200], "dropout": [0, 0.5]},
    )


def paths(figure: go.Figure) -> dict[int, list[float]]:
    """Places of each trial on the axes, from the top."""
    found: dict[int, list[float]] = {}
    for trace in figure.data:
        if trace.mode == "lines":
            for x, number in zip(trace.x, trace.customdata, strict=True):
                if x is not None:
                    found.setdefault(number, []).append(x)
    return found


def ticks(figure: go.Figure) -> list[list[tuple[float, str]]]:
    """Places and words of each axis."""
    (trace,) = (trace for trace in figure.data if trace.mode == "text")
    found: list[list[tuple[float, str]]] = [[] for _ in figure.layout.yaxis.ticktext]
    for x, y, text in zip(trace.x, trace.y, trace.text, strict=True):
        found[int(y)].append((x, text))
    return found


def test_complete_trials_go_through_all_axes(conditional: StudyRecord) -> None:
    figure = parallel_figure(build_view(conditional, STORE))
    assert list(figure.layout.yaxis.ticktext) == [
        *("loss", "negatives", "dropout", "peak memory", "NDCG@10")
    ]
    none = -0.2
    assert paths(figure) == {
        0: [1, 0, 0, 0, 0],
        1: [0.5, none, 1, pytest.approx(1 / 3, abs=1e-4), 1],
        2: [1, 1, 0.25, 1, 0.25],
    }
    assert ticks(figure) == [
        [(0, "sce"), (0.5, "cce"), (1, "cce-")],
        [(none, "none"), (0, "32"), (1, "3200")],
        [(0, "0.1"), (0.25, "0.2"), (1, "0.5")],
        [(0, "100.0 MiB"), (pytest.approx(1 / 3), "300.0 MiB"), (1, "700.0 MiB")],
        [(0, "0.1000"), (pytest.approx(0.25), "0.1100"), (1, "0.1400")],
    ]
    assert figure.layout.xaxis.range[0] < none


def test_front_is_bold_by_loss(conditional: StudyRecord) -> None:
    figure = parallel_figure(build_view(conditional, STORE))
    looks = {
        tuple(sorted(set(trace.customdata))): (trace.line.color, trace.line.width)
        for trace in figure.data
        if trace.mode == "lines"
    }
    assert looks == {
        (0,): (LOSS_COLORS["cce-"], 2),
        (1,): (LOSS_COLORS["cce"], 2),
        (2,): (NEUTRAL, 1),
    }
    cheap = replace(conditional, trials=conditional.trials[:1])
    (line, _) = parallel_figure(build_view(cheap, STORE)).data
    assert line.line.color == MARKS["front"].color
    assert line.text[:2] == ("loss cce-", "negatives 32")


def test_ranges_are_logarithmic_with_a_tick_in_their_middle(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    values = [1, 10, 40, 70, 100]
    trials = [make_trial(i, params={"negatives": value}) for i, value in enumerate(values)]
    record = make_study(*trials, open=["negatives"], space={"negatives": [1, 100]})
    figure = parallel_figure(build_view(record, STORE))
    assert paths(figure)[1][0] == 0.5
    assert ticks(figure)[0] == [(0, "1"), (0.5, "10"), (1, "100")]
    # All have the same memory and quality.
    assert paths(figure)[1][1:] == [0.5, 0.5]


def test_of_thousands_hundreds_are_drawn(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    view = build_view(make_study(make_trial(0), make_trial(1)), STORE)
    front, one = view.trials
    trials = (front, *(replace(one, number=number) for number in range(1, 10_000)))
    assert len(paths(parallel_figure(replace(view, trials=trials)))) == 101


def test_without_settings_or_trials_the_page_has_no_such_section(
    conditional: StudyRecord,
) -> None:
    title = "Trials side by side"
    assert title in render(build_view(conditional, STORE))
    pruned = replace(conditional, trials=conditional.trials[3:])
    assert title not in render(build_view(pruned, STORE))
    closed = replace(conditional, identity={**conditional.identity, "open": []})
    assert title not in render(build_view(closed, STORE))


def test_hostile_words_are_text(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trial = make_trial(0, params={EVIL: EVIL})
    figure = parallel_figure(build_view(make_study(trial, open=[EVIL, "width"], space={}), STORE))
    assert "<script" not in str(figure.to_json())
    assert "&lt;script" in figure.layout.yaxis.ticktext[0]
    assert ticks(figure)[1] == [(-0.2, "none")]
