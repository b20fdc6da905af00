import errno
import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from kernels import RowSink
from objectives import checkpoint, sequential, training
from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.data.sequences import DeviceSequences, DeviceTargets
from objectives.errors import UserError
from objectives.evaluation import CUTOFFS
from objectives.loss_config import LossConfig
from objectives.losses import Loss, build_loss
from objectives.memory import _AllocationTracker, least_table_memory, measured_memory
from objectives.sequential import SequentialObjective
from objectives.training import Trainer
from objectives.trial import QUALITY, DivergedTrial, InfeasibleTrial, TrialContext

MakeContext = Callable[..., TrialContext]
CPU = torch.device("cpu")


def config(**settings: object) -> TrialConfig:
    small = {"width": 16, "num_blocks": 1, "num_heads": 2, "max_length": 5, "dropout": 0.0}
    fast = {"batch_size": 16, "learning_rate": 0.02, "negatives": 8, "group_size": 4}
    return TrialConfig.from_flat(small | fast | {"max_epochs": 12} | settings)


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_bert4rec_learns_a_pattern(
    loss: str, cycle: PreparedData, make_context: MakeContext
) -> None:
    settings = config(loss=loss, architecture="bert4rec", max_epochs=30, patience=30)
    result = SequentialObjective(cycle, CPU)(settings, make_context())
    assert result.quality > 0.95
    assert result.metrics["test/ndcg_at_10"] > 0.95
    assert result.metrics["test/hit_rate_at_1"] > 0.9


LOSSES = [
    *({"loss": loss} for loss in ("cce", "cce-", "bce", "bce+", "gbce", "sce", "rece")),
    *({"candidates": by} for by in ("popularity", "log-uniform", "mixed", "in-batch")),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: next(iter(loss.values())))
def test_every_loss_learns_a_pattern(
    loss: dict[str, str], cycle: PreparedData, make_context: MakeContext
) -> None:
    settings = config(**loss, max_epochs=12, patience=12)
    result = SequentialObjective(cycle, CPU)(settings, make_context())
    assert result.quality > 0.95
    assert result.metrics["test/ndcg_at_10"] > 0.95
    assert result.metrics["test/hit_rate_at_1"] > 0.9


def test_candidates_go_by_the_items_of_the_training_data(
    cycle: PreparedData,
    sequences_of: Callable[[list[list[int]]], Sequences],
    make_context: MakeContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = replace(cycle, train=sequences_of([[0, 1, 0], [1, 0], [2, 0], [5, 1]]))
    given: list[Tensor | None] = []

    def record(loss: LossConfig, seed: int, sink: RowSink | None, counts_V: Tensor | None) -> Loss:
        given.append(counts_V)
        return build_loss(loss, seed, sink, counts_V)

    monkeypatch.setattr(training, "build_loss", record)
    objective = SequentialObjective(data, CPU)
    for candidates in ("popularity", "in-batch", "uniform"):
        objective(config(candidates=candidates, max_epochs=1), make_context())
    popularity_V, in_batch_V, uniform_V = given
    assert popularity_V is not None
    assert in_batch_V is not None
    assert uniform_V is None
    expected = [4, 3, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert popularity_V.tolist() == in_batch_V.tolist() == expected


def test_a_result_is_whole(cycle: PreparedData, make_context: MakeContext) -> None:
    result = SequentialObjective(cycle, CPU)(config(max_epochs=2), make_context())
    assert result.quality == result.metrics[QUALITY]
    assert {name.split("/")[0] for name in result.metrics} == {"val", "test"}
    assert len(result.metrics) == 2 * 5 * 5
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert result.memory_source == "tracked"
    assert result.peak_reserved is None
    assert result.seconds > 0
    assert result.epochs == 2
    assert result.best_epoch in (1, 2)


def test_the_same_seed_gives_the_same_result(
    cycle: PreparedData, make_context: MakeContext
) -> None:
    def run(seed: int) -> tuple[Any, ...]:
        losses: list[float] = []
        result = SequentialObjective(cycle, CPU)(
            config(max_epochs=3, dropout=0.2),
            make_context(lambda epoch, metrics: losses.append(metrics["train/loss"]), seed=seed),
        )
        return losses, result.metrics, result.peak_memory

    run(1)  # fills the caches of constants
    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]


def test_every_epoch_is_reported_once(cycle: PreparedData, make_context: MakeContext) -> None:
    reports: list[tuple[int, dict[str, float]]] = []
    result = SequentialObjective(cycle, CPU)(
        config(max_epochs=4), make_context(lambda epoch, m: reports.append((epoch, dict(m))))
    )
    assert [epoch for epoch, _ in reports] == [1, 2, 3, 4]
    for _, metrics in reports:
        assert {QUALITY, "train/loss", "train/epoch_seconds", "memory/peak_bytes"} <= set(metrics)
        assert not any(name.startswith("test/") for name in metrics)
        # Lists are made once, at the end.
        assert {name for name in metrics if name.startswith("val/")} == {
            f"val/{name}_at_{k}" for name in ("ndcg", "hit_rate", "mrr") for k in CUTOFFS
        }
    peaks = [metrics["memory/peak_bytes"] for _, metrics in reports]
    assert peaks == sorted(peaks)
    assert result.peak_memory >= peaks[-1]
    assert result.quality == max(metrics[QUALITY] for _, metrics in reports)


class Script:
    """Stands in for the evaluation: validation qualities by epoch; keeps the table at each.

    At the end, with lists, come the validation of the best weights and the test.
    """

    def __init__(self, qualities: list[float]) -> None:
        self.qualities = iter(qualities)
        self.tables: list[Tensor] = []
        self.final: list[Tensor] = []

    def __call__(
        self, encode: object, table_VD: Tensor, targets: DeviceTargets, *, lists: bool, **_: int
    ) -> dict[str, float]:
        if lists:
            self.final.append(table_VD.clone())
            return {"ndcg_at_10": 0.5, "coverage_at_10": float(len(self.final))}
        self.tables.append(table_VD.clone())
        return {"ndcg_at_10": next(self.qualities)}


@pytest.mark.parametrize(
    ("qualities", "patience", "epochs", "best"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.9], 2, 4, 2),
        ([0.1, 0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 6, 4),
        ([0.5, 0.5, 0.5], 1, 2, 1),
        ([0.0, 0.0, 0.0], 2, 3, 1),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 5, 5),
    ],
)
def test_training_stops_early_and_returns_to_the_best_weights(
    qualities: list[float],
    patience: int,
    epochs: int,
    best: int,
    cycle: PreparedData,
    make_context: MakeContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(qualities)
    monkeypatch.setattr(sequential, "evaluate", script)
    result = SequentialObjective(cycle, CPU)(
        config(max_epochs=5 if epochs == 5 else 99, patience=patience), make_context()
    )
    assert (result.epochs, result.best_epoch) == (epochs, best)
    assert result.quality == result.metrics[QUALITY] == qualities[best - 1]
    assert result.metrics["test/ndcg_at_10"] == 0.5
    assert result.metrics["val/coverage_at_10"] == 1
    assert result.metrics["test/coverage_at_10"] == 2
    validated, tested = script.final
    assert torch.equal(validated, tested)
    assert torch.equal(tested, script.tables[best - 1])
    assert not any(
        torch.equal(tested, table)
        for epoch, table in enumerate(script.tables, start=1)
        if epoch != best
    )


@pytest.fixture
def every_epoch_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)


class Killed(Exception):
    """Stands in for a process that is gone."""


@pytest.mark.usefixtures("every_epoch_is_saved")
@pytest.mark.parametrize(
    ("table_updates", "table_dtype"),
    [("dense", "float32"), ("adam", "bfloat16"), ("adagrad", "float32")],
)
def test_a_trial_goes_on_from_its_checkpoint_as_if_nothing_had_happened(
    table_updates: str,
    table_dtype: str,
    cycle: PreparedData,
    make_context: MakeContext,
    tmp_path: Path,
) -> None:
    settings = config(
        max_epochs=5,
        patience=5,
        dropout=0.3,
        schedule="cosine",
        warmup=0.2,
        accumulation=2,
        table_updates=table_updates,
        table_dtype=table_dtype,
        clip_norm=1.0,
    )

    def run(path: Path | None, last: int = 99) -> tuple[Any, list[tuple[int, float]]]:
        seen: list[tuple[int, float]] = []

        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            seen.append((epoch, metrics["train/loss"]))
            if epoch == last:
                raise Killed

        try:
            result = SequentialObjective(cycle, CPU)(
                settings, make_context(report, checkpoint=path)
            )
        except Killed:
            return None, seen
        return (result.metrics, result.epochs, result.best_epoch), seen

    whole, whole_reports = run(None)
    path = tmp_path / "trials" / "0.pt"
    assert run(path, last=2) == (None, whole_reports[:2])
    assert run(path, last=4) == (None, whole_reports[:4])
    torch.rand(7)  # what others do with torch's generator between the tries
    resumed, resumed_reports = run(path)
    assert resumed_reports == whole_reports
    assert resumed == whole
    assert [file.name for file in path.parent.iterdir()] == ["0.pt"]


@pytest.mark.usefixtures("every_epoch_is_saved")
def test_what_is_trained_after_a_checkpoint_is_not_trained_twice(
    cycle: PreparedData,
    make_context: MakeContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epochs: list[int] = []
    original = Trainer.train_epoch

    def count(trainer: Trainer) -> float:
        epochs.append(trainer.step)
        return original(trainer)

    monkeypatch.setattr(Trainer, "train_epoch", count)
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + 3600 * len(epochs))
    path = tmp_path / "0.pt"
    first = SequentialObjective(cycle, CPU)(config(max_epochs=3), make_context(checkpoint=path))
    again = SequentialObjective(cycle, CPU)(config(max_epochs=3), make_context(checkpoint=path))
    assert epochs == [0, 3, 6]
    assert again.metrics == first.metrics
    assert again.peak_memory == first.peak_memory
    assert 3 * 3600 < again.seconds < 4 * 3600, "an hour for each epoch that was trained before"


@pytest.mark.usefixtures("every_epoch_is_saved")
def test_a_checkpoint_of_another_training_is_refused(
    cycle: PreparedData,
    make_context: MakeContext,
    tmp_path: Path,
) -> None:
    path = tmp_path / "0.pt"
    objective = SequentialObjective(cycle, CPU)
    objective(config(max_epochs=1), make_context(checkpoint=path))
    with pytest.raises(UserError, match=r"0\.pt.*another training \(seed, width differ\)"):
        objective(config(max_epochs=1, width=8), make_context(checkpoint=path, seed=1))


def test_writing_checkpoints_takes_a_twentieth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("objectives.checkpoint.time.monotonic", lambda: now)
    pace = checkpoint.Pace()
    written = []
    for epoch in range(1, 9):
        now += 10.0
        if pace.allows():
            with pace.writing():
                now += 1.0
            written.append(epoch)
    assert written == [1, 3, 5, 7], "one second in twenty or more"


def test_a_training_that_is_to_leave_writes_its_state(
    cycle: PreparedData, make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SHARE", -1.0)
    context = make_context(checkpoint=tmp_path / "0")
    SequentialObjective(cycle, CPU)(config(max_epochs=1), context)
    assert list(tmp_path.iterdir()) == []
    context = make_context(checkpoint=tmp_path / "0", leaving=True)
    SequentialObjective(cycle, CPU)(config(max_epochs=1), context)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_a_full_disk_is_the_machines_fault(tmp_path: Path) -> None:
    path = tmp_path / "trial-0.pt"
    part = tmp_path / f"trial-0.pt.{os.getpid()}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(path, {}, {"weights": torch.zeros(1 << 20)})
    assert caught.value.errno == errno.ENOSPC
    assert not path.exists()


def test_a_loss_that_is_not_finite_is_a_diverged_trial(
    cycle: PreparedData, make_context: MakeContext
) -> None:
    with pytest.raises(DivergedTrial) as caught:
        SequentialObjective(cycle, CPU)(config(learning_rate=1e30), make_context())
    assert caught.value.epoch == 1
    assert caught.value.peak_bytes > 0


def test_a_trial_that_diverges_in_its_last_step_has_no_good_quality(
    cycle: PreparedData, make_context: MakeContext
) -> None:
    """One batch an epoch: the loss of the first epoch is still finite, its weights are not."""
    with pytest.raises(DivergedTrial):
        SequentialObjective(cycle, CPU)(
            config(learning_rate=1e30, batch_size=1000, max_epochs=3), make_context()
        )


@pytest.fixture
def many_users() -> PreparedData:
    """Users with histories of very different lengths."""
    draw = np.random.default_rng(0)
    num_users, num_items = 100, 2000
    lengths = draw.integers(2, 40, num_users)
    items = draw.integers(0, num_items, lengths.sum()).astype(np.int32)
    histories = Sequences(items, np.concatenate([[0], np.cumsum(lengths)]))
    targets = Targets(histories, draw.integers(0, num_items, num_users).astype(np.int32))
    item_ids = pa.array(range(num_items))
    return PreparedData("many", "0" * 16, num_items, item_ids, histories, targets, targets, ())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_blocks": 3, "max_length": 7},
        {"architecture": "bert4rec", "batch_size": 8},
        {"table_updates": "adam", "accumulation": 4},
        {"loss": "cce", "feed_forward": "swiglu", "batch_size": 100},
    ],
)
def test_the_peak_is_that_of_the_training(
    settings: dict[str, Any],
    many_users: PreparedData,
    make_context: MakeContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = config(
        **{"width": 32, "max_length": 50, "batch_size": 64, "max_epochs": 1} | settings
    )
    objective = SequentialObjective(many_users, CPU)
    objective(chosen, make_context())  # fills the caches of constants
    peak = objective(chosen, make_context()).peak_memory
    monkeypatch.setattr(sequential, "evaluate", lambda *_, **__: {"ndcg_at_10": 0.5})
    assert objective(chosen, make_context()).peak_memory == peak


def test_beyond_the_budget_a_trial_is_infeasible(
    cycle: PreparedData, make_context: MakeContext
) -> None:
    objective = SequentialObjective(cycle, CPU)
    needed = objective(config(max_epochs=1), make_context()).peak_memory
    assert objective(config(max_epochs=1), make_context(budget=needed)).peak_memory == needed
    with pytest.raises(InfeasibleTrial) as caught:
        objective(config(max_epochs=1), make_context(budget=needed - 1))
    assert caught.value.peak_bytes >= needed - 1
    assert caught.value.source == "out-of-memory"


@pytest.mark.parametrize("table_updates", ["dense", "adam", "adagrad"])
@pytest.mark.parametrize("output_table", ["tied", "separate"])
def test_the_tables_take_no_less_than_predicted(
    output_table: str, table_updates: str, cycle: PreparedData
) -> None:
    data = replace(cycle, num_items=20_000)
    dtypes = ("float32",) if table_updates == "dense" else ("float32", "bfloat16")
    for table_dtype in dtypes:
        settings = config(
            table_updates=table_updates, output_table=output_table, table_dtype=table_dtype
        )
        peak = SequentialObjective(data, CPU).probe(settings, 1 << 40)
        # By rows on a CPU, nothing but the bits of the touched items grows with the catalogue.
        assert 1 < peak / least_table_memory(settings, data.num_items) < 1.7


def test_tables_beyond_the_budget_are_not_allocated(
    cycle: PreparedData, make_context: MakeContext
) -> None:
    objective = SequentialObjective(replace(cycle, num_items=10**12), CPU)
    # A table in bfloat16; a row's second moment and last step.
    needed = 10**12 * (16 * 2 + 8)
    settings = config(table_dtype="bfloat16")
    for run in (
        lambda: objective(settings, make_context(budget=needed - 1)),
        lambda: objective.probe(settings, needed - 1),
    ):
        with measured_memory(CPU, 1 << 40) as memory, pytest.raises(InfeasibleTrial) as caught:
            run()
        assert memory.peak == 0
        assert (caught.value.peak_bytes, caught.value.source) == (needed, "predicted")
        assert str(needed) in str(caught.value)


def test_trials_leave_no_memory_behind(cycle: PreparedData, make_context: MakeContext) -> None:
    objective = SequentialObjective(cycle, CPU)
    settings = config(max_epochs=1)
    too_little = int(0.9 * objective(settings, make_context()).peak_memory)
    allocated = []
    with _AllocationTracker(1 << 40) as tracker:
        for _ in range(4):
            objective(settings, make_context())
            with pytest.raises(InfeasibleTrial, match="out-of-memory"):
                objective(settings, make_context(budget=too_little))
            gc.collect()  # as the next trial does before it begins
            allocated.append(tracker.current)
    assert tracker.peak > 0
    assert set(allocated) == {allocated[0]}


def test_the_updates_that_auto_stands_for_are_those_of_a_checkpoint(
    cycle: PreparedData,
    make_context: MakeContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)
    path = tmp_path / "0.pt"
    objective = SequentialObjective(cycle, CPU)
    objective(config(max_epochs=1), make_context(checkpoint=path))
    objective(config(max_epochs=1, table_updates="dense"), make_context(checkpoint=path))
    for other in ("adam", "adagrad"):
        with pytest.raises(UserError, match=r"another training \(table_updates differ\)"):
            objective(config(max_epochs=1, table_updates=other), make_context(checkpoint=path))


def test_a_probe_takes_one_step_and_holds_to_the_budget(cycle: PreparedData) -> None:
    objective = SequentialObjective(cycle, CPU)
    objective.probe(config(), 1 << 30)  # fills the caches of constants
    peak = objective.probe(config(), 1 << 30)
    assert 0 < peak < objective.probe(config(batch_size=48), 1 << 30)
    assert objective.probe(config(), peak) == peak
    with pytest.raises(InfeasibleTrial):
        objective.probe(config(), peak - 1)


def test_data_without_targets_is_probed_by_its_training(
    cycle: PreparedData, targets_of: Callable[[list[list[int]]], Targets]
) -> None:
    alone = replace(cycle, validation=targets_of([]), test=targets_of([]))
    objective = SequentialObjective(alone, CPU)
    assert objective.probe(config(), 1 << 30) > 0


def test_a_pruner_may_stop_the_trial(cycle: PreparedData, make_context: MakeContext) -> None:
    epochs: list[int] = []

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        epochs.append(epoch)
        if epoch == 2:
            raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        SequentialObjective(cycle, CPU)(config(), make_context(report))
    assert epochs == [1, 2]


def test_sums_are_in_a_fixed_order_where_that_is_asked_for(
    cycle: PreparedData, make_context: MakeContext
) -> None:
    found = []

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        found.append(torch.are_deterministic_algorithms_enabled())

    for arithmetic in ("deterministic", "fast"):
        SequentialObjective(cycle, CPU)(
            config(arithmetic=arithmetic, max_epochs=1), make_context(report)
        )
    assert found == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_data_that_is_too_large_for_the_budget_stays_on_the_host(
    cycle: PreparedData, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def spy(kind: type[Any]) -> Callable[..., Any]:
        def make(*arguments: Any, on_host: bool) -> Any:
            seen.append(on_host)
            return kind(*arguments, on_host=on_host)

        return make

    monkeypatch.setattr(training, "DeviceSequences", spy(DeviceSequences))
    monkeypatch.setattr(sequential, "DeviceTargets", spy(DeviceTargets))
    items = np.zeros(300_000, np.int32)
    large = replace(cycle, train=Sequences(items, np.arange(0, 300_001, 6)))
    for data in (cycle, large):
        objective = SequentialObjective(data, CPU)
        objective.probe(config(batch_size=8), 16 << 20)
        objective._targets(Targets(data.train, data.train.items), 16 << 20)
    # Training sequences and validation targets of the probe, then the targets by themselves.
    assert seen == [False, False, False, True, False, True]
