import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels import RowGradient
from kernels.candidates import Draws, draw
from models.packing import Packing
from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.data.batches import TrainingBatch
from objectives.data.sequences import DeviceSequences, DeviceTargets
from objectives.losses import build_loss
from objectives.memory import measured_memory
from objectives.training import NonFiniteLoss, Trainer

CPU = torch.device("cpu")
Lists = list[list[int]]


def make_trainer(data: PreparedData, seed: int = 0, **settings: object) -> Trainer:
    small = {"width": 8, "num_blocks": 1, "num_heads": 1, "max_length": 5, "dropout": 0.0}
    fast = {"batch_size": 16, "learning_rate": 0.01, "negatives": 8, "group_size": 4}
    config = TrialConfig.from_flat(small | fast | settings)
    torch.manual_seed(seed)
    model = config.build_model(data.num_items)
    counts_V = torch.from_numpy(np.bincount(data.train.items, minlength=data.num_items))
    return Trainer(
        model,
        build_loss(config.loss, seed, model.outputs.sink, counts_V),
        DeviceSequences(data.train, CPU),
        config.training,
        seed,
    )


def largest_batch(trainer: Trainer) -> TrainingBatch:
    (plan,) = trainer.batches.largest()
    return trainer.batches.assemble(torch.from_numpy(plan.numbers), plan.shape)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return copy.deepcopy(trainer.model.state_dict())


def test_the_loss_of_a_pattern_falls(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle)
    losses = [trainer.train_epoch() for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    assert trainer.step == 20 * 3


def test_a_loss_sees_every_next_item_of_an_epoch_once(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle)
    inner, targets, steps = trainer.loss, [], []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        assert states_ND.shape == (len(targets_N), 8)
        targets.extend(targets_N.tolist())
        steps.append(int(step))
        return inner(states_ND, table_VD, targets_N, step)

    trainer.loss = record
    trainer.train_epoch()
    expected = cycle.train.items.reshape(-1, 6)[:, 1:].flatten().tolist()
    assert sorted(targets) == sorted(expected)
    assert steps == [0, 1, 2]


def test_states_and_targets_are_shuffled_together(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle)
    batch = largest_batch(trainer)
    expected = {
        (tuple(state.tolist()), target)
        for state, target in zip(
            trainer.model(batch.ids_T, batch.packing), batch.targets_N.tolist(), strict=True
        )
    }
    given: list[tuple[Tensor, Tensor]] = []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        given.append((states_ND.detach(), targets_N))
        return states_ND.sum()

    trainer.loss = record
    trainer.train_step(trainer.batches.largest())
    ((states_ND, targets_N),) = given
    found = zip(states_ND.tolist(), targets_N.tolist(), strict=True)
    assert {(tuple(state), target) for state, target in found} == expected
    assert not torch.equal(targets_N, batch.targets_N)


def test_the_loss_of_an_epoch_is_the_mean_of_its_rows(
    cycle: PreparedData, sequences_of: Callable[[Lists], Sequences]
) -> None:
    data = replace(cycle, train=sequences_of([[1, 2], [1, 2, 3, 4, 5], [2, 1, 2]]))
    trainer = make_trainer(data, batch_size=1)
    rows: list[int] = []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        rows.append(len(targets_N))
        return states_ND.sum() * 0 + 10.0 * len(targets_N)

    trainer.loss = record
    assert trainer.train_epoch() == pytest.approx(10)
    assert sorted(rows) == [1, 2, 4]


def test_a_seed_makes_a_run(cycle: PreparedData) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        trainer = make_trainer(cycle, seed, dropout=0.3)
        trainer.train_epoch()
        trainer.train_epoch()
        return weights(trainer)

    first, second, third = run(3), run(3), run(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["items.weight"], third["items.weight"])


def test_a_loss_that_is_not_finite_stops_the_epoch(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle, learning_rate=1e30)
    with pytest.raises(NonFiniteLoss):
        trainer.train_epoch()


def test_weight_decay_pulls_on_the_matrices_of_the_blocks_only(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle, weight_decay=0.5, learning_rate=0.1)
    before = weights(trainer)
    trainer.loss = lambda states_ND, table_VD, targets_N, step: (
        states_ND.sum() * 0 + table_VD.sum() * 0
    )
    trainer.train_step(trainer.batches.largest())
    after = weights(trainer)
    for name, value in before.items():
        decays = name.startswith("blocks") and value.ndim == 2
        factor = 1 - 0.1 * 0.5 if decays else 1.0
        torch.testing.assert_close(after[name], value * factor, msg=name)


def test_gradients_do_not_pile_up(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle)
    trainer.train_step(trainer.batches.largest())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_batch_in_parts_makes_the_same_step(cycle: PreparedData) -> None:
    whole, parts = (
        make_trainer(cycle, loss="cce", accumulation=accumulation) for accumulation in (1, 3)
    )
    assert len(parts.batches.largest()) == 3
    losses = [trainer.train_epoch() for trainer in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert whole.step == parts.step == 3
    for name, value in weights(whole).items():
        # The bias of the keys has no gradient but rounding, which Adam makes steps of.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(weights(parts)[name], value, atol=1e-5, rtol=1e-4)


def test_the_parts_of_a_batch_have_negatives_of_their_own(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle, accumulation=2)
    inner, steps = trainer.loss, []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        steps.append(int(step))
        return inner(states_ND, table_VD, targets_N, step)

    trainer.loss = record
    trainer.train_epoch()
    assert steps == [0, 1, 2, 3, 4, 5]


def test_parts_of_unequal_length_count_by_their_rows(
    cycle: PreparedData, sequences_of: Callable[[Lists], Sequences]
) -> None:
    data = replace(cycle, train=sequences_of([[1, 2], [1, 2, 3, 4, 5]]))
    trainer = make_trainer(data, accumulation=2)
    gradients: list[Tensor] = []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        states_ND.register_hook(gradients.append)  # type: ignore[no-untyped-call]
        return states_ND.sum() + 9.0 * len(targets_N)

    trainer.loss = record
    trainer.train_epoch()
    # Of the mean over the five predictions of both.
    assert sorted(map(len, gradients)) == [1, 4]
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / 5))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_what_is_computed_again_is_what_was_kept(norm: str, cycle: PreparedData) -> None:
    losses, states = [], []
    for activations in ("kept", "recomputed"):
        trainer = make_trainer(cycle, norm=norm, dropout=0.3, activations=activations)
        losses.append([trainer.train_epoch() for _ in range(2)])
        states.append(weights(trainer))
    assert losses[0] == losses[1]
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_what_is_computed_again_takes_no_memory(cycle: PreparedData) -> None:
    peaks = []
    for activations in ("kept", "recomputed"):
        trainer = make_trainer(
            cycle, width=64, num_blocks=3, batch_size=48, activations=activations
        )
        trainer.train_step(trainer.batches.largest())
        with measured_memory(CPU, 1 << 40) as memory:
            trainer.train_step(trainer.batches.largest())
        peaks.append(memory.peak)
    assert peaks[1] < 0.6 * peaks[0]


def rates(trainer: Trainer, num_steps: int) -> list[float]:
    """The learning rate of each step."""
    found = []
    for _ in range(num_steps):
        trainer.train_step(trainer.batches.largest())
        found.append(trainer.optimization.learning_rate)
    return found


def test_the_rate_rises_and_falls_along_a_cosine(cycle: PreparedData) -> None:
    # 3 steps an epoch: 12 in all, 3 of which rise.
    settings: dict[str, Any] = {"max_epochs": 4, "warmup": 0.25, "learning_rate": 0.9}
    found = rates(make_trainer(cycle, schedule="cosine", **settings), 12)
    assert found[:4] == pytest.approx([0.3, 0.6, 0.9, 0.9])
    assert found[3:] == sorted(found[3:], reverse=True)
    assert found[-1] == pytest.approx(0.9 * (0.5 + 0.5 * math.cos(math.pi * 8 / 9)))
    assert rates(make_trainer(cycle, **settings), 5) == pytest.approx([0.3, 0.6, 0.9, 0.9, 0.9])


@pytest.mark.parametrize("output_table", ["tied", "separate"])
@pytest.mark.parametrize("table_updates", ["dense", "adam", "adagrad"])
def test_a_long_gradient_is_scaled_down(
    table_updates: str, output_table: str, cycle: PreparedData
) -> None:
    norms = []

    def measure(
        optimizer: torch.optim.Optimizer, _: object, options: dict[str, list[RowGradient]]
    ) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        grads += [gradient.rows_UD for gradient in options.get("gradients", [])]
        known = [grad.norm() for grad in grads if grad is not None]
        norms.append(torch.stack(known).norm() ** 2)

    for clip_norm in (0.0, 1e-3):
        trainer = make_trainer(
            cycle, clip_norm=clip_norm, table_updates=table_updates, output_table=output_table
        )
        for optimizer in trainer.optimization._optimizers:
            optimizer.register_step_pre_hook(measure)
        trainer.train_step(trainer.batches.largest())
    free, clipped = torch.stack(norms).view(2, -1).sum(1).sqrt().tolist()
    assert free > 1e-2
    assert clipped == pytest.approx(1e-3, rel=1e-2)


def test_a_norm_is_that_of_the_dense_gradient(cycle: PreparedData) -> None:
    """Row by row or whole, what the blocks are left with is scaled by the norm of everything."""
    moments = []
    for table_updates in ("dense", "adam"):
        trainer = make_trainer(cycle, clip_norm=1e-3, accumulation=2, table_updates=table_updates)
        trainer.train_step(trainer.batches.largest())
        (optimizer, *_) = trainer.optimization._optimizers
        assert trainer.model.positions is not None
        moments.append(optimizer.state[trainer.model.positions]["exp_avg"])
    torch.testing.assert_close(*moments, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("output_table", ["tied", "separate"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("table_updates", "table_dtype"),
    [("adam", "float32"), ("adagrad", "float32"), ("adam", "bfloat16")],
)
def test_only_touched_rows_of_the_tables_move(
    table_updates: str,
    table_dtype: str,
    accumulation: int,
    output_table: str,
    cycle: PreparedData,
    sequences_of: Callable[[Lists], Sequences],
) -> None:
    data = replace(cycle, num_items=60, train=sequences_of([[50, 51], [52, 53, 54]]))
    trainer = make_trainer(
        data,
        table_updates=table_updates,
        table_dtype=table_dtype,
        learning_rate=0.1,  # No step is lost to the rounding of a half table.
        output_table=output_table,
        accumulation=accumulation,
        negatives=2,
        max_length=2,
    )
    seeds = range(accumulation)
    drawn = {
        int(item)
        for step in seeds
        for item in draw(Draws(2, step), 0, math.ceil(3 / accumulation / 4), 60, CPU).flatten()
    }
    before = weights(trainer)
    trainer.train_step(trainer.batches.largest())
    moved = {
        name: (value != before[name]).any(1).nonzero().flatten().tolist()
        for name, value in trainer.model.state_dict().items()
        if value.shape == (60, 8)
    }
    inputs, outputs = {50, 52, 53}, {51, 53, 54, *drawn}
    if output_table == "tied":
        assert moved == {"items.weight": sorted(inputs | outputs)}
    else:
        assert moved == {"items.weight": sorted(inputs), "_outputs.weight": sorted(outputs)}


@pytest.mark.parametrize(("architecture", "share"), [("sasrec", 0.3), ("bert4rec", 0.8)])
@pytest.mark.parametrize(
    ("table_updates", "table_dtype", "learning_rate"),
    [("adam", "float32", 0.01), ("adagrad", "float32", 0.05), ("auto", "bfloat16", 0.01)],
)
def test_rows_learn_a_pattern_too(
    table_updates: str,
    table_dtype: str,
    learning_rate: float,
    architecture: str,
    share: float,
    cycle: PreparedData,
) -> None:
    trainer = make_trainer(
        cycle,
        architecture=architecture,
        table_updates=table_updates,
        table_dtype=table_dtype,
        learning_rate=learning_rate,
    )
    losses = [trainer.train_epoch() for _ in range(30)]
    assert losses[-1] < share * losses[0]
    assert trainer.model.items.weight.dtype == getattr(torch, table_dtype)


def test_no_gradient_of_a_table_is_left_to_autograd(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle, table_updates="adam")
    batch = largest_batch(trainer)
    states_TD = trainer.model(batch.ids_T, batch.packing)
    assert states_TD.dtype == torch.float32
    table_VD = trainer.model.outputs.weight
    step = torch.zeros(1, dtype=torch.int64)
    trainer.loss(states_TD, table_VD, batch.targets_N, step).backward()  # type: ignore[no-untyped-call]
    assert table_VD.grad is None
    sink = trainer.model.outputs.sink
    assert sink is not None
    rows = sink.take()
    assert rows is not None
    assert set(batch.ids_T.tolist()) | set(batch.targets_N.tolist()) <= set(rows.items_U.tolist())
    assert sink.take() is None


def test_the_encoder_gives_the_state_behind_the_last_item(
    cycle: PreparedData, targets_of: Callable[[Lists], Targets]
) -> None:
    trainer = make_trainer(cycle, dropout=0.5)
    targets = DeviceTargets(targets_of([[1, 2, 3], [4, 5], [6, 7, 8, 9, 1]]), CPU)
    (batch,) = targets.batches(100, 5, masked=False)
    states_BD = trainer.encoder()(batch)
    assert not states_BD.requires_grad
    for row, history in enumerate(([1, 2], [4], [6, 7, 8, 9])):
        alone_D = trainer.model(torch.tensor(history), Packing.of([len(history)], CPU))[-1]
        torch.testing.assert_close(states_BD[row], alone_D, atol=1e-6, rtol=1e-5)
