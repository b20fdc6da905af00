import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import Uniform, full_cross_entropy, sampled_cross_entropy

Vectors = Sequence[Sequence[float]]
Grid = list[list[float]]


@dataclass(frozen=True)
class Listed(Uniform):
    """Candidates that a test spells out, one list for each group."""

    lists: tuple[tuple[int, ...], ...] = ()

    def draw(
        self, first_group: int, num_groups: int, num_items: int, device: torch.device | str
    ) -> Tensor:
        chosen = self.lists[first_group : first_group + num_groups]
        assert len(chosen) == num_groups
        return torch.tensor(chosen, device=device)


def listed(*lists: Sequence[int]) -> Listed:
    return Listed(len(lists[0]), 0, tuple(tuple(ids) for ids in lists))


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
    num_groups = -(-len(targets_N) // group_size)
    ids_GK = candidates.draw(0, num_groups, len(table_VD), "cpu").tolist()
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


def test_repeated_candidates_count_as_often_as_they_were_drawn() -> None:
    states_ND, table_VD, _ = inputs(2, 5)
    candidates = listed([3, 3, 3, 1], [4, 4, 2, 2])
    assert_equals_truth(states_ND, table_VD, torch.tensor([0, 4]), candidates, 1)


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_row_whose_candidates_are_all_its_target_has_no_loss_and_no_gradient(
    group_size: int,
) -> None:
    states_ND, table_VD, _ = inputs(4, 3)
    targets_N = torch.tensor([0, 0, 2, 2])
    candidates = listed(*[[0, 0, 0]] * (2 // group_size), *[[2, 2, 2]] * (2 // group_size))
    loss_N = sampled_cross_entropy(
        states_ND, table_VD, targets_N, candidates, group_size=group_size, reduction="none"
    )
    loss_N.sum().backward()  # type: ignore[no-untyped-call]
    for tensor in (loss_N, states_ND.grad, table_VD.grad):
        assert tensor is not None
        assert torch.equal(tensor, torch.zeros_like(tensor))


def test_an_all_collision_row_leaves_its_neighbours_alone() -> None:
    states_ND, table_VD, _ = inputs(3, 4)
    assert_equals_truth(states_ND, table_VD, torch.tensor([1, 0, 3]), listed([1, 1]), 3)


@pytest.mark.parametrize("collisions", [0, 1, 6])
def test_enumerating_the_other_items_gives_the_full_softmax(collisions: int) -> None:
    states_ND, table_VD, targets_N = inputs(9, 7)
    others = [
        [item for item in range(7) if item != target] + [target] * collisions
        for target in targets_N.tolist()
    ]
    sampled = sampled_cross_entropy(states_ND, table_VD, targets_N, listed(*others))
    full = full_cross_entropy(states_ND, table_VD, targets_N)
    torch.testing.assert_close(sampled, full, atol=1e-14, rtol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(sampled, (states_ND, table_VD)),
        torch.autograd.grad(full, (states_ND, table_VD)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("multiplicity", [1, 3])
def test_a_pool_of_the_whole_catalogue_gives_the_full_softmax(multiplicity: int) -> None:
    states_ND, table_VD, targets_N = inputs(9, 7)
    pool = listed(list(range(7)) * multiplicity)
    sampled = sampled_cross_entropy(states_ND, table_VD, targets_N, pool, group_size=9)
    full = full_cross_entropy(states_ND, table_VD, targets_N)
    torch.testing.assert_close(sampled, full, atol=1e-14, rtol=1e-14)


def test_the_order_of_the_candidates_changes_nothing() -> None:
    states_ND, table_VD, targets_N = inputs(6, 9)
    drawn = [8, 0, 3, 3, 5, 1]
    first, second = (
        sampled_cross_entropy(
            states_ND, table_VD, targets_N, listed(ids), group_size=6, reduction="none"
        )
        for ids in (drawn, sorted(drawn))
    )
    torch.testing.assert_close(first, second, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("group_size", [0, -3])
def test_a_group_has_at_least_one_row(group_size: int) -> None:
    with pytest.raises(ValueError, match="group_size"):
        sampled_cross_entropy(*inputs(4, 5), Uniform(2, 0), group_size=group_size)


def test_one_item_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="table_VD must have at least 2 items"):
        sampled_cross_entropy(*inputs(4, 1), Uniform(2, 0))
