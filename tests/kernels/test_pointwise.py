"""Binary cross-entropies: their formula, their limits, and what they refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from kernels import (
    Explicit,
    RowSink,
    Uniform,
    calibrated_weight,
    sampled_binary_cross_entropy,
)

IGNORED = -100


def inputs(num_rows: int = 7, num_items: int = 9, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    states_ND, table_VD = (
        torch.randn(size, width, dtype=torch.float64, generator=generator).requires_grad_()
        for size in (num_rows, num_items)
    )
    return states_ND, table_VD, torch.randint(0, num_items, (num_rows,), generator=generator)


def lists(num_groups: int, num_candidates: int, num_items: int) -> Explicit:
    generator = torch.Generator().manual_seed(1)
    return Explicit(torch.randint(0, num_items, (num_groups, num_candidates), generator=generator))


def by_formula(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, ids_NK: Tensor, weight: float
) -> Tensor:
    """Losses of the rows, all logits in memory."""
    positive_N = (states_ND * table_VD[targets_N]).sum(1)
    negative_NK = torch.einsum("nd,nkd->nk", states_ND, table_VD[ids_NK])
    negative_NK = softplus(negative_NK, threshold=1e3) * (ids_NK != targets_N[:, None])
    return weight * softplus(-positive_N, threshold=1e3) + negative_NK.sum(1)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("group_size", [1, 3, 100])
def test_it_is_the_formula(group_size: int, weight: float) -> None:
    states_ND, table_VD, targets_N = inputs()
    candidates = lists(-(-7 // group_size), 6, 9)
    ids_NK = candidates.ids_GK[torch.arange(7) // group_size]
    assert (ids_NK == targets_N[:, None]).any(), "a collision"
    ours_N = sampled_binary_cross_entropy(
        states_ND, table_VD, targets_N, candidates,
        group_size=group_size, positive_weight=weight, reduction="none",
    )  # fmt: skip
    theirs_N = by_formula(states_ND, table_VD, targets_N, ids_NK, weight)
    torch.testing.assert_close(ours_N, theirs_N)
    weights_N = torch.linspace(-1, 2, 7, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(ours_N, (states_ND, table_VD), weights_N),
        torch.autograd.grad(theirs_N, (states_ND, table_VD), weights_N),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_scale_and_the_bias_have_gradients() -> None:
    states_ND, table_VD, targets_N = inputs()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    bias_V = torch.randn(9, dtype=torch.float64, requires_grad=True)

    def loss(*leaves: Tensor) -> Tensor:
        states_ND, table_VD, scale, bias_V = leaves
        return sampled_binary_cross_entropy(
            states_ND, table_VD, targets_N, Uniform(4, seed=2),
            group_size=3, positive_weight=0.7, logit_scale=scale, bias_V=bias_V,
        )  # fmt: skip

    assert torch.autograd.gradcheck(loss, (states_ND, table_VD, scale, bias_V))


def test_one_candidate_is_pairwise_bce() -> None:
    states_ND, table_VD, targets_N = inputs()
    other_N = (targets_N + 4) % 9
    ours = sampled_binary_cross_entropy(
        states_ND, table_VD, targets_N, Explicit(other_N[:, None]), reduction="sum"
    )
    logits_2N = torch.stack([(states_ND * table_VD[ids]).sum(1) for ids in (targets_N, other_N)])
    labels_2N = torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand_as(logits_2N)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        logits_2N, labels_2N, reduction="sum"
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_it_is_safe_at_large_scores(size: float, backend: str) -> None:
    states_ND = torch.full((2, 1), size).requires_grad_()
    table_VD = torch.tensor([[1.0], [-1.0]]).requires_grad_()
    targets_N = torch.tensor([0, 1])
    given = Explicit(torch.tensor([[1], [0]]))
    with np.errstate(over="ignore"):  # The interpreter warns of infinities.
        loss_N = sampled_binary_cross_entropy(
            states_ND, table_VD, targets_N, given, reduction="none"
        )
        loss_N.sum().backward()  # type: ignore[no-untyped-call]
    assert loss_N.tolist() == [0.0, 2 * size]
    assert table_VD.grad is not None
    assert table_VD.grad.flatten().tolist() == [size, -size]
    assert states_ND.grad is not None
    assert states_ND.grad.flatten().tolist() == [0.0, 2.0]


def test_a_calibration_of_0_weighs_nothing_and_of_1_by_the_share_that_is_drawn() -> None:
    assert calibrated_weight(256, 1_000_001, 0.0) == 1.0
    assert calibrated_weight(256, 1_000_001, 1.0) == pytest.approx(256e-6)
    assert calibrated_weight(500, 1001, 0.75) == pytest.approx(1 - 0.75 * 0.5)
    assert calibrated_weight(50, 21, 0.75) == 1.0, "no more than all are drawn"
    with pytest.raises(ValueError, match=r"calibration must lie in \[0, 1\], not be 1.5"):
        calibrated_weight(10, 100, 1.5)
    with pytest.raises(ValueError, match="num_items must be at least 2"):
        calibrated_weight(10, 1, 0.5)


def test_the_calibrated_weight_is_that_of_the_transformed_probability() -> None:
    # gSASRec: the loss of a positive is that of its probability to the power of beta.
    beta = calibrated_weight(20, 201, 0.9)
    score = torch.linspace(-4, 4, 9, dtype=torch.float64)
    torch.testing.assert_close(-(score.sigmoid() ** beta).log(), beta * softplus(-score))


def test_with_a_candidate_for_all_items_every_logit_has_a_term(backend: str) -> None:
    states_ND, table_VD, targets_N = (
        value.detach().float() if value.is_floating_point() else value for value in inputs()
    )
    everything = Explicit(torch.arange(9)[None])
    loss = sampled_binary_cross_entropy(
        states_ND, table_VD, targets_N, everything, group_size=7, reduction="sum"
    )
    logits_NV = states_ND @ table_VD.T
    labels_NV = torch.nn.functional.one_hot(targets_N, 9).float()
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        logits_NV, labels_NV, reduction="sum"
    )
    torch.testing.assert_close(loss, theirs)


def test_ignored_rows_and_rows_without_candidates(backend: str) -> None:
    states_ND, table_VD, targets_N = (
        value.detach().float() if value.is_floating_point() else value for value in inputs(4)
    )
    states_ND.requires_grad_()
    targets_N[1], targets_N[2] = IGNORED, 3
    given = Explicit(torch.tensor([[1, 2], [1, 2], [3, -1], [0, 1]]))
    loss_N = sampled_binary_cross_entropy(
        states_ND, table_VD, targets_N, given, reduction="none", ignore_index=IGNORED
    )
    assert loss_N[1] == 0
    positive = (states_ND[2] * table_VD[3]).sum()
    torch.testing.assert_close(loss_N[2], softplus(-positive), msg="only its target is left")
    mean = sampled_binary_cross_entropy(states_ND, table_VD, targets_N, given)
    torch.testing.assert_close(mean, loss_N.sum() / 3)
    (grad_ND,) = torch.autograd.grad(mean, states_ND)
    assert grad_ND[1].eq(0).all()
    assert grad_ND[[0, 2, 3]].ne(0).all()


def test_its_rows_go_to_a_sink(backend: str) -> None:
    states_ND, table_VD, targets_N = (
        value.detach().float() if value.is_floating_point() else value for value in inputs()
    )
    table_VD.requires_grad_()
    options: dict[str, Any] = {"group_size": 3, "positive_weight": 0.5}
    data = states_ND, table_VD, targets_N, Uniform(2, seed=5)
    (dense_VD,) = torch.autograd.grad(sampled_binary_cross_entropy(*data, **options), table_VD)
    sink = RowSink(9)
    loss = sampled_binary_cross_entropy(*data, **options, table_gradient=sink)
    loss.backward()  # type: ignore[no-untyped-call]
    rows = sink.take()
    assert table_VD.grad is None
    assert rows is not None
    assert rows.num_touched is not None
    number = int(rows.num_touched)
    found_VD = torch.zeros_like(dense_VD).index_add_(
        0, rows.items_U[:number], rows.rows_UD[:number].to(dense_VD.dtype)
    )
    torch.testing.assert_close(found_VD, dense_VD)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="positive_weight must be finite and not negative"):
        sampled_binary_cross_entropy(*inputs(), Uniform(3, seed=0), positive_weight=weight)


def test_it_checks_what_the_other_losses_check() -> None:
    states_ND, table_VD, targets_N = inputs()
    with pytest.raises(ValueError, match="table_gradient must be"):
        sampled_binary_cross_entropy(
            states_ND, table_VD, targets_N, Uniform(3, seed=0), table_gradient="sparse"
        )
    with pytest.raises(ValueError, match="group_size must be at least 1"):
        sampled_binary_cross_entropy(
            states_ND, table_VD, targets_N, Uniform(3, seed=0), group_size=0
        )
    with pytest.raises(ValueError, match="at least 2 items"):
        sampled_binary_cross_entropy(states_ND, table_VD[:1], targets_N, Uniform(3, seed=0))
