"""SCE: cross-entropy within buckets of rows and items that lie in the same random directions.

Shapes: N rows, V items, D width, G buckets, R rows and K items of a bucket, P = G R pairs of a
bucket and one of its rows, C rows or items that a bucket chooses from.
"""

from typing import Any

import torch
from torch import Tensor

from kernels import reference
from kernels._checks import check_count, check_ids, check_reduction
from kernels._losses import checked_problem
from kernels.candidate_ce import sampled_cross_entropy
from kernels.candidates import Explicit
from kernels.ranking import top_k
from kernels.row_gradient import RowSink

_MOST_TILES = 64
"""Parts of the rows that a mixture is summed in: of very many rows a tile is larger instead."""


def scalable_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    *,
    num_buckets: int,
    bucket_rows: int,
    bucket_items: int,
    mix: bool = True,
    logit_scale: float | Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    table_gradient: str | RowSink = "dense",
    deterministic: bool | None = None,
) -> Tensor:
    """Cross-entropy of the rows against items that are likely to be hard for them (SCE).

    Bucket g has a random centre, and holds the rows and the items with the highest inner products
    with it. With I_g its items, t the target of its row n, z_v = logit_scale * <state, item v>::

        loss_gn = logsumexp(z_t, {z_v : v in I_g, v != t}) - z_t
        loss_n  = max {loss_gn : g holds n}

    The gradient is that of the bucket with the maximum, of one if there are several. A row that no
    bucket holds has loss 0 and no gradient. Neither has an ignored row; no bucket holds one, and
    where fewer rows are left than a bucket has room for, it holds them all.

    Rows and items are chosen in tiles. The largest tensors are the states of the P pairs and their
    gradient, [P, D]. Of many rows or items a bucket holds 97 % of the best and next best ones: see
    `exact` in `top_k`.

    Args:
        states_ND: Output states: float16, bfloat16, float32 or float64, in any layout.
        table_VD: Item table, V at least 2.
        targets_N: Item ids, int64.
        num_buckets: G, at least 1. Centres are drawn by torch's generator of the device.
        bucket_rows: R, from 1 to N.
        bucket_items: K, from 1 to V.
        mix: Centres are random mixtures of the states that are not ignored, in whose span they
            lie then: buckets differ more. Otherwise they are Gaussian.
        logit_scale: Factor of the inner products, a number or a 0-dimensional tensor (1 /
            temperature).
        ignore_index: A row with this target has loss 0 and no gradient.
        reduction: "mean" over the rows that buckets hold (0 where there is none), "sum" or "none".
        table_gradient: As in `sampled_cross_entropy`.
        deterministic: As in `sampled_cross_entropy`.

    Returns:
        The loss, at least float32: a scalar, or [N] with reduction "none". Of a row whose state is
        not finite it is NaN.

    Raises:
        ValueError: An argument does not fit; the message names it. On a GPU a target outside
            [0, V) is treated as in `sampled_cross_entropy`.

    Source: SCE (arXiv 2409.18721). The released code drops the rows whose loss is 0 from the mean;
    here these are in it if a bucket holds them.
    """
    problem = checked_problem(
        states_ND, table_VD, targets_N, None, logit_scale, ignore_index, deterministic
    )
    check_reduction(reduction)
    _check_sizes(num_buckets, bucket_rows, bucket_items, len(states_ND), len(table_VD))
    check_ids(problem)
    valid_N = targets_N != ignore_index
    centres_GD = bucket_centres(states_ND, valid_N, num_buckets, mix)
    rows_GR = bucket_contents(centres_GD, states_ND, bucket_rows, valid_N)
    items_GK = bucket_contents(centres_GD, table_VD, bucket_items)
    loss_N, is_covered_N = highest_losses(
        states_ND,
        table_VD,
        targets_N,
        rows_GR,
        items_GK,
        logit_scale=problem.logit_scale,
        ignore_index=ignore_index,
        table_gradient=table_gradient,
        deterministic=problem.deterministic,
    )
    # No bucket holds such a state and, after a mixture with it, any other: a model that diverges
    # would end with a loss of 0.
    is_finite_N = states_ND.detach().sum(1, dtype=loss_N.dtype).isfinite()
    loss_N = loss_N.masked_fill(valid_N & ~is_finite_N, torch.nan)
    if reduction == "none":
        return loss_N
    loss = loss_N.sum()
    if reduction == "mean":
        loss = loss / is_covered_N.sum().clamp(min=1)
    return loss


@torch.no_grad()
def bucket_centres(states_ND: Tensor, valid_N: Tensor, num_buckets: int, mix: bool) -> Tensor:
    """The random centres of the buckets [G, D], in the type of the states.

    Args:
        states_ND: Output states.
        valid_N: Whether a row is not ignored.
        num_buckets: G.
        mix: See `scalable_cross_entropy`.
    """
    num_rows, width = states_ND.shape
    dtype, device = states_ND.dtype, states_ND.device
    size: float = width**-0.25
    if not mix:
        return size * torch.randn(num_buckets, width, dtype=dtype, device=device)
    centres_GD = states_ND.new_zeros(
        num_buckets, width, dtype=torch.promote_types(dtype, torch.float32)
    )
    rows_per_tile = max(
        1, reference.TILE_ELEMENTS // max(num_buckets, width), -(-num_rows // _MOST_TILES)
    )
    with torch.autocast(device.type, enabled=False):
        for first in range(0, num_rows, rows_per_tile):
            rows = slice(first, first + rows_per_tile)
            states_nD = states_ND[rows].where(valid_N[rows, None], 0)
            omega_nG = torch.randn(len(states_nD), num_buckets, dtype=dtype, device=device)
            centres_GD += omega_nG.T @ states_nD
    return (size * centres_GD).to(dtype)


@torch.no_grad()
def bucket_contents(
    centres_GD: Tensor, vectors_CD: Tensor, size: int, valid_C: Tensor | None = None
) -> Tensor:
    """The vectors with the highest inner products with each centre.

    Args:
        centres_GD: Centres of the buckets.
        vectors_CD: States or items.
        size: How many a bucket has room for.
        valid_C: Which of them a bucket may hold; None: all.

    Returns:
        Their numbers [G, size], int32; -1 where there are no more, or which are not finite.
    """
    if valid_C is not None:
        # Whose score is NaN has no place in a list.
        vectors_CD = vectors_CD.masked_fill(~valid_C[:, None], torch.nan)
    return top_k(centres_GD, vectors_CD, size, exact=False).to(torch.int32)


def highest_losses(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    rows_GR: Tensor,
    items_GK: Tensor,
    *,
    logit_scale: Tensor | None = None,
    ignore_index: int = -100,
    table_gradient: str | RowSink = "dense",
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """The highest of each row's losses in the buckets that hold it.

    Args:
        states_ND: As the others, see `scalable_cross_entropy`.
        table_VD: Item table.
        targets_N: Item ids.
        rows_GR: Rows of each bucket, each at most once, -1 for none.
        items_GK: Its items, int64 or int32, each at most once, -1 for none.
        logit_scale: Factor of the inner products.
        ignore_index: A row with this target is in no bucket.
        table_gradient: As in `sampled_cross_entropy`.
        deterministic: As in `sampled_cross_entropy`.

    Returns:
        loss_N, 0 where no bucket holds the row, and whether one does.
    """
    rows_P = rows_GR.flatten().to(torch.int64)
    targets_P = targets_N[rows_P.clamp(min=0)].masked_fill(rows_P < 0, ignore_index)
    rows_P = rows_P.clamp(min=0)
    # The gradient needs it, and is computed when it has been filled.
    pair_of_row_N = torch.empty_like(targets_N)
    states_PD = _StatesOfPairs.apply(states_ND, rows_P, pair_of_row_N)  # type: ignore[no-untyped-call]
    loss_P = sampled_cross_entropy(
        states_PD,
        table_VD,
        targets_P,
        Explicit(items_GK, most_targets=len(targets_N)),
        group_size=rows_GR.shape[1],
        logit_scale=logit_scale,
        correction="none",
        ignore_index=ignore_index,
        reduction="none",
        table_gradient=table_gradient,
        deterministic=deterministic,
    )
    is_empty_P = targets_P == ignore_index
    pair_of_row_N.copy_(_highest_pairs(loss_P.detach(), rows_P, is_empty_P, len(targets_N)))
    loss_N = _LossesOfRows.apply(loss_P, rows_P, pair_of_row_N)  # type: ignore[no-untyped-call]
    return loss_N, pair_of_row_N < len(rows_P)


def _highest_pairs(loss_P: Tensor, rows_P: Tensor, is_empty_P: Tensor, num_rows: int) -> Tensor:
    """The first pair that has the highest loss of each row [N]; P where no bucket holds it."""
    num_pairs = len(rows_P)
    # That of an empty place is 0, and none is lower.
    highest_N = loss_P.new_zeros(num_rows).scatter_reduce(0, rows_P, loss_P, "amax")
    is_highest_P = ((loss_P == highest_N[rows_P]) | loss_P.isnan()) & ~is_empty_P
    pairs_P = torch.arange(num_pairs, device=rows_P.device).masked_fill(~is_highest_P, num_pairs)
    return rows_P.new_full((num_rows,), num_pairs).scatter_reduce(0, rows_P, pairs_P, "amin")


class _StatesOfPairs(torch.autograd.Function):
    """The states of the pairs' rows [P, D]; of the pairs of a row, one at most has a gradient.

    So it is gathered, not summed: the same in every run, and without a sort of P numbers.
    """

    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, rows_P: Tensor, pair_of_row_N: Tensor) -> Tensor:
        ctx.pair_of_row_N = pair_of_row_N
        return states_ND[rows_P]

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None, None]:
        return _of_rows(grad_PD, ctx.pair_of_row_N), None, None


class _LossesOfRows(torch.autograd.Function):
    """The loss of each row's pair [N]; gathered both ways too."""

    @staticmethod
    def forward(ctx: Any, loss_P: Tensor, rows_P: Tensor, pair_of_row_N: Tensor) -> Tensor:
        ctx.save_for_backward(rows_P, pair_of_row_N)
        return _of_rows(loss_P, pair_of_row_N)

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        rows_P, pair_of_row_N = ctx.saved_tensors
        pairs_P = torch.arange(len(rows_P), device=rows_P.device)
        is_other_P = pair_of_row_N[rows_P] != pairs_P
        return grad_N[rows_P].masked_fill(is_other_P, 0), None, None


def _of_rows(values: Tensor, pair_of_row_N: Tensor) -> Tensor:
    """What the pairs of the rows have [N, ...]; 0 for a row without one."""
    num_pairs = len(values)
    is_none_N = pair_of_row_N == num_pairs
    chosen = values[pair_of_row_N.clamp(max=num_pairs - 1)]
    return chosen.masked_fill_(is_none_N.view(-1, *[1] * (values.ndim - 1)), 0)


def _check_sizes(
    num_buckets: int, bucket_rows: int, bucket_items: int, num_rows: int, num_items: int
) -> None:
    """Raises a ValueError that names the first number which is out of range."""
    sizes = (("num_buckets", num_buckets), ("bucket_rows", bucket_rows))
    for name, size in (*sizes, ("bucket_items", bucket_items)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
    if bucket_rows > num_rows:
        raise ValueError(
            f"bucket_rows must be at most {num_rows}, the rows of states_ND, not {bucket_rows}"
        )
    if bucket_items > num_items:
        raise ValueError(
            f"bucket_items must be at most {num_items}, the items of table_VD, not {bucket_items}"
        )
    check_count("num_buckets * bucket_rows", "pairs", num_buckets * bucket_rows)
