"""The gate on a CPU, with the predictions of a simulated card."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.gpu import Gpu
from objectives.config import TrialConfig
from objectives.data import PreparedData, Targets
from objectives.memory_gate import MemoryGate, PredictionError
from objectives.memory_model import DataShape, MemoryModel
from objectives.sequential import SequentialObjective
from objectives.trial import InfeasibleTrial

pytest.importorskip("triton")

MakeContext = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.fixture
def gate(cycle: PreparedData, tmp_path: Path) -> MemoryGate:
    model = MemoryModel(DataShape.of(cycle), Gpu(capability=9, num_sms=132))
    return MemoryGate(model, PredictionError(tmp_path / "card.json"))


def test_data_without_targets_is_taken_to_be_as_long_as_its_training(
    cycle: PreparedData, targets_of: Callable[[list[list[int]]], Targets]
) -> None:
    shape = DataShape.of(replace(cycle, validation=targets_of([]), test=targets_of([])))
    assert (shape.histories.longest, shape.target_bytes) == (6, 0)


def config(**settings: Any) -> TrialConfig:
    return TrialConfig.from_flat({"width": 16, "max_epochs": 1, "negatives": 8} | settings)


def test_an_error_is_learned_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "memory" / "card.json"
    error = PredictionError(path)
    assert error.margin(1 << 30) == round(0.05 * 2**30)
    for mib, extra in ((1000, 9), (2000, 10), (4000, 11), (8000, 10), (16000, 500)):
        assert error.corrected(5000) == 5000
        error.learn(mib << 20, (mib + extra) << 20)
    for known in (error, PredictionError(path)):
        assert known.corrected(5000) == 5000 + (10 << 20)
        assert known.margin(1 << 30) == pytest.approx(490 / 16010 * 2**30)


def test_an_error_of_small_trials_does_not_widen_the_margin_of_large_ones(tmp_path: Path) -> None:
    error = PredictionError(tmp_path / "card.json")
    for extra in (0, 0, 0, 0, 10):
        error.learn(20 << 20, (20 + extra) << 20)
    assert error.margin(20 << 20) == 10 << 20
    assert error.margin(1280 << 20) == 100 << 20


def test_a_mistake_is_not_made_twice(gate: MemoryGate) -> None:
    peak = gate.predict(config(), 1 << 40)
    budget = peak + (8 << 20)
    assert gate.check(config(), budget) is False
    # It ran out of memory there all the same: from now on a probe decides.
    gate.learn(config(), budget, budget)
    assert gate.check(config(), budget) is True


def test_what_is_known_is_bounded(tmp_path: Path) -> None:
    error = PredictionError(tmp_path / "card.json")
    for measured in range(205):
        error.learn(1 << 30, (1 << 30) + (1000 if measured < 5 else 3000))
    assert error.corrected(0) == 3000
    assert error.margin(1 << 30) == round(0.01 * 2**30)


def test_the_gate_refuses_lets_through_and_asks_for_a_probe(gate: MemoryGate) -> None:
    peak = gate.predict(config(), 1 << 40)
    assert gate.check(config(), 2 * peak) is False
    assert gate.check(config(), peak + (2 << 20)) is True
    assert gate.check(config(), peak - (2 << 20)) is True
    with pytest.raises(InfeasibleTrial) as caught:
        gate.check(config(), peak - (8 << 20))
    assert (caught.value.peak_bytes, caught.value.source) == (peak, "predicted")


def test_a_trial_over_the_budget_is_refused_before_it_runs(
    gate: MemoryGate, cycle: PreparedData, make_context: MakeContext
) -> None:
    objective = SequentialObjective(cycle, CPU, gate)
    budget = gate.predict(config(), 1 << 40) // 2
    with pytest.raises(InfeasibleTrial) as caught:
        objective(config(), make_context(budget=budget))
    assert caught.value.source == "predicted"
    assert PredictionError(gate.error._path).corrected(1) == 1


def test_a_trial_near_the_budget_is_probed_and_both_figures_are_kept(
    gate: MemoryGate, cycle: PreparedData, make_context: MakeContext
) -> None:
    # The trial runs on the CPU and takes less than a card would: the probe lets it through.
    objective = SequentialObjective(cycle, CPU, gate)
    budget = gate.predict(config(), 1 << 40)
    probed = []
    probe = objective.probe

    def noted(*args: Any, **kwargs: Any) -> int:
        probed.append(probe(*args, **kwargs))
        return probed[-1]

    objective.probe = noted  # type: ignore[method-assign]
    result = objective(config(), make_context(budget=budget))
    assert len(probed) == 1
    assert probed[0] < budget
    for _ in range(4):
        gate.learn(config(), budget, result.peak_memory)
    assert gate.predict(config(), budget) == result.peak_memory


def test_a_probe_over_the_budget_says_what_it_measured(
    gate: MemoryGate, cycle: PreparedData, make_context: MakeContext
) -> None:
    objective = SequentialObjective(cycle, CPU, gate)
    budget = gate.predict(config(), 1 << 40)
    # As if a probe had found more than was predicted.
    objective.probe = lambda *args, **kwargs: budget + 1  # type: ignore[method-assign]
    with pytest.raises(InfeasibleTrial) as caught:
        objective(config(), make_context(budget=budget))
    assert (caught.value.peak_bytes, caught.value.source) == (budget + 1, "probed")


def test_a_trial_keeps_the_parts_of_its_prediction(
    gate: MemoryGate, cycle: PreparedData, make_context: MakeContext
) -> None:
    result = SequentialObjective(cycle, CPU, gate)(config(), make_context())
    assert result.memory_parts["parameters"] > 0
    # What the gate has learned from others is no part.
    assert sum(result.memory_parts.values()) == gate.model.predict(config(), 1 << 30).peak
    assert SequentialObjective(cycle, CPU)(config(), make_context()).memory_parts == {}
