"""Every figure of the report bears every kind of study."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from dashboards.page import render
from dashboards.queries import build_view
from study.records import StudyRecord, TrialRecord

MIB = 2**20
EVIL = "</script><script>alert(1)</script>"
BEGIN = datetime(2026, 11, 27)

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


@pytest.mark.parametrize(
    ("count", "outcome", "fields"),
    [
        (0, "complete", {}),
        (1, "complete", {}),
        (20, "complete", {}),  # ties
        (20, "infeasible", {"reason": "predicted"}),
        (20, "infeasible", {"reason": "out-of-memory", "at_least": True}),
        (20, "pruned", {}),
        (20, "diverged", {"curve": (math.nan, math.inf)}),
        (20, "failed", {"peak_memory": None, "seconds": None, "finished": None}),
        (20, "running", {"peak_memory": None, "seconds": None, "finished": None}),
        (20, "waiting", {"peak_memory": None, "started": None, "finished": None, "curve": ()}),
        (20, "complete", {"quality": math.nan}),
        (20, "complete", {"quality": -math.inf, "peak_memory": None}),
        (20, "complete", {"quality": 0.0, "seconds": 0.0, "peak_memory": 1}),
        (20, "complete", {"curve": (math.nan,)}),
        (20, "complete", {"params": {}}),
        (20, "complete", {"params": {"loss": EVIL, EVIL: EVIL}, "worker": EVIL, "reason": EVIL}),
    ],
)
@pytest.mark.parametrize(
    "objectives", [["quality", "memory"], ["quality", "memory", "time"], ["quality"]]
)
def test_report_of_an_odd_study_is_whole(
    count: int,
    outcome: str,
    fields: dict[str, Any],
    objectives: list[str],
    make_trial: MakeTrial,
    make_study: MakeStudy,
) -> None:
    trials = []
    for number in range(count):
        started = BEGIN + timedelta(seconds=number)
        usual = {
            "started": started,
            "finished": started + timedelta(seconds=3),
            "curve": (0.05, 0.1),
            "worker": f"host:{number % 2}",
            "params": {"loss": "cce" if number % 2 else "cce-", "batch_size": 8},
        }
        trials.append(make_trial(number, outcome, **(usual | fields)))
    space = {"loss": ["cce-", "cce"], "batch_size": [8, 16], EVIL: [EVIL, "x"]}
    record = make_study(*trials, open=list(space), space=space, objectives=objectives)
    page = render(build_view(record, "sqlite:////tmp/mlflow.db"))
    assert page.count("<script>") == page.count("</script>") == 2
    assert "</html>" in page
    assert "NaN" not in page.rpartition("const figures")[2].partition("const runs")[0]
