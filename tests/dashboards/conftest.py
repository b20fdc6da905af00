"""Studies made by hand."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from objectives.config import TrialConfig
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.fixture
def make_trial() -> MakeTrial:
    """A trial by number and outcome, complete unless said otherwise; other fields by name."""

    def make(number: int, outcome: str = "complete", **fields: Any) -> TrialRecord:
        known: dict[str, Any] = {
            "number": number,
            "outcome": outcome,
            "params": {"batch_size": 8 * (number + 1), "learning_rate": 1e-3},
            "quality": 0.1 if outcome == "complete" else None,
            "peak_memory": 100 * MIB,
            "seconds": 12.0,
            "epochs": 3,
        }
        return TrialRecord(**(known | fields))

    return make


@pytest.fixture
def make_study() -> MakeStudy:
    """A study of these trials with a budget of 1 GiB; parts of its identity by name.

    Without its objectives, as those of earlier versions are.
    """

    def make(*trials: TrialRecord, name: str = "toy", **identity: Any) -> StudyRecord:
        known: dict[str, Any] = {
            "data": {"name": "ml-100k", "digest": "0", "split": "leave-one-out"},
            "space": {
                "batch_size": [8, 4096],
                "learning_rate": [1e-4, 1e-2],
                "loss": ["cce-", "cce"],
            },
            "open": ["batch_size", "learning_rate"],
            "memory_budget": GIB,
            "memory_source": "cuda",
            "seed": 0,
            "request": {},
        }
        return StudyRecord(name, known | identity, trials, {"ndcg_at_10": 0.04}, None)

    return make


@pytest.fixture
def mixed(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Two trials on the front, one dominated, and one or two of every other outcome."""
    tested = {"test/ndcg_at_10": 0.1, "test/hit_rate_at_10": 0.2}
    return make_study(
        make_trial(0, quality=0.10, peak_memory=256 * MIB, mlflow_run="a" * 32),
        make_trial(1, quality=0.12, peak_memory=512 * MIB, metrics=tested, mlflow_run="b" * 32),
        make_trial(2, quality=0.11, peak_memory=768 * MIB),
        make_trial(3, "infeasible", reason="predicted", peak_memory=1280 * MIB),
        make_trial(4, "infeasible", reason="out-of-memory", peak_memory=GIB, at_least=True),
        make_trial(5, "diverged", reason="the training loss was not finite in epoch 2"),
        make_trial(6, "pruned", reason="dominated after epoch 3"),
        make_trial(7, "failed", reason="RuntimeError: the card fell out", peak_memory=None),
        make_trial(8, "running", peak_memory=None, seconds=None),
    )


@pytest.fixture
def timed(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Two trials on the front, and one that is there for its time alone; three objectives."""
    return make_study(
        make_trial(0, quality=0.10, peak_memory=256 * MIB, seconds=40.0),
        make_trial(1, quality=0.12, peak_memory=512 * MIB, seconds=20.0),
        make_trial(2, quality=0.08, peak_memory=768 * MIB, seconds=5.0),
        make_trial(3, quality=0.07, peak_memory=768 * MIB, seconds=50.0),
        make_trial(4, "infeasible", reason="out-of-memory", peak_memory=GIB, at_least=True),
        objectives=["quality", "memory", "time"],
    )


@pytest.fixture
def trained(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Two trials on the front with all that a worker keeps of them, and one without."""
    kept = {"config": TrialConfig().flat(), "tags": {"seed": "7"}}
    return make_study(
        make_trial(0, quality=0.10, peak_memory=256 * MIB, **kept),
        make_trial(1, quality=0.12, peak_memory=512 * MIB, **kept),
        make_trial(2, quality=0.13, peak_memory=768 * MIB),
        request={"data": "ml-100k"},
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()
