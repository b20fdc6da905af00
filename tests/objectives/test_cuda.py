"""What only a card can show: `pytest -m gpu` on a machine that has one."""

import gc
import logging
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from kernels import Uniform, full_cross_entropy, sampled_cross_entropy, target_ranks, top_k
from kernels.candidates import Draws, draw
from kernels.gpu import gpu_of
from objectives import card
from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.data.sequences import DeviceTargets
from objectives.memory import least_table_memory, measured_memory
from objectives.memory_gate import MemoryGate, PredictionError
from objectives.memory_model import DataShape, MemoryModel
from objectives.sequential import SequentialObjective
from objectives.trial import InfeasibleTrial, MachineFault

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = torch.device("cuda", 0)


class Context:
    seed = 0
    checkpoint = None
    leaving = False

    def __init__(self, memory_budget: int) -> None:
        self.memory_budget = memory_budget

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        assert metrics["memory/peak_bytes"] <= self.memory_budget


@pytest.fixture
def data() -> PreparedData:
    """500 users walk in a circle of 200 items, 20 steps each, from everywhere."""
    walks = [(7 * user + np.arange(22)) % 200 for user in range(500)]

    def sequences(first: int, last: int) -> Sequences:
        items = np.concatenate([walk[first:last] for walk in walks]).astype(np.int32)
        return Sequences(items, np.arange(501) * (last - first))

    def targets(position: int) -> Targets:
        items = np.array([walk[position] for walk in walks], dtype=np.int32)
        return Targets(sequences(0, position), items)

    return PreparedData(
        "circle", "0", 200, pa.array(range(200)), sequences(0, 20), targets(20), targets(21), ()
    )


def test_candidates_are_those_of_the_cpu() -> None:
    draws = Draws(1000, seed=12345678901234)
    on_cpu = draw(draws, 5, 40, 9_999_991, "cpu")
    assert torch.equal(draw(draws, 5, 40, 9_999_991, CUDA).cpu(), on_cpu)


@pytest.mark.parametrize("loss", ["sampled", "full"])
def test_losses_and_gradients_are_those_of_the_cpu(loss: str) -> None:
    torch.manual_seed(0)
    states_ND, table_VD = torch.randn(300, 50).double(), torch.randn(997, 50).double()
    targets_N = torch.randint(997, (300,))
    results = []
    for device in (torch.device("cpu"), CUDA):
        states, table = (tensor.to(device).requires_grad_() for tensor in (states_ND, table_VD))
        targets = targets_N.to(device)
        if loss == "sampled":
            value = sampled_cross_entropy(states, table, targets, Uniform(64, 3), group_size=128)
        else:
            value = full_cross_entropy(states, table, targets)
        results.append([value, *torch.autograd.grad(value, [states, table])])
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda.cpu(), on_cpu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 8), (300, 64), (300, 100), (300, 256), (130, 512)])
def test_ranks_and_lists_are_those_of_the_cpu(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    num_rows, width = shape
    # Whole numbers: every product is exact, and there are many ties.
    states_BD = torch.randint(-1, 2, (num_rows, width)).to(dtype)
    table_VD = torch.randint(-1, 2, (20_000, width)).to(dtype)
    targets_B = torch.randint(20_000, (num_rows,))
    seen = torch.arange(num_rows).repeat(40), torch.randint(20_000, (40 * num_rows,))
    on_card = tuple(tensor.to(CUDA) for tensor in (states_BD, table_VD, targets_B, *seen))
    states, table, targets, *pairs = on_card
    lists_Bk = top_k(states, table, 100, (pairs[0], pairs[1]))
    assert torch.equal(lists_Bk.cpu(), top_k(states_BD, table_VD, 100, seen))
    ranks_B = target_ranks(states, table, targets, (pairs[0], pairs[1]))
    assert torch.equal(ranks_B.cpu(), target_ranks(states_BD, table_VD, targets_B, seen))


def test_the_budget_is_the_end_of_memory_and_memory_comes_back() -> None:
    budget = 256 << 20
    for _ in range(3):
        with (
            pytest.raises(InfeasibleTrial) as caught,
            measured_memory(CUDA, budget) as memory,
        ):
            kept = [torch.empty(32 << 20, dtype=torch.uint8, device=CUDA) for _ in range(9)]
        assert caught.value.source == "out-of-memory"
        assert caught.value.peak_bytes >= budget
        assert memory.peak <= budget
    kept = []
    with measured_memory(CUDA, budget) as memory:
        kept.append(torch.empty(100 << 20, dtype=torch.uint8, device=CUDA))
        assert memory.peak >= 100 << 20
    assert memory.peak_reserved is not None
    assert memory.peak <= memory.peak_reserved <= budget
    # The budget ends with the block.
    kept.append(torch.empty(2 * budget, dtype=torch.uint8, device=CUDA))
    del kept


def test_no_more_is_taken_than_is_asked_for() -> None:
    # Segments that cannot grow are multiples of 2 MiB, and less than 1 MiB is not cut off.
    with measured_memory(CUDA, 1 << 30) as memory:
        before = torch.cuda.memory_allocated(CUDA)
        kept = torch.empty((13 << 20) + (1 << 19), dtype=torch.uint8, device=CUDA)
    assert memory.peak - before == kept.numel()


def test_a_trial_learns_within_its_budget(data: PreparedData) -> None:
    config = TrialConfig.from_flat(
        {"batch_size": 64, "negatives": 100, "learning_rate": 5e-3, "dropout": 0.0}
    )
    result = SequentialObjective(data, CUDA)(config, Context(4 << 30))
    assert result.quality > 0.9
    assert result.memory_source == "cuda"
    assert 0 < result.peak_memory <= (result.peak_reserved or 0)


@pytest.mark.parametrize(
    ("table_updates", "table_dtype", "learning_rate"),
    [
        ("dense", "float32", 5e-3),
        ("adam", "float32", 5e-3),
        ("adam", "bfloat16", 5e-3),
        ("adagrad", "float32", 1e-2),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"output_table": "separate"}, {"accumulation": 3}])
def test_a_table_learns_by_its_rows(
    settings: dict[str, Any],
    table_updates: str,
    table_dtype: str,
    learning_rate: float,
    data: PreparedData,
) -> None:
    config = TrialConfig.from_flat(
        {"batch_size": 64, "negatives": 100, "learning_rate": learning_rate, "dropout": 0.0}
        | {"table_updates": table_updates, "table_dtype": table_dtype, "clip_norm": 5.0}
        | settings
    )
    assert SequentialObjective(data, CUDA)(config, Context(4 << 30)).quality > 0.9


@pytest.mark.parametrize(
    ("table_updates", "share"), [("dense", 1.01), ("adam", 0.45), ("adagrad", 0.33)]
)
def test_a_large_table_takes_what_is_predicted_and_little_more(
    table_updates: str, share: float, data: PreparedData
) -> None:
    data = replace(data, num_items=2_000_000)
    peaks = []
    for updates in ("dense", table_updates):
        config = TrialConfig.from_flat(
            {"width": 64, "batch_size": 64, "table_updates": updates, "negatives": 100}
        )
        peaks.append(SequentialObjective(data, CUDA).probe(config, 16 << 30))
        assert peaks[-1] >= least_table_memory(config, data.num_items)
    assert peaks[1] <= share * peaks[0]


def test_a_trial_over_its_budget_is_infeasible_and_the_next_is_not(
    data: PreparedData, tmp_path: Path
) -> None:
    config = TrialConfig.from_flat({"batch_size": 500, "max_epochs": 1})
    # What the trials of other tests took must not make this one worth a probe.
    gpu = gpu_of(CUDA)
    assert gpu is not None
    model = MemoryModel(DataShape.of(data), gpu)
    gate = MemoryGate(model, PredictionError(tmp_path / "card.json"))
    objective = SequentialObjective(data, CUDA, gate)
    with pytest.raises(InfeasibleTrial) as caught:
        objective(config, Context(32 << 20))
    assert caught.value.source == "predicted"
    assert caught.value.peak_bytes >= 32 << 20
    assert objective(config, Context(4 << 30)).peak_memory > 32 << 20


def test_two_hundred_trials_leave_no_memory_behind(data: PreparedData) -> None:
    small = {"width": 16, "num_blocks": 1, "num_heads": 1, "max_length": 8, "negatives": 16}
    fits = TrialConfig.from_flat({"batch_size": 250, "max_epochs": 1} | small)
    does_not = TrialConfig.from_flat({"batch_size": 500, "max_epochs": 1})
    objective = SequentialObjective(data, CUDA)
    objective._gate = None  # it would refuse what runs out of memory here

    def allocated_after(number: int) -> int:
        if number % 4 == 3:
            with pytest.raises(InfeasibleTrial, match="out-of-memory"):
                objective(does_not, Context(32 << 20))
        else:
            objective(fits, Context(1 << 30))
        gc.collect()  # as the next trial does before it begins
        return torch.cuda.memory_allocated(CUDA)

    for number in range(4):  # libraries keep their workspaces
        first = allocated_after(number)
    for number in range(200):
        assert abs(allocated_after(number) - first) <= 1 << 20, f"after trial {number}"


def test_a_trial_waits_until_another_process_has_given_its_memory_back(
    holder: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(card, "_POLL_SECONDS", 0.1)
    budget = int(0.8 * torch.cuda.get_device_properties(CUDA).total_memory)
    assert holder.stdin is not None
    end_of_holder = threading.Timer(2.0, holder.stdin.close)
    end_of_holder.start()
    with caplog.at_level(logging.WARNING), measured_memory(CUDA, budget):
        available = card.available_memory(CUDA)
    end_of_holder.join()
    assert available >= budget
    said = [record.getMessage() for record in caplog.records if record.name == card.__name__]
    assert len(said) == 1
    assert "waiting for it" in said[0]


def test_a_process_that_stays_fails_the_machine_and_is_named(
    holder: subprocess.Popen[str], data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(card, "WAIT_SECONDS", 0.5)
    properties = torch.cuda.get_device_properties(CUDA)
    budget = int(0.8 * properties.total_memory)
    config = TrialConfig.from_flat({"batch_size": 64, "max_epochs": 1})
    objective = SequentialObjective(data, CUDA)
    with pytest.raises(MachineFault, match="left for this process") as caught:
        objective(config, Context(budget))
    assert objective(config, Context(1 << 30)).peak_memory > 0, "what fits beside it does not wait"
    if not card.other_processes(str(properties.uuid)):
        pytest.skip("NVML does not list the processes here")
    assert f"process {holder.pid} (python" in str(caught.value)


def test_it_does_not_matter_where_the_histories_are(data: PreparedData) -> None:
    config = TrialConfig.from_flat({"batch_size": 64, "dropout": 0.0}).resolved(data.num_items)
    objective = SequentialObjective(data, CUDA)
    trainer = objective._trainer(config, 0, 4 << 30)
    trainer.train_epoch()
    found = [
        objective._evaluate(trainer, "test", targets, lists=True)
        for targets in (DeviceTargets(data.test, CUDA, on_host=where) for where in (False, True))
    ]
    assert found[0] == pytest.approx(found[1])
