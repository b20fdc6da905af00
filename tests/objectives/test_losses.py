from typing import Literal

import pytest
import torch
from torch import Tensor

from kernels import Uniform, full_cross_entropy, sampled_cross_entropy
from objectives.config import LossConfig
from objectives.data.batches import NO_TARGET
from objectives.losses import build_loss


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states_ND = torch.randn(10, 4, generator=generator)
    table_VD = torch.randn(50, 4, generator=generator)
    return states_ND, table_VD, torch.randint(0, 50, (10,), generator=generator)


def at(step: int) -> Tensor:
    return torch.tensor([step])


def test_cce_is_the_full_softmax() -> None:
    loss = build_loss(LossConfig(loss="cce"), seed=0)
    assert torch.equal(loss(*inputs(), at(0)), full_cross_entropy(*inputs(), reduction="sum"))


def test_cce_minus_draws_the_negatives_of_seed_and_step_in_groups() -> None:
    loss = build_loss(LossConfig(loss="cce-", negatives=7, group_size=3), seed=5)
    for step in (0, 1, 1000):
        expected = sampled_cross_entropy(
            *inputs(), Uniform(7, 5 << 32 | step), group_size=3, reduction="sum"
        )
        assert torch.equal(loss(*inputs(), at(step)), expected)


@pytest.mark.parametrize("name", ["cce", "cce-"])
def test_a_row_without_a_target_adds_nothing(name: Literal["cce", "cce-"]) -> None:
    loss = build_loss(LossConfig(loss=name, negatives=7, group_size=10), seed=5)
    states_ND, table_VD, targets_N = inputs()
    targets_N[7:] = NO_TARGET
    expected = loss(states_ND[:7], table_VD, targets_N[:7], at(0))
    torch.testing.assert_close(loss(states_ND, table_VD, targets_N, at(0)), expected)


def test_every_step_and_every_seed_has_other_negatives() -> None:
    config = LossConfig(loss="cce-", negatives=2, group_size=1)
    values = {
        float(build_loss(config, seed)(*inputs(), at(step)))
        for seed in (0, 1, -1)
        for step in range(3)
    }
    assert len(values) == 9
