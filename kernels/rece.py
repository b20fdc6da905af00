"""RECE: cross-entropy of each row against the items that hash near it, over several rounds.

Shapes: N rows, G chunks, R rows of a chunk, K candidates of a chunk, V items, D width, B buckets,
Q rounds.

In every round rows and items are sorted by their nearest of B random anchors, and both are cut
into G chunks. A chunk of rows is a group, the items of its chunk and of its neighbours are the
candidates: `candidate_ce` with explicit lists. An item that a row has met in an earlier round is
no candidate again: that is the union of the rounds, as the published log(count) of repeats is.
"""

from typing import Any

import torch
from torch import Tensor

from kernels import reference
from kernels._backend import check_interpreter, choose_backend
from kernels._checks import check_inputs, check_reduction
from kernels.candidate_ce import sampled_cross_entropy
from kernels.candidates import Explicit, Met


def reduced_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    *,
    num_buckets: int,
    buckets_per_chunk: int = 1,
    neighbours: int = 1,
    rounds: int = 1,
    logit_scale: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    deterministic: bool | None = None,
) -> Tensor:
    """Softmax over the target and the items that share a neighbourhood with the row (RECE).

    With U the items that the row meets in any round, but for its target t::

        loss = logsumexp(z_t, {z_j : j in U}) - z_t

    No correction is made for items that it does not meet. Anchors come from PyTorch's generator of
    the device. Rows that are ignored come last in every round.

    Args:
        states_ND: Output states: float16, bfloat16, float32 or float64.
        table_VD: Item table, V at least 2; its gradient is dense, for nearly every item is met.
        targets_N: Item ids, int64.
        num_buckets: Anchors of a round.
        buckets_per_chunk: As many buckets make a chunk, so there are num_buckets //
            buckets_per_chunk chunks, or as many as there are rows.
        neighbours: Chunks of items on either side that a chunk of rows meets, too.
        rounds: Q.
        logit_scale: Factor of the inner products, a number or a 0-dimensional tensor.
        ignore_index: A row with this target has loss 0 and no gradient.
        reduction: "mean" over the rows that are not ignored (0 where there is none), "sum" or
            "none".
        deterministic: As that of `sampled_cross_entropy`.

    Returns:
        The loss, at least float32: a scalar, or [N] with reduction "none".

    Raises:
        ValueError: An argument does not fit; the message names it. What cannot be seen on a GPU is
            as in `sampled_cross_entropy`.

    Source: RECE (arXiv 2408.02354). Chunks differ by one item at most, where the paper pads them.
    """
    check_inputs(states_ND, table_VD, targets_N)
    check_reduction(reduction)
    num_items = len(table_VD)
    for name, value, least in (
        ("num_buckets", num_buckets, 1),
        ("buckets_per_chunk", buckets_per_chunk, 1),
        ("neighbours", neighbours, 0),
        ("rounds", rounds, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
    if buckets_per_chunk > num_buckets:
        raise ValueError(
            f"buckets_per_chunk is {buckets_per_chunk}, but there are {num_buckets} buckets"
        )
    if num_buckets // buckets_per_chunk > num_items:
        raise ValueError(
            f"num_buckets // buckets_per_chunk makes {num_buckets // buckets_per_chunk} chunks, "
            f"but table_VD has {num_items} items"
        )
    anchors_QBD = torch.randn(
        rounds, num_buckets, states_ND.shape[1], dtype=torch.float32, device=states_ND.device
    )
    num_chunks = num_buckets // buckets_per_chunk
    losses_QN = torch.stack(
        [
            sampled_cross_entropy(
                states_ND.index_select(0, order_N),
                table_VD,
                targets_N[order_N],
                candidates,
                group_size=group_size,
                logit_scale=logit_scale,
                correction="none",
                ignore_index=ignore_index,
                reduction="none",
                deterministic=deterministic,
            ).index_select(0, order_N.argsort())
            for order_N, candidates, group_size in neighbourhoods(
                states_ND, table_VD, targets_N == ignore_index, anchors_QBD, num_chunks, neighbours
            )
        ]
    )
    loss_N: Tensor = _Union.apply(losses_QN)  # type: ignore[no-untyped-call]
    if reduction == "none":
        return loss_N
    loss = loss_N.sum()
    if reduction == "mean":
        loss = loss / (targets_N != ignore_index).sum().clamp(min=1)
    return loss


@torch.no_grad()
def neighbourhoods(
    states_ND: Tensor,
    table_VD: Tensor,
    is_ignored_N: Tensor,
    anchors_QBD: Tensor,
    num_chunks: int,
    neighbours: int,
) -> list[tuple[Tensor, Explicit, int]]:
    """Of each round the order of the rows, and their candidates in groups of a size.

    Chunk c of the items begins at the c V / G-th in their order.
    """
    num_rows, num_items, device = len(states_ND), len(table_VD), states_ND.device
    group_size = max(1, -(-num_rows // num_chunks))
    num_groups = -(-num_rows // group_size)
    row_numbers_QN = torch.empty(len(anchors_QBD), num_rows, dtype=torch.int32, device=device)
    item_numbers_QV = row_numbers_QN.new_empty(len(anchors_QBD), num_items)
    place_N = torch.arange(num_rows, device=device)
    place_V = torch.arange(num_items, device=device)
    chunk_G = torch.arange(num_groups, device=device)
    begins_G, ends_G = (
        -(-chunk_G.add(step).clamp(0, num_groups) * num_items // max(num_groups, 1))
        for step in (-neighbours, neighbours + 1)
    )
    num_met = -(-(1 + 2 * neighbours) * num_items // max(num_groups, 1))
    num_candidates = min(num_items, num_met)
    places_GK = begins_G[:, None] + torch.arange(num_candidates, device=device)
    found = []
    for number, anchors_BD in enumerate(anchors_QBD):
        buckets_N = nearest_anchors(states_ND, anchors_BD)
        order_N = buckets_N.masked_fill_(is_ignored_N, len(anchors_BD)).argsort(stable=True)
        order_V = nearest_anchors(table_VD, anchors_BD).argsort(stable=True)
        ids_GK = order_V.to(torch.int32)[places_GK.clamp(max=num_items - 1)]
        ids_GK.masked_fill_(places_GK >= ends_G[:, None], -1)
        met = None
        if number:
            earlier = row_numbers_QN[:number, order_N], item_numbers_QV[:number]
            met = Met(*earlier, neighbours)
        found.append((order_N, Explicit(ids_GK, met=met), group_size))
        row_numbers_QN[number, order_N] = (place_N // group_size).to(torch.int32)
        item_numbers_QV[number, order_V] = (place_V * num_groups // num_items).to(torch.int32)
    return found


def nearest_anchors(vectors_ND: Tensor, anchors_BD: Tensor) -> Tensor:
    """The anchor with the highest inner product with each vector, int32 [N]."""
    nearest_N = torch.empty(len(vectors_ND), dtype=torch.int32, device=vectors_ND.device)
    if choose_backend(vectors_ND, anchors_BD) == "triton":
        from kernels import triton_hash

        check_interpreter(vectors_ND.device)
        triton_hash.nearest_anchors(nearest_N, vectors_ND, anchors_BD)
        return nearest_N
    rows = max(1, reference.TILE_ELEMENTS // len(anchors_BD))
    for first in range(0, len(vectors_ND), rows):
        part_nD = vectors_ND[first : first + rows]
        scores_nB = part_nD @ anchors_BD.to(part_nD.dtype).T
        nearest_N[first : first + rows] = scores_nB.argmax(1)
    return nearest_N


class _Union(torch.autograd.Function):
    """The loss of the union of disjoint candidates, [N], from that of each round's, [Q, N].

    With s_q the sum of round q's candidates over the target, a round's loss is log(1 + s_q), and
    theirs together log(1 + sum of s_q).
    """

    @staticmethod
    def forward(ctx: Any, losses_QN: Tensor) -> Tensor:
        odds_QN = losses_QN + torch.log(-torch.expm1(-losses_QN))
        loss_N = torch.logaddexp(odds_QN.logsumexp(0), losses_QN.new_zeros(()))
        ctx.save_for_backward(losses_QN, loss_N)
        return loss_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> Tensor:
        losses_QN, loss_N = ctx.saved_tensors
        return grad_N * torch.exp(losses_QN - loss_N)
