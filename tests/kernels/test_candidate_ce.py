import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import (
    AliasTable,
    Explicit,
    InBatch,
    LogUniform,
    Popularity,
    Uniform,
    reference,
    sampled_cross_entropy,
)
from kernels.candidates import Candidates, draw

Vectors = Sequence[Sequence[float]]
Grid = list[list[float]]
COUNTS_V = torch.tensor([5, 0, 1, 9, 3, 0, 30, 2, 2, 2, 7])
SAMPLERS: dict[str, Candidates] = {
    "uniform": Uniform(9, seed=5),
    "log-uniform": LogUniform(9, 5, AliasTable.log_uniform(11)),
    "popularity": Popularity(9, 5, AliasTable.from_weights(COUNTS_V)),
    "in-batch": InBatch(),
    "in-batch q": InBatch(COUNTS_V + 1),
    "explicit": Explicit(torch.arange(24).view(3, 8) % 12 - 1, torch.randn(3, 8)),
}


def inputs(
    num_rows: int, num_items: int, width: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 states and table with logits of spread 2, and targets that reach both ends."""
    generator = torch.Generator().manual_seed(seed)
    states_ND = torch.randn(num_rows, width, dtype=torch.float64, generator=generator)
    table_VD = torch.randn(num_items, width, dtype=torch.float64, generator=generator)
    targets_N = torch.randint(0, num_items, (num_rows,), generator=generator)
    targets_N[:1], targets_N[1:2] = 0, num_items - 1
    return states_ND.requires_grad_(), table_VD.requires_grad_(), targets_N


def truth(
    states: Vectors, table: Vectors, targets: Sequence[int], lists: Sequence[Sequence[int]]
) -> tuple[list[float], Grid, Grid]:
    """Section 2.2 of the loss reference in plain loops: losses, gradients of their sum."""
    num_items = len(table)
    losses: list[float] = []
    grad_states = [[0.0] * len(state) for state in states]
    grad_table = [[0.0] * len(item) for item in table]
    for row, (state, target, drawn) in enumerate(zip(states, targets, lists, strict=True)):
        misses = [item for item in drawn if item != target]
        logits = {0: sum(a * b for a, b in zip(state, table[target], strict=True))}
        for slot, item in enumerate(misses, start=1):
            score = sum(a * b for a, b in zip(state, table[item], strict=True))
            # q' = (1/V) / (1 - 1/V) = 1 / (V-1); K - r is the number of misses.
            logits[slot] = score - math.log(len(misses) / (num_items - 1))
        highest = max(logits.values())
        total = sum(math.exp(logit - highest) for logit in logits.values())
        losses.append(highest + math.log(total) - logits[0])
        for slot, item in enumerate([target, *misses]):
            error = math.exp(logits[slot] - highest) / total - (slot == 0)
            for d in range(len(state)):
                grad_states[row][d] += error * table[item][d]
                grad_table[item][d] += error * state[d]
    return losses, grad_states, grad_table


def assert_equals_truth(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, candidates: Uniform, group_size: int
) -> None:
    num_items, num_groups = len(table_VD), -(-len(targets_N) // group_size)
    draws, _ = candidates.draws(targets_N, num_items, group_size, -100)
    ids_GK = draw(draws, 0, num_groups, num_items, "cpu").tolist()
    losses, grad_states, grad_table = truth(
        states_ND.tolist(),
        table_VD.tolist(),
        targets_N.tolist(),
        [ids_GK[row // group_size] for row in range(len(targets_N))],
    )
    loss_N = sampled_cross_entropy(
        states_ND, table_VD, targets_N, candidates, group_size=group_size, reduction="none"
    )
    grads = torch.autograd.grad(loss_N.sum(), (states_ND, table_VD))
    for ours, true in zip((loss_N, *grads), (losses, grad_states, grad_table), strict=True):
        torch.testing.assert_close(
            ours, torch.tensor(true, dtype=torch.float64), atol=1e-12, rtol=1e-12
        )


@pytest.mark.parametrize("group_size", [1, 2, 3, 7, 17, 40])
@pytest.mark.parametrize(
    ("num_items", "num_candidates"), [(2, 1), (2, 5), (3, 4), (11, 1), (11, 30)]
)
def test_losses_and_gradients_equal_the_formula(
    group_size: int, num_items: int, num_candidates: int
) -> None:
    candidates = Uniform(num_candidates, seed=group_size)
    assert_equals_truth(*inputs(17, num_items), candidates, group_size)


@pytest.mark.parametrize("num_rows", [1, 6, 8])
def test_the_last_group_may_be_ragged(num_rows: int) -> None:
    assert_equals_truth(*inputs(num_rows, 11), Uniform(4, seed=1), 5)


@pytest.mark.parametrize("seed", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_seed_may_be_any_unsigned_number_of_64_bits(seed: int) -> None:
    assert_equals_truth(*inputs(9, 11), Uniform(6, seed), 2)


@pytest.mark.parametrize("correction", ["logq", "corrected-logq", "none"])
@pytest.mark.parametrize("group_size", [4, 100])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_source_of_candidates_has_the_value_of_the_reference(
    name: str, group_size: int, correction: str
) -> None:
    candidates = SAMPLERS[name]
    if isinstance(candidates, Explicit) and group_size == 100:
        candidates = Explicit(candidates.ids_GK[:1])
    states_ND, table_VD, targets_N = inputs(11, 11)
    targets_N[3] = -100
    draws, size = candidates.draws(targets_N, 11, group_size, -100)

    def ours() -> Tensor:
        return sampled_cross_entropy(
            states_ND,
            table_VD,
            targets_N,
            candidates,
            group_size=group_size,
            correction=correction,
            reduction="none",
        )

    if correction == "corrected-logq" and name in ("in-batch", "explicit"):
        with pytest.raises(ValueError, match=r"^correction must be 'logq' or 'none' for lists"):
            ours()
        return
    problem = reference.Problem(
        states_ND,
        table_VD,
        targets_N,
        draws,
        size,
        correction.removeprefix("corrected-"),
        correction == "corrected-logq",
    )
    assert torch.equal(ours(), reference.forward(problem).loss_N)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_of_touched_rows_is_sparse_and_that_of_the_dense_one(name: str) -> None:
    states_ND, table_VD, targets_N = inputs(11, 11)
    bias_V = torch.randn(11, dtype=torch.float64, requires_grad=True)
    dense, touched = (
        torch.autograd.grad(
            sampled_cross_entropy(
                states_ND,
                table_VD,
                targets_N,
                SAMPLERS[name],
                group_size=4,
                bias_V=bias_V,
                table_gradient=form,
            ),
            (table_VD, states_ND, bias_V),
        )
        for form in ("dense", "touched")
    )
    assert touched[0].layout == torch.sparse_coo
    assert touched[0].is_coalesced()
    ids_U = touched[0].indices()[0]
    assert (ids_U.diff() > 0).all()
    assert torch.isin(targets_N, ids_U).all()
    for ours, theirs in zip(touched, dense, strict=True):
        assert torch.equal(ours.to_dense(), theirs)


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        (Uniform(2, 0), {"group_size": 0}, "^group_size must be at least 1, not 0"),
        (Uniform(2, 0), {"group_size": -3}, "^group_size must be at least 1, not -3"),
        (Uniform(2, 0), {"correction": "log"}, "^correction must be .*'log'"),
        (Uniform(2, 0), {"table_gradient": "sparse"}, "^table_gradient must be .*'sparse'"),
        (Uniform(1 << 31, 0), {}, "^candidates has 2147483648 candidates of a group"),
        (InBatch(torch.ones(4)), {}, "^probabilities_V is for 4 items, but .* 5"),
        (Explicit(torch.zeros(3, 2).long()), {}, "^ids_GK has 3 groups"),
        (Explicit(torch.arange(20).view(4, 5)), {}, r"^ids_GK must lie in \[-1, 5\).* 0 to 19"),
        (Explicit(torch.arange(4)[:, None] - 2), {}, r"^ids_GK must lie in \[-1, 5\).* -2 to 1"),
    ],
)
def test_what_does_not_fit_is_named(
    candidates: Candidates, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sampled_cross_entropy(*inputs(4, 5), candidates, **options)


def test_one_item_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="table_VD must have at least 2 items"):
        sampled_cross_entropy(*inputs(4, 1), Uniform(2, 0))
