"""The eager truth of every op, in any float type, on any device.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width, lower case for a part.

Work goes in tiles of at most `TILE_ELEMENTS` elements and the backward pass computes its tiles
again, so the peak is bounded whatever N, K and V. Half-precision inputs are computed in float32.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.candidates import Uniform

TILE_ELEMENTS = 1 << 22
"""Elements of the largest tensor of a tile (16 MiB in float32); a few are alive at once."""


class _Tile(NamedTuple):
    """Rows first_row .. first_row + groups * rows_per_group - 1, of groups first_group and on."""

    first_row: int
    rows_per_group: int
    first_group: int
    groups: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.groups * self.rows_per_group)


class _TileValues(NamedTuple):
    states_grD: Tensor
    targets_gr: Tensor
    target_rows_grD: Tensor
    positive_gr: Tensor
    ids_gK: Tensor
    rows_gKD: Tensor
    logits_grK: Tensor


def _tiles(num_rows: int, group_size: int, num_candidates: int, width: int) -> Iterator[_Tile]:
    """Cuts the rows into tiles of whole groups or, where one is too large, of parts of one."""
    largest_part = max(1, TILE_ELEMENTS // num_candidates)
    per_group = num_candidates * max(group_size, width)
    row = 0
    while row < num_rows:
        group, offset = divmod(row, group_size)
        groups = min((num_rows - row) // group_size, max(1, TILE_ELEMENTS // per_group))
        if group_size <= largest_part and groups > 0:
            tile = _Tile(row, group_size, group, groups)
        else:
            rest = min(group_size - offset, num_rows - row)
            tile = _Tile(row, min(rest, largest_part), group, 1)
        yield tile
        row = tile.rows.stop


def _compute_dtype(states_ND: Tensor, table_VD: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(states_ND.dtype, table_VD.dtype), torch.float32)


def _without_autocast(
    backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]],
) -> Callable[[Any, Tensor], tuple[Tensor | None, ...]]:
    """For a loss that is differentiated inside an autocast region."""

    def in_full_precision(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_N.device.type, enabled=False):
            return backward(ctx, grad_N)

    return in_full_precision


class SampledCrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row against the candidates of its group; see `candidate_ce`.

    `apply(states_ND, table_VD, targets_N, candidates, group_size)` returns loss_N.
    """

    @staticmethod
    def _logits(
        tile: _Tile,
        states_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        candidates: Uniform,
        dtype: torch.dtype,
    ) -> _TileValues:
        num_items, width = table_VD.shape
        shape = (tile.groups, tile.rows_per_group)
        states_grD = states_ND[tile.rows].to(dtype).view(*shape, width)
        targets_gr = targets_N[tile.rows].view(shape)
        ids_gK = candidates.draw(tile.first_group, tile.groups, num_items, table_VD.device)
        rows_gKD = table_VD[ids_gK].to(dtype)
        target_rows_grD = table_VD[targets_gr].to(dtype)
        positive_gr = (states_grD * target_rows_grD).sum(-1)
        logits_grK = states_grD @ rows_gKD.transpose(1, 2)
        collides_grK = targets_gr[:, :, None] == ids_gK[:, None, :]
        misses_gr = (candidates.num_candidates - collides_grK.sum(-1)).clamp(min=1)
        # log(V-1) - log(K-r): uniform proposal, renormalised without the target.
        correction_gr = torch.log((num_items - 1) / misses_gr.to(dtype))
        logits_grK += correction_gr[:, :, None]
        logits_grK.masked_fill_(collides_grK, -torch.inf)
        return _TileValues(
            states_grD, targets_gr, target_rows_grD, positive_gr, ids_gK, rows_gKD, logits_grK
        )

    @staticmethod
    def forward(
        ctx: Any,
        states_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        candidates: Uniform,
        group_size: int,
    ) -> Tensor:
        """Loss of every row, float32 or wider."""
        dtype = _compute_dtype(states_ND, table_VD)
        num_rows, width = states_ND.shape
        loss_N = states_ND.new_empty(num_rows, dtype=dtype)
        lse_N = torch.empty_like(loss_N)
        for tile in _tiles(num_rows, group_size, candidates.num_candidates, width):
            values = SampledCrossEntropy._logits(
                tile, states_ND, table_VD, targets_N, candidates, dtype
            )
            lse_gr = torch.logaddexp(values.positive_gr, values.logits_grK.logsumexp(-1))
            lse_N[tile.rows] = lse_gr.flatten()
            loss_N[tile.rows] = (lse_gr - values.positive_gr).flatten()
        ctx.save_for_backward(states_ND, table_VD, targets_N, lse_N)
        ctx.candidates, ctx.group_size = candidates, group_size
        return loss_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_without_autocast
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        """Softmax minus one-hot, times the incoming gradient, tile by tile."""
        states_ND, table_VD, targets_N, lse_N = ctx.saved_tensors
        candidates, group_size = ctx.candidates, ctx.group_size
        num_items, width = table_VD.shape
        dtype = _compute_dtype(states_ND, table_VD)
        needs_states, needs_table = ctx.needs_input_grad[:2]
        grad_states_ND = torch.empty_like(states_ND) if needs_states else None
        grad_table_VD = table_VD.new_zeros(num_items, width, dtype=dtype) if needs_table else None
        for tile in _tiles(states_ND.shape[0], group_size, candidates.num_candidates, width):
            states_grD, targets_gr, target_rows_grD, positive_gr, ids_gK, rows_gKD, logits_grK = (
                SampledCrossEntropy._logits(
                    tile, states_ND, table_VD, targets_N, candidates, dtype
                )
            )
            lse_gr = lse_N[tile.rows].view_as(positive_gr)
            grad_gr = grad_N[tile.rows].to(dtype).view_as(positive_gr)
            error_gr = (torch.exp(positive_gr - lse_gr) - 1) * grad_gr
            error_grK = logits_grK.sub_(lse_gr[:, :, None]).exp_().mul_(grad_gr[:, :, None])
            if grad_states_ND is not None:
                grad_grD = error_grK @ rows_gKD + error_gr[:, :, None] * target_rows_grD
                grad_states_ND[tile.rows] = grad_grD.view(-1, width).to(states_ND.dtype)
            if grad_table_VD is not None:
                grad_rows_gKD = error_grK.transpose(1, 2) @ states_grD
                grad_table_VD.index_add_(0, ids_gK.flatten(), grad_rows_gKD.view(-1, width))
                grad_targets_grD = error_gr[:, :, None] * states_grD
                grad_table_VD.index_add_(0, targets_gr.flatten(), grad_targets_grD.view(-1, width))
        if grad_table_VD is not None:
            grad_table_VD = grad_table_VD.to(table_VD.dtype)
        return grad_states_ND, grad_table_VD, None, None, None


class FullCrossEntropy(torch.autograd.Function):
    """Cross-entropy of each row over the whole catalogue; see `full_ce`.

    `apply(states_ND, table_VD, targets_N)` returns loss_N.
    """

    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> Tensor:
        """Loss of every row, float32 or wider."""
        dtype = _compute_dtype(states_ND, table_VD)
        loss_N = states_ND.new_empty(states_ND.shape[0], dtype=dtype)
        lse_N = torch.empty_like(loss_N)
        items_DV = table_VD.to(dtype).T
        for rows in _row_tiles(states_ND.shape[0], table_VD.shape[0]):
            logits_nV = states_ND[rows].to(dtype) @ items_DV
            lse_N[rows] = logits_nV.logsumexp(-1)
            loss_N[rows] = lse_N[rows] - logits_nV.gather(1, targets_N[rows, None])[:, 0]
        ctx.save_for_backward(states_ND, table_VD, targets_N, lse_N)
        return loss_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    @_without_autocast
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        """Softmax minus one-hot, times the incoming gradient, tile by tile."""
        states_ND, table_VD, targets_N, lse_N = ctx.saved_tensors
        dtype = _compute_dtype(states_ND, table_VD)
        needs_states, needs_table = ctx.needs_input_grad[:2]
        grad_states_ND = torch.empty_like(states_ND) if needs_states else None
        items_VD = table_VD.to(dtype)
        grad_table_VD = torch.zeros_like(items_VD) if needs_table else None
        for rows in _row_tiles(states_ND.shape[0], table_VD.shape[0]):
            states_nD = states_ND[rows].to(dtype)
            grad_n1 = grad_N[rows, None].to(dtype)
            error_nV = (states_nD @ items_VD.T - lse_N[rows, None]).exp_()
            error_nV.scatter_add_(1, targets_N[rows, None], -torch.ones_like(grad_n1))
            error_nV *= grad_n1
            if grad_states_ND is not None:
                grad_states_ND[rows] = (error_nV @ items_VD).to(states_ND.dtype)
            if grad_table_VD is not None:
                grad_table_VD.addmm_(error_nV.T, states_nD)
        if grad_table_VD is not None:
            grad_table_VD = grad_table_VD.to(table_VD.dtype)
        return grad_states_ND, grad_table_VD, None


def _row_tiles(num_rows: int, num_items: int) -> Iterator[slice]:
    rows_per_tile = max(1, TILE_ELEMENTS // num_items)
    for first_row in range(0, num_rows, rows_per_tile):
        yield slice(first_row, min(first_row + rows_per_tile, num_rows))


def top_k(
    states_BD: Tensor, table_VD: Tensor, k: int, seen: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The k best items of each row; see `ranking.top_k`."""
    num_rows, num_items = states_BD.shape[0], table_VD.shape[0]
    best_Bk = states_BD.new_empty(num_rows, 0, dtype=torch.int64)
    if num_rows == 0:
        return states_BD.new_empty(0, k, dtype=torch.int64)
    items_per_tile = max(k, TILE_ELEMENTS // num_rows)
    for first in range(0, num_items, items_per_tile):
        last = min(first + items_per_tile, num_items)
        scores_Bv = states_BD.float() @ table_VD[first:last].float().T
        if seen is not None:
            seen_rows, seen_ids = seen
            inside = (seen_ids >= first) & (seen_ids < last)
            scores_Bv[seen_rows[inside], seen_ids[inside] - first] = -torch.inf
        keys_Bv = _sort_keys(scores_Bv, first)
        merged = torch.cat([best_Bk, keys_Bv], dim=1)
        best_Bk = merged.topk(min(k, merged.shape[1]), dim=1).values
    ids_Bk = 0xFFFF_FFFF - (best_Bk & 0xFFFF_FFFF)
    ids_Bk = ids_Bk.masked_fill(best_Bk <= _LAST_ABSENT_KEY, -1)
    return torch.nn.functional.pad(ids_Bk, (0, k - ids_Bk.shape[1]), value=-1)


# Ordered integer of -inf; every key of an absent item lies at or below the end of its range.
_LAST_ABSENT_KEY = ((-0x7F80_0001) << 32) | 0xFFFF_FFFF


def _sort_keys(scores_Bv: Tensor, first: int) -> Tensor:
    """One int64 per score that sorts by score and then, lower first, by item id."""
    # Adding zero makes -0.0 equal to 0.0; the xor makes the bits of a float sort as an integer.
    bits_Bv = (
        scores_Bv.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0
    ).view(torch.int32)
    ordered_Bv = (bits_Bv ^ ((bits_Bv >> 31) & 0x7FFF_FFFF)).to(torch.int64)
    ids_v = torch.arange(first, first + scores_Bv.shape[1], device=scores_Bv.device)
    return (ordered_Bv << 32) | (0xFFFF_FFFF - ids_v)
