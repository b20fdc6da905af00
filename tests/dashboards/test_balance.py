import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from dashboards.balance import balance_figure, band_winners, memory_fit, slices
from dashboards.page import render
from dashboards.queries import StudyView, build_view
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30
COEFFICIENTS = 20 * MIB, MIB / 4, MIB / 64, MIB / 4096
TITLE = "Balance of negatives and batch size"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]
MakeView = Callable[..., StudyView]


def memory(batch: int, negatives: int) -> int:
    base, per_batch, per_negative, per_pair = COEFFICIENTS
    return round(
        base + per_batch * batch + per_negative * negatives + per_pair * batch * negatives
    )


@pytest.fixture
def record(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """A grid of four by four trials, the better the larger both are; then one full softmax."""
    pairs = [
        (batch, negatives) for batch in (64, 128, 256, 512) for negatives in (16, 64, 256, 1024)
    ]
    trials = [
        make_trial(
            number,
            params={"batch_size": batch, "negatives": negatives},
            config={"loss": "cce-", "max_length": 50},
            quality=math.log(batch * negatives) / 100,
            peak_memory=memory(batch, negatives),
        )
        for number, (batch, negatives) in enumerate(pairs)
    ]
    trials.append(
        make_trial(
            16,
            params={"batch_size": 64, "loss": "cce"},
            config={"loss": "cce", "max_length": 50},
            quality=0.2,
            peak_memory=60 * MIB,
        )
    )
    space = {"batch_size": [8, 4096], "loss": ["cce-", "cce"], "negatives": [8, 4096]}
    return make_study(*trials, space=space, open=list(space))


def lines(figure: Any) -> list[Any]:
    return [trace for trace in figure.data if trace.mode == "lines"]


def test_trials_are_drawn_by_negatives_and_batch_size(record: StudyRecord) -> None:
    view = build_view(record, "x")
    (part,) = slices(view)
    figure = balance_figure(view, part)
    trials = figure.data[-1]
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("log", "log")
    found = dict(zip(trials.customdata, zip(trials.x, trials.y, strict=True), strict=True))
    assert found[6] == (256, 128)
    assert len(found) == 17
    assert list(trials.marker.color) == sorted(trials.marker.color), "the best on top"
    assert trials.customdata[-1] == 16


def test_the_full_softmax_stands_at_the_right_edge_as_all(record: StudyRecord) -> None:
    view = build_view(record, "x")
    figure = balance_figure(view, slices(view)[0])
    axis = figure.layout.xaxis
    place = dict(zip(axis.ticktext, axis.tickvals, strict=True))["all"]
    assert figure.data[-1].x[-1] == place > 1024
    assert 10 ** axis.range[1] > place
    assert "negatives all" in figure.data[-1].hovertext[-1]
    without = build_view(replace(record, trials=record.trials[:-1]), "x")
    ticks = balance_figure(without, slices(without)[0]).layout.xaxis.ticktext
    assert "all" not in ticks


def test_memory_is_fitted_and_its_lines_stay_within_the_trials(record: StudyRecord) -> None:
    view = build_view(record, "x")
    (part,) = slices(view)
    fit = memory_fit(part)
    assert fit == pytest.approx(COEFFICIENTS, rel=1e-3)
    figure = balance_figure(view, part)
    labels = [note.text for note in figure.layout.annotations]
    assert labels == ["64 MiB", "128 MiB"]
    for line, mib in zip(lines(figure), (64, 128), strict=True):
        for negatives, batch in zip(line.x, line.y, strict=True):
            assert 16 <= round(negatives, 6) <= 1024
            assert 64 <= batch <= 512
            base, per_batch, per_negative, per_pair = COEFFICIENTS
            whole = base + per_batch * batch + per_negative * negatives
            assert whole + per_pair * batch * negatives == pytest.approx(mib * MIB, rel=1e-3)


@pytest.mark.parametrize("falling", ["batch_size", "negatives"])
def test_more_never_takes_less_memory(record: StudyRecord, falling: str) -> None:
    trials = [
        replace(trial, peak_memory=16 * GIB + trial.peak_memory - MIB // 2 * trial.params[falling])
        for trial in record.trials[:16]
        if trial.peak_memory
    ]
    (part,) = slices(build_view(replace(record, trials=tuple(trials)), "x"))
    fit = memory_fit(part)
    assert fit is not None
    batch, negatives = (
        np.array([trial.params[name] for trial in trials], dtype=float)
        for name in ("batch_size", "negatives")
    )
    peaks = np.array([float(trial.peak_memory or 0) for trial in trials])
    terms = np.stack([np.ones(16), batch, negatives, batch * negatives], axis=1)
    scale = terms.max(axis=0)
    expected, _ = nnls(terms / scale / peaks[:, None], np.ones(16))
    assert min(expected) == 0, "else this shows nothing"
    assert fit == pytest.approx(expected / scale, rel=1e-6)


def test_memory_that_other_settings_decide_has_no_lines(record: StudyRecord) -> None:
    trials = [
        replace(trial, peak_memory=trial.peak_memory * (1 + 9 * (trial.number % 3 == 0)))
        for trial in record.trials
        if trial.peak_memory
    ]
    for odd in (trials, trials[:7]):
        view = build_view(replace(record, trials=tuple(odd)), "x")
        (part,) = slices(view)
        assert memory_fit(part) is None
        assert lines(balance_figure(view, part)) == []
        assert "Along a dotted line" not in render(view)


def test_bounds_of_memory_are_not_fitted(record: StudyRecord, make_trial: MakeTrial) -> None:
    bounds = [
        make_trial(
            number,
            "infeasible",
            params={"batch_size": 512, "negatives": 1024},
            peak_memory=1,
            at_least=True,
        )
        for number in range(17, 40)
    ]
    trials = tuple(replace(t, config={"loss": "cce-", "max_length": 50}) for t in bounds)
    view = build_view(replace(record, trials=(*record.trials, *trials)), "x")
    (part,) = slices(view)
    assert memory_fit(part) == pytest.approx(COEFFICIENTS, rel=1e-3)
    rest = balance_figure(view, part).data[-2]
    assert list(rest.customdata) == list(range(17, 40)), "they have no quality, but a place"


def test_the_best_of_each_band_of_memory_is_marked(record: StudyRecord) -> None:
    view = build_view(record, "x")
    (part,) = slices(view)
    winners = band_winners(view, part)
    expected = []
    for low, high in ((0, 64), (64, 128), (128, 256), (256, 1024)):
        band = [t for t in view.complete if t.memory and low * MIB < t.memory <= high * MIB]
        expected.append(max(band, key=lambda trial: trial.quality or 0).number)
    assert [trial.number for trial in winners] == expected
    assert expected[0] == 16, "the full softmax is one of them"
    figure = balance_figure(view, part)
    named = {text for text in figure.data[-1].text if text}
    assert named == {str(number) for number in expected}


def test_lengths_are_slices(record: StudyRecord) -> None:
    def titles(*lengths: int) -> list[str]:
        trials = [
            replace(trial, config={**trial.config, "max_length": lengths[i % len(lengths)]})
            for i, trial in enumerate(record.trials)
        ]
        parts = slices(build_view(replace(record, trials=tuple(trials)), "x"))
        assert sum(len(part.trials) for part in parts) == 16
        return [part.title for part in parts]

    assert titles(50) == [""]
    assert titles(100, 50) == ["max_length 50", "max_length 100"]
    assert titles(10, 20, 30, 40, 50, 60) == [
        "max_length 10 to 20",
        "max_length 30 to 40",
        "max_length 50 to 60",
    ]


def test_slices_share_one_scale_of_colours(record: StudyRecord) -> None:
    trials = [
        replace(trial, config={**trial.config, "max_length": 50 + 50 * (trial.number % 2)})
        for trial in record.trials
    ]
    view = build_view(replace(record, trials=tuple(trials)), "x")
    figures = [balance_figure(view, part) for part in slices(view)]
    assert [figure.data[-1].marker.showscale for figure in figures] == [True, False]


def test_page_has_a_figure_for_each_slice_or_none(record: StudyRecord, mixed: StudyRecord) -> None:
    page = render(build_view(record, "x"))
    assert TITLE in page
    assert 'id="figure-balance-0"' in page
    assert "linear in batch size, negatives and their product" in page
    assert "stands on the right" in page
    assert TITLE not in render(build_view(mixed, "x")), "negatives are not open"
    closed = {**record.identity, "open": ["negatives"]}
    assert TITLE not in render(build_view(replace(record, identity=closed), "x"))
    assert TITLE not in render(build_view(replace(record, trials=()), "x"))
    assert TITLE not in render(build_view(replace(record, trials=record.trials[-1:]), "x"))


def test_without_a_complete_trial_there_is_no_slice(record: StudyRecord) -> None:
    trials = tuple(replace(trial, outcome="pruned", quality=None) for trial in record.trials)
    assert slices(build_view(replace(record, trials=trials), "x")) == []
