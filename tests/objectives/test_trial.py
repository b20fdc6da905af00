"""The contract of an objective, for each that there is."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
import pytest
import torch

from objectives.config import TrialConfig
from objectives.data import PreparedData
from objectives.recorded import RecordedObjective
from objectives.sequential import SequentialObjective
from objectives.trial import QUALITY, InfeasibleTrial, Objective, TrialContext

MakeContext = Callable[..., TrialContext]
CONFIG = TrialConfig.from_flat(
    {"batch_size": 16, "negatives": 8, "max_length": 5, "width": 8, "num_heads": 1}
    | {"max_epochs": 2}
)
TABLE = """\
dataset,batch_size,negatives,sequence_length,ndcg_at_10,peak_memory_gib,epoch_seconds,epochs
cycle,16,8,5,0.25,0.5,2.5,2
"""


@pytest.fixture(params=["sequential", "recorded"])
def objective(request: pytest.FixtureRequest, cycle: PreparedData, tmp_path: Path) -> Objective:
    if request.param == "sequential":
        return SequentialObjective(cycle, torch.device("cpu"))
    table = tmp_path / "runs.csv"
    table.write_text(TABLE)
    return RecordedObjective(table, "cycle")


def test_a_trial_within_its_budget_has_a_result(
    objective: Objective, make_context: MakeContext
) -> None:
    budget = 1 << 30
    reports: list[tuple[int, dict[str, float]]] = []
    result = objective(
        CONFIG, make_context(lambda e, m: reports.append((e, dict(m))), budget=budget)
    )
    assert 0 <= result.quality <= 1
    assert 0 < result.peak_memory <= budget
    assert result.seconds > 0
    assert result.metrics[QUALITY] == result.quality
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert 1 <= result.best_epoch <= result.epochs == 2

    assert reports
    epochs = [epoch for epoch, _ in reports]
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == result.epochs
    for _, metrics in reports:
        assert 0 <= metrics[QUALITY] <= result.quality
        assert 0 < metrics["memory/peak_bytes"] <= result.peak_memory


def test_a_trial_beyond_its_budget_is_infeasible(
    objective: Objective, make_context: MakeContext
) -> None:
    with pytest.raises(InfeasibleTrial) as caught:
        objective(CONFIG, make_context(budget=1))
    assert caught.value.peak_bytes > 1
    assert caught.value.source in ("predicted", "probed", "out-of-memory")
    assert str(caught.value.peak_bytes) in str(caught.value)


def test_a_report_may_prune(objective: Objective, make_context: MakeContext) -> None:
    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        raise optuna.TrialPruned(f"epoch {epoch}")

    with pytest.raises(optuna.TrialPruned, match="epoch"):
        objective(CONFIG, make_context(report))


def test_the_same_trial_has_the_same_result(
    objective: Objective, make_context: MakeContext
) -> None:
    first, second = (objective(CONFIG, make_context(seed=7)) for _ in range(2))
    assert (first.quality, first.metrics, first.epochs) == (
        second.quality,
        second.metrics,
        second.epochs,
    )
