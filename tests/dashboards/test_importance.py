import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dashboards.importance import importance_figure, importances
from dashboards.page import render
from dashboards.queries import StudyView, build_view
from study.records import StudyRecord, TrialRecord

MIB = 2**20
STORE = "sqlite:////tmp/mlflow.db"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]
Searched = Callable[[int, int], StudyView]


@pytest.fixture
def searched(make_trial: MakeTrial, make_study: MakeStudy) -> Searched:
    """Random trials by their number and a seed: width decides memory, learning rate quality.

    Only CCE- has negatives.
    """
    losses, widths = ["cce-", "cce", "sce"], [32, 64, 128]

    def make(count: int, seed: int) -> StudyView:
        draw = random.Random(seed)
        trials = []
        for number in range(count):
            params: dict[str, Any] = {
                "loss": draw.choice(losses),
                "learning_rate": draw.uniform(0, 1),
                "batch_size": draw.randint(16, 24),
                "dropout": draw.uniform(0, 0.5),
                "width": draw.choice(widths),
            }
            if params["loss"] == "cce-":
                params["negatives"] = draw.randint(32, 4096)
            quality = 0.1 - 0.1 * (params["learning_rate"] - 0.4) ** 2 + 0.002 * draw.random()
            memory = (params["width"] + draw.randint(0, 9)) * MIB
            trials.append(make_trial(number, quality=quality, peak_memory=memory, params=params))
        opened = ["loss", "negatives", "learning_rate", "batch_size", "dropout", "width"]
        return build_view(make_study(*trials, open=opened), STORE)

    return make


def test_what_decides_comes_first_in_small_studies(searched: Searched) -> None:
    views = [searched(20, seed) for seed in range(20)]
    first = [next(iter(importances(view, "memory"))) for view in views]
    assert first.count("width") >= 18
    first = [next(iter(importances(view))) for view in views]
    assert first.count("learning_rate") >= 18


def test_in_large_studies_chance_has_no_share(searched: Searched) -> None:
    view = searched(1000, 0)
    memory = importances(view, "memory")
    assert memory["width"] > 0.95
    assert importances(view)["learning_rate"] > 0.95
    assert sum(memory.values()) == pytest.approx(1)
    assert list(memory.values()) == sorted(memory.values(), reverse=True)
    assert set(memory) == set(view.open)


def test_a_setting_of_some_trials_is_judged_among_these(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    """Among those with negatives, all of the best have many; loss says nothing."""
    trials = []
    for number in range(40):
        params: dict[str, Any] = {"loss": "cce-" if number % 2 else "cce"}
        if number % 2:
            params["negatives"] = 1 + number % 4 // 2
        quality = 0.1 + 0.1 * (params.get("negatives") == 2) + 0.1 * (number % 4 == 0)
        trials.append(make_trial(number, quality=quality, params=params))
    view = build_view(make_study(*trials, open=["loss", "negatives"]), STORE)
    assert importances(view) == {"negatives": 1, "loss": 0}


def test_bars_are_paired_by_setting(searched: Searched) -> None:
    view = searched(60, 0)
    figure = importance_figure(view)
    quality, memory = figure.data
    assert list(quality.y) == list(memory.y) == list(importances(view))
    assert list(memory.x) == [importances(view, "memory")[name] for name in memory.y]
    assert quality.text[0] == f"{quality.x[0]:.0%}"


@pytest.mark.parametrize(
    ("count", "fields", "opened"),
    [
        (0, {}, ["batch_size", "learning_rate"]),
        (9, {}, ["batch_size", "learning_rate"]),
        (12, {}, ["batch_size", "learning_rate"]),  # All are equally good.
        (12, {"quality": None, "outcome": "pruned"}, ["batch_size", "learning_rate"]),
        (12, {"quality": float("nan")}, ["batch_size", "learning_rate"]),
        (12, {"params": {}}, ["batch_size", "learning_rate"]),
        (12, {}, ["batch_size"]),
        (12, {}, []),
    ],
)
def test_where_nothing_can_be_said_nothing_is(
    count: int,
    fields: dict[str, Any],
    opened: list[str],
    make_trial: MakeTrial,
    make_study: MakeStudy,
) -> None:
    trials = [make_trial(number, **fields) for number in range(count)]
    view = build_view(make_study(*trials, open=opened), STORE)
    assert importances(view) == importances(view, "memory") == {}


def test_memory_may_be_explained_where_quality_is_not(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    evil = "<b onclick=x>"
    trials = [
        make_trial(i, peak_memory=(i + 1) * MIB, params={evil: i, "width": "64", "loss": ["x"]})
        for i in range(20)
    ]
    view = build_view(make_study(*trials, open=[evil, "width", "loss"]), STORE)
    assert importances(view) == {}
    assert importances(view, "memory") == {evil: 1, "width": 0, "loss": 0}
    (memory,) = importance_figure(view).data
    assert memory.name == "for peak memory"
    assert memory.y[0] == "&lt;b onclick=x&gt;"


def test_page_says_what_mattered_or_why_not(
    searched: Searched, mixed: StudyRecord, make_trial: MakeTrial
) -> None:
    page = render(searched(60, 0))
    share = importances(searched(60, 0))["learning_rate"]
    assert f"Importance of the open settings: for quality learning_rate {share:.0%}, " in page
    assert "from 10 trials on that trained to their end; there are 3." in render(
        build_view(mixed, STORE)
    )
    alone = replace(mixed, identity={**mixed.identity, "open": ["batch_size"]})
    assert "Fewer than two settings are open" in render(build_view(alone, STORE))
    alike = replace(mixed, trials=tuple(map(make_trial, range(12))))
    assert "No setting tells the best trials from the others." in render(build_view(alike, STORE))
