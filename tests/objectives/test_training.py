import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.data.sequences import DeviceSequences, target_batches
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
        build_loss(config.loss, seed),
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
    batch = trainer.largest_batch()
    expected = {
        (tuple(state.tolist()), target)
        for state, target in zip(
            trainer.model(batch.ids_BL)[batch.valid_BL], batch.targets_N.tolist(), strict=True
        )
    }
    given: list[tuple[Tensor, Tensor]] = []

    def record(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: int) -> Tensor:
        given.append((states_ND.detach(), targets_N))
        return states_ND.sum()

    trainer.loss = record
    trainer.train_step(batch)
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
    batch = make_trainer(data, batch_size=2).largest_batch()
    assert batch.ids_BL.shape == (2, 5)
    assert batch.targets_N.tolist() == [5, 6, 7, 8, 9, 2, 3]


def test_the_encoder_gives_the_state_behind_the_last_item(
    cycle: PreparedData, targets_of: Callable[[Lists], Targets]
) -> None:
    trainer = make_trainer(cycle, dropout=0.5)
    (batch,) = target_batches(targets_of([[1, 2, 3], [4, 5], [6, 7, 8, 9, 1]]), 3, 5, CPU)
    states_BD = trainer.encoder()(batch)
    assert not states_BD.requires_grad
    for row, history in enumerate(([1, 2], [4], [6, 7, 8, 9])):
        alone_D = trainer.model(torch.tensor([history]))[0, -1]
        torch.testing.assert_close(states_BD[row], alone_D, atol=1e-6, rtol=1e-5)
