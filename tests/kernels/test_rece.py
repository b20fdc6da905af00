"""RECE against its formula, its limits, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import full_cross_entropy, reduced_cross_entropy
from kernels.gpu import Gpu, simulated_gpu
from kernels.rece import nearest_anchors, neighbourhoods

IGNORED = -100
# Called with unpacked tuples, which types cannot follow.
rece: Any = reduced_cross_entropy
whole: Any = full_cross_entropy


def inputs(
    num_rows: int = 23, num_items: int = 31, width: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    states_ND, table_VD = (
        torch.randn(size, width, dtype=torch.float64, generator=generator).to(dtype)
        for size in (num_rows, num_items)
    )
    targets_N = torch.randint(0, num_items, (num_rows,), generator=generator)
    return states_ND.requires_grad_(), table_VD.requires_grad_(), targets_N


def by_formula(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    num_buckets: int,
    buckets_per_chunk: int,
    neighbours: int,
    rounds: int,
    scale: Tensor,
) -> Tensor:
    """Losses with -log(count) for repeats, as published: every list and logit in memory."""
    anchors_QBD = torch.randn(rounds, num_buckets, states_ND.shape[1])
    num_rows, num_items = len(states_ND), len(table_VD)
    rows_of_chunk = -(-num_rows // (num_buckets // buckets_per_chunk))
    num_chunks = -(-num_rows // rows_of_chunk)
    met_NV = torch.zeros(num_rows, num_items, dtype=torch.float64)
    lists: list[list[int]] = [[] for _ in range(num_rows)]
    for anchors_BD in anchors_QBD.double():
        row_bucket_N = (states_ND.double() @ anchors_BD.T).argmax(1)
        row_bucket_N[targets_N == IGNORED] = num_buckets
        item_bucket_V = (table_VD.double() @ anchors_BD.T).argmax(1)
        order_V = item_bucket_V.argsort(stable=True).tolist()
        chunks = [
            order_V[-(-c * num_items // num_chunks) : -(-(c + 1) * num_items // num_chunks)]
            for c in range(num_chunks)
        ]
        for place, row in enumerate(row_bucket_N.argsort(stable=True).tolist()):
            chunk = place // rows_of_chunk
            for near in chunks[max(0, chunk - neighbours) : chunk + neighbours + 1]:
                lists[row] += near
                met_NV[row, near] += 1
    losses = []
    for row, target in enumerate(targets_N.tolist()):
        if target == IGNORED:
            losses.append(states_ND.new_zeros(()))
            continue
        logits_V = scale * (table_VD @ states_ND[row])
        ids = torch.tensor([item for item in lists[row] if item != target], dtype=torch.int64)
        repeated = logits_V[ids] - met_NV[row, ids].log().to(logits_V.dtype)
        losses.append(torch.cat([logits_V[[target]], repeated]).logsumexp(0) - logits_V[target])
    return torch.stack(losses)


def values(loss_N: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    """Losses, and gradients under uneven weights of the rows."""
    weights_N = torch.linspace(-1, 2, len(loss_N), dtype=loss_N.dtype, device=loss_N.device)
    return [loss_N.detach(), *torch.autograd.grad(loss_N, leaves, weights_N)]


CASES = [
    ({"num_buckets": 5}, True),
    ({"num_buckets": 5, "neighbours": 0}, False),
    ({"num_buckets": 7, "neighbours": 2, "rounds": 2}, True),
    ({"num_buckets": 8, "buckets_per_chunk": 2, "rounds": 4}, False),
    ({"num_buckets": 6, "neighbours": 0, "rounds": 5}, True),
    ({"num_buckets": 31, "rounds": 3}, False),
]


@pytest.mark.parametrize(("case", "ignored"), CASES)
def test_it_is_the_formula(case: dict[str, int], ignored: bool, backend: str) -> None:
    dtype, tolerance = (torch.float64, 1e-9) if backend == "eager" else (torch.float32, 1e-4)
    *leaves, targets_N = inputs(dtype=dtype)
    if ignored:
        targets_N[::4] = IGNORED
    scale = torch.tensor(1.3, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    ours_N = rece(
        *leaves, targets_N, **case, logit_scale=scale, reduction="none", ignore_index=IGNORED
    )
    *copies, _ = inputs()
    truth_scale = scale.detach().double().requires_grad_()
    torch.manual_seed(3)
    given: dict[str, Any] = {"buckets_per_chunk": 1, "neighbours": 1, "rounds": 1, **case}
    truth_N = by_formula(copies[0], copies[1], targets_N, **given, scale=truth_scale)
    ours = values(ours_N, (*leaves, scale))
    truths = values(truth_N, (*copies, truth_scale))
    for our, truth in zip(ours, truths, strict=True):
        torch.testing.assert_close(our.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rounds", [1, 3])
def test_one_chunk_is_the_whole_catalogue(rounds: int, backend: str) -> None:
    *leaves, targets_N = inputs(dtype=torch.float32)
    ours_N = rece(
        *leaves, targets_N, num_buckets=4, buckets_per_chunk=4, rounds=rounds, reduction="none"
    )
    truth_N = whole(*leaves, targets_N, reduction="none")
    for our, truth in zip(
        values(ours_N, tuple(leaves)), values(truth_N, tuple(leaves)), strict=True
    ):
        torch.testing.assert_close(our, truth, rtol=1e-4, atol=1e-4)


def test_neighbours_as_far_as_there_are_chunks_are_the_whole_catalogue() -> None:
    *leaves, targets_N = inputs()
    ours = rece(*leaves, targets_N, num_buckets=6, neighbours=6, rounds=2)
    torch.testing.assert_close(ours, whole(*leaves, targets_N))


def test_more_rounds_meet_more_items() -> None:
    *leaves, targets_N = inputs(60, 90)
    losses = []
    for rounds in (1, 4, 16):
        torch.manual_seed(0)
        loss = rece(*leaves, targets_N, num_buckets=10, neighbours=0, rounds=rounds)
        losses.append(loss.item())
    assert losses == sorted(losses)
    assert losses[-1] <= whole(*leaves, targets_N).item() + 1e-9


def test_every_row_meets_its_share_of_the_catalogue_once() -> None:
    states_ND, table_VD, _ = inputs(40, 50)
    with torch.no_grad():
        found = neighbourhoods(
            states_ND, table_VD, torch.zeros(40, dtype=torch.bool), torch.randn(3, 8, 6), 8, 1
        )
    for order_N, candidates, group_size in found:
        assert sorted(order_N.tolist()) == list(range(40))
        assert group_size == 5
        for number, ids in enumerate(candidates.ids_GK.tolist()):
            there = [item for item in ids if item >= 0]
            assert len(set(there)) == len(there), "an item stands there once"
            chunks = 2 if number in (0, 7) else 3
            assert abs(len(there) - chunks * 50 / 8) < 1


@pytest.mark.parametrize(
    ("num_vectors", "width", "num_anchors"), [(1, 3, 1), (70, 20, 45), (33, 300, 130)]
)
def test_rows_go_to_their_nearest_anchor(
    num_vectors: int, width: int, num_anchors: int, device: torch.device, backend: str
) -> None:
    torch.manual_seed(num_vectors)
    vectors_ND = torch.randn(num_vectors, width, device=device)
    anchors_BD = torch.randn(num_anchors, width, device=device)
    scores_NB = vectors_ND @ anchors_BD.T
    nearest_N = nearest_anchors(vectors_ND, anchors_BD)
    if device.type == "cpu":
        assert nearest_N.tolist() == scores_NB.argmax(1).tolist()
    # On a card products are rounded to bfloat16.
    found_N = scores_NB[torch.arange(num_vectors, device=device), nearest_N.long()]
    assert (scores_NB.amax(1) - found_N).max() <= 0.05 * width**0.5
    assert nearest_anchors(vectors_ND[:0], anchors_BD).shape == (0,)


def test_fewer_rows_than_chunks() -> None:
    *leaves, targets_N = inputs(3, 31)
    loss_N = rece(*leaves, targets_N, num_buckets=20, neighbours=0, reduction="none")
    assert loss_N.gt(0).all()


def test_all_rows_ignored_or_none() -> None:
    *leaves, targets_N = inputs()
    loss = rece(*leaves, targets_N.fill_(IGNORED), num_buckets=4, rounds=2, ignore_index=IGNORED)
    assert loss == 0
    for grad in torch.autograd.grad(loss, leaves):
        assert grad.eq(0).all()
    states_ND, table_VD, targets_N = inputs(0)
    assert rece(states_ND, table_VD, targets_N, num_buckets=4) == 0


@pytest.mark.parametrize("num_items", [2, 3])
def test_rows_that_meet_nothing_but_their_target(num_items: int, backend: str) -> None:
    *leaves, targets_N = inputs(9, num_items, dtype=torch.float32)
    loss_N = rece(
        *leaves, targets_N, num_buckets=num_items, neighbours=0, rounds=2, reduction="none"
    )
    assert loss_N.isfinite().all()
    assert loss_N.ge(0).all()
    for value in values(loss_N, tuple(leaves)):
        assert value.isfinite().all()


def test_large_losses_stay_finite(backend: str) -> None:
    states_ND = torch.full((4, 1), 300.0).requires_grad_()
    table_VD = torch.tensor([[1.0], [-1.0], [0.5]]).requires_grad_()
    targets_N = torch.tensor([1, 1, 0, 2])
    loss_N = rece(
        states_ND, table_VD, targets_N, num_buckets=2, buckets_per_chunk=2, rounds=2,
        reduction="none",
    )  # fmt: skip
    torch.testing.assert_close(loss_N, torch.tensor([600.0, 600.0, 0.0, 150.0]))
    with np.errstate(over="ignore"):  # The interpreter warns of infinities, which are masked.
        for value in values(loss_N, (states_ND, table_VD)):
            assert value.isfinite().all()


def test_a_seed_of_torch_gives_one_loss_and_reductions_are_of_its_rows() -> None:
    *leaves, targets_N = inputs()
    targets_N[0] = IGNORED

    def loss(reduction: str) -> Tensor:
        torch.manual_seed(5)
        value: Tensor = rece(*leaves, targets_N, num_buckets=5, rounds=2, reduction=reduction)
        return value

    loss_N = loss("none")
    assert torch.equal(loss_N, loss("none"))
    torch.testing.assert_close(loss("sum"), loss_N.sum())
    torch.testing.assert_close(loss("mean"), loss_N.sum() / 22)
    torch.manual_seed(6)
    other = rece(*leaves, targets_N, num_buckets=5, rounds=2)
    assert other.item() != loss("mean").item()


def test_half_precision_is_near(device: torch.device, triton_backend: None) -> None:
    *leaves, targets_N = inputs(dtype=torch.bfloat16)
    given = [leaf.detach().to(device) for leaf in leaves]
    torch.manual_seed(1)
    ours = rece(*given, targets_N.to(device), num_buckets=1, rounds=2)
    truth = whole(*(leaf.float() for leaf in given), targets_N.to(device))
    torch.testing.assert_close(ours, truth, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("width", "rounds", "neighbours"), [(64, 1, 1), (256, 3, 0), (100, 4, 2), (300, 2, 1)]
)
def test_a_card_meets_the_same_items(
    width: int, rounds: int, neighbours: int, dtype: torch.dtype, device: torch.device
) -> None:
    *leaves, targets_N = (given.to(device) for given in inputs(1700, 9000, width, dtype))
    leaves = [(leaf.detach() / width**0.25).requires_grad_() for leaf in leaves]
    targets_N[::7] = IGNORED
    torch.manual_seed(2)
    loss_N = rece(
        *leaves, targets_N, num_buckets=40, neighbours=neighbours, rounds=rounds, reduction="none"
    )
    torch.manual_seed(2)
    anchors_QBD = torch.randn(rounds, 40, width, device=device)
    met_NV = torch.zeros(1700, 9001, dtype=torch.bool, device=device)
    for order_N, candidates, group_size in neighbourhoods(
        leaves[0], leaves[1], targets_N == IGNORED, anchors_QBD, 40, neighbours
    ):
        ids_NK = candidates.ids_GK.long()[torch.arange(1700, device=device) // group_size]
        met_NV[order_N] = met_NV[order_N].scatter(1, ids_NK.where(ids_NK >= 0, 9000), True)
    known_N = targets_N != IGNORED
    items_N = targets_N.where(known_N, 0)
    met_NV[:, :-1].scatter_(1, items_N[:, None], True)
    copies = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits_NV = (copies[0] @ copies[1].T).masked_fill(~met_NV[:, :-1], -torch.inf)
    truth_N = logits_NV.logsumexp(1) - logits_NV.gather(1, items_N[:, None])[:, 0]
    ours = values(loss_N, tuple(leaves))
    truths = values(truth_N.where(known_N, 0), tuple(copies))
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for our, truth in zip(ours, truths, strict=True):
        size = truth.square().mean().sqrt() + truth.abs()
        assert ((our.double() - truth).abs() <= tolerance * (1 + size)).all()


def test_it_runs_on_fake_tensors() -> None:
    with simulated_gpu(Gpu(9, 132)), FakeTensorMode():
        states_ND = torch.empty(1000, 64, dtype=torch.bfloat16, requires_grad=True)
        table_VD = torch.empty(50_000, 64, requires_grad=True)
        targets_N = torch.empty(1000, dtype=torch.int64)
        loss = rece(states_ND, table_VD, targets_N, num_buckets=30, rounds=2)
        grads = torch.autograd.grad(loss, (states_ND, table_VD))
    assert [tuple(grad.shape) for grad in grads] == [(1000, 64), (50_000, 64)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_buckets": 0}, "num_buckets must be at least 1, not 0"),
        ({"num_buckets": 4, "rounds": 0}, "rounds must be at least 1, not 0"),
        ({"num_buckets": 4, "neighbours": -1}, "neighbours must be at least 0, not -1"),
        ({"num_buckets": 4, "buckets_per_chunk": 5}, "is 5, but there are 4 buckets"),
        ({"num_buckets": 32}, "makes 32 chunks, but table_VD has 31 items"),
        ({"num_buckets": 4, "reduction": "max"}, "reduction must be"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rece(*inputs(), **settings)
