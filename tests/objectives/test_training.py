import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kernels.candidates import Draws, draw
from models.packing import Packing
from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.data.sequences import DeviceSequences, DeviceTargets
from objectives.losses import build_loss
from objectives.training import NonFiniteLoss, Trainer

CPU = torch.device("cpu")
Lists = list[list[int]]


def make_trainer(data: PreparedData, seed: int = 0, **settings: object) -> Trainer:
    small = {"width": 8, "num_blocks": 1, "num_heads": 1, "max_length": 5, "dropout": 0.0}
    fast = {"batch_size": 16, "learning_rate": 0.01, "negatives": 8, "group_size": 4}
    config = TrialConfig.from_flat(small | fast | settings)
    torch.manual_seed(seed)
    return Trainer(
        config.model.build(data.num_items),
        build_loss(config.loss, seed, config.training.table_gradient),
        DeviceSequences(data.train, CPU),
        config.training,
        seed,
    )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return copy.deepcopy(trainer.model.state_dict())


@pytest.mark.parametrize("loss", ["cce", "cce-"])
def test_the_loss_of_a_pattern_falls(loss: str, cycle: PreparedData) -> None:
    trainer = make_trainer(cycle, loss=loss)
    losses = [trainer.train_epoch() for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    assert trainer.step == 20 * 3


def test_a_loss_sees_every_next_item_of_an_epoch_once(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle)
    inner, targets, steps = trainer.loss, [], []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: int) -> Tensor:
        assert states_ND.shape == (len(targets_N), 8)
        targets.extend(targets_N.tolist())
        steps.append(step)
        return inner(states_ND, table_VD, targets_N, step)

    trainer.loss = record
    trainer.train_epoch()
    expected = cycle.train.items.reshape(-1, 6)[:, 1:].flatten().tolist()
    assert sorted(targets) == sorted(expected)
    assert steps == [0, 1, 2]


def test_states_and_targets_are_shuffled_together(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle)
    (batch,) = trainer.largest_batch()
    expected = {
        (tuple(state.tolist()), target)
        for state, target in zip(
            trainer.model(batch.ids_T, batch.packing), batch.targets_N.tolist(), strict=True
        )
    }
    given: list[tuple[Tensor, Tensor]] = []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: int) -> Tensor:
        given.append((states_ND.detach(), targets_N))
        return states_ND.sum()

    trainer.loss = record
    trainer.train_step([batch])
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

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: int) -> Tensor:
        rows.append(len(targets_N))
        return states_ND.sum() * 0 + 10.0 * len(targets_N)

    trainer.loss = record
    assert trainer.train_epoch() == pytest.approx(10 * (1 + 16 + 4) / 7)
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
    trainer.train_step(trainer.largest_batch())
    after = weights(trainer)
    for name, value in before.items():
        decays = name.startswith("blocks") and value.ndim == 2
        factor = 1 - 0.1 * 0.5 if decays else 1.0
        torch.testing.assert_close(after[name], value * factor, msg=name)


def test_gradients_do_not_pile_up(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle)
    trainer.train_step(trainer.largest_batch())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_largest_batch_is_that_of_the_longest_sequences(
    cycle: PreparedData, sequences_of: Callable[[Lists], Sequences]
) -> None:
    data = replace(cycle, train=sequences_of([[1, 2], [3, 4, 5, 6, 7, 8, 9], [1, 2, 3], [9, 8]]))
    (batch,) = make_trainer(data, batch_size=2).largest_batch()
    assert batch.packing.offsets_B1.tolist() == [0, 5, 7]
    assert batch.targets_N.tolist() == [5, 6, 7, 8, 9, 2, 3]


def test_a_batch_in_parts_makes_the_same_step(cycle: PreparedData) -> None:
    whole, parts = (
        make_trainer(cycle, loss="cce", accumulation=accumulation) for accumulation in (1, 3)
    )
    assert len(parts.largest_batch()) == 3
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

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: int) -> Tensor:
        steps.append(step)
        return inner(states_ND, table_VD, targets_N, step)

    trainer.loss = record
    trainer.train_epoch()
    assert steps == [0, 1, 2, 3, 4, 5]


def test_parts_of_unequal_length_count_by_their_rows(
    cycle: PreparedData, sequences_of: Callable[[Lists], Sequences]
) -> None:
    data = replace(cycle, train=sequences_of([[1, 2], [1, 2, 3, 4, 5]]))
    trainer = make_trainer(data, accumulation=2)
    trainer.loss = lambda states_ND, table_VD, targets_N, step: (
        states_ND.sum() * 0 + 10.0 * len(targets_N)
    )
    assert trainer.train_epoch() == pytest.approx(10 * (1 + 16) / 5)


def rates(trainer: Trainer, num_steps: int) -> list[float]:
    """The learning rate of each step."""
    found = []
    for _ in range(num_steps):
        found.append(trainer.optimization.learning_rate)
        trainer.train_step(trainer.largest_batch())
    return found


def test_the_rate_rises_and_falls_along_a_cosine(cycle: PreparedData) -> None:
    # 3 steps an epoch: 12 in all, 3 of which rise.
    settings: dict[str, Any] = {"max_epochs": 4, "warmup": 0.25, "learning_rate": 0.9}
    found = rates(make_trainer(cycle, schedule="cosine", **settings), 12)
    assert found[:4] == pytest.approx([0.3, 0.6, 0.9, 0.9])
    assert found[3:] == sorted(found[3:], reverse=True)
    assert found[-1] == pytest.approx(0.9 * (0.5 + 0.5 * math.cos(math.pi * 8 / 9)))
    assert rates(make_trainer(cycle, **settings), 5) == pytest.approx([0.3, 0.6, 0.9, 0.9, 0.9])


@pytest.mark.parametrize("table_updates", ["dense", "rows"])
def test_a_long_gradient_is_scaled_down(
    table_updates: str, cycle: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms = []

    def measure(optimizer: torch.optim.Optimizer, *_: object) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.stack([grad.to_dense().norm() for grad in grads]).norm() ** 2)

    for clip_norm in (0.0, 1e-3):
        trainer = make_trainer(cycle, clip_norm=clip_norm, table_updates=table_updates)
        for optimizer in trainer.optimization._optimizers:
            optimizer.register_step_pre_hook(measure)
        trainer.train_step(trainer.largest_batch())
    free, clipped = torch.stack(norms).view(2, -1).sum(1).sqrt().tolist()
    assert free > 1e-2
    assert clipped == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("output_table", ["tied", "separate"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_only_touched_rows_of_the_tables_move(
    accumulation: int,
    output_table: str,
    cycle: PreparedData,
    sequences_of: Callable[[Lists], Sequences],
) -> None:
    data = replace(cycle, num_items=60, train=sequences_of([[50, 51], [52, 53, 54]]))
    trainer = make_trainer(
        data,
        table_updates="rows",
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
    trainer.train_step(trainer.largest_batch())
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


def test_rows_learn_a_pattern_too(cycle: PreparedData) -> None:
    trainer = make_trainer(cycle, table_updates="rows")
    losses = [trainer.train_epoch() for _ in range(20)]
    assert losses[-1] < 0.3 * losses[0]


def test_the_whole_catalogue_has_no_touched_rows() -> None:
    with pytest.raises(ValidationError, match="table_updates rows needs loss cce-"):
        TrialConfig.from_flat({"loss": "cce", "table_updates": "rows"})


def test_the_encoder_gives_the_state_behind_the_last_item(
    cycle: PreparedData, targets_of: Callable[[Lists], Targets]
) -> None:
    trainer = make_trainer(cycle, dropout=0.5)
    targets = DeviceTargets(targets_of([[1, 2, 3], [4, 5], [6, 7, 8, 9, 1]]), CPU)
    (batch,) = targets.batches(100, 5, masked=False)
    states_BD = trainer.encoder()(batch)
    assert not states_BD.requires_grad
    for row, history in enumerate(([1, 2], [4], [6, 7, 8, 9])):
        alone_D = trainer.model(torch.tensor(history), Packing([len(history)], CPU))[-1]
        torch.testing.assert_close(states_BD[row], alone_D, atol=1e-6, rtol=1e-5)
