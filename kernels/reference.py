"""The eager truth of the losses, in any float type, on any device.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, U touched items, D width, lower
case for a part.

Work goes in tiles of at most `TILE_ELEMENTS` elements and the backward pass computes its tiles
again, so the peak is bounded whatever N, K and V. Half-precision inputs are computed in float32.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.candidates import Draws, Met, draw

TILE_ELEMENTS = 1 << 22
"""Elements of the largest tensor of a tile (16 MiB in float32); a few are alive at once."""


class Problem(NamedTuple):
    """A loss of each row's target against the candidates of its group.

    Row n belongs to group n // group_size. With z_v = logit_scale * <state, item v> + bias_v::

        lse  = logsumexp(z_t, {z_j + w_j + a : candidates j that are neither t nor -1})
        loss = lse - z_t

    The correction "logq" makes w_j = -log q(j) and a = log(1 - q(t)) - log(candidates left), which
    for a uniform proposal is w_j = 0 and a = log(V - 1) - log(candidates left). Without it, or for
    lists of unknown origin, both are 0. A log-weight of `draws` is part of w_j in every case. A
    row without a candidate has loss 0. Section 2.2 of the loss reference derives all this.

    With a positive weight the loss is the sum of binary cross-entropies instead, without a
    correction, and there is no log-sum-exp::

        loss = positive_weight * softplus(-z_t) + sum of softplus(z_j + w_j)

    Attributes:
        states_ND: Output states.
        table_VD: Item table.
        targets_N: Item ids, int64.
        draws: The candidates; None: the whole catalogue, as one group.
        group_size: Rows that share their candidates.
        correction: "none" or "logq".
        corrected_value: Report the loss of corrected logQ (arXiv 2507.09331), which has the same
            gradient: (1 - p) * (logsumexp_j(z_j - log q'(j)) - z_t), p the target's probability
            and q' the proposal without the target. For the correction "logq" of a known q.
        positive_weight: Makes it binary cross-entropy: the weight of the target's term.
        bias_V: Added to the logits.
        logit_scale: Factor of the inner products, 0-dimensional.
        ignore_index: A row with this target has loss 0 and no gradient.
        deterministic: Add up gradients in a fixed order on a GPU too.
        operand_dtype: Type of the operands of Triton's matrix products, as autocast has it; the
            eager backend computes in `dtype` whatever it is.
    """

    states_ND: Tensor
    table_VD: Tensor
    targets_N: Tensor
    draws: Draws | None = None
    group_size: int = 1
    correction: str = "none"
    corrected_value: bool = False
    positive_weight: float | None = None
    bias_V: Tensor | None = None
    logit_scale: Tensor | None = None
    ignore_index: int = -100
    deterministic: bool = False
    operand_dtype: torch.dtype = torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """The type everything is computed in."""
        dtype = torch.promote_types(self.states_ND.dtype, self.table_VD.dtype)
        return torch.promote_types(dtype, torch.float32)


class Forward(NamedTuple):
    """Outputs, and what the backward pass needs of them; all 0 in a row that is ignored.

    Attributes:
        loss_N: Loss.
        lse_N: Log-sum-exp; 0 of binary cross-entropies.
        shift_N: lse - a: the probability of candidate j is exp(z_j + w_j - shift), and that of a
            binary cross-entropy sigmoid(z_j + w_j - shift) with a shift of 0.
        target_error_N: Gradient of the loss by the target's logit: its probability less 1, times
            the positive weight.
    """

    loss_N: Tensor
    lse_N: Tensor
    shift_N: Tensor
    target_error_N: Tensor


class Gradients(NamedTuple):
    """Gradients in the type of their input, that of the table in the type it was computed in."""

    states_ND: Tensor | None
    table_VD: Tensor | None
    bias_V: Tensor | None
    logit_scale: Tensor | None


def forward(problem: Problem) -> Forward:
    """Loss and log-sum-exp of every row."""
    draws, group_size = _candidates_of(problem)
    states_ND = problem.states_ND
    result = Forward(*(states_ND.new_empty(len(states_ND), dtype=problem.dtype) for _ in range(4)))
    for tile in _tiles(problem, draws, group_size):
        rows = _load_rows(problem, tile)
        positive_gr = (rows.scaled_grD * rows.target_items_grD).sum(-1)
        if problem.bias_V is not None:
            positive_gr += problem.bias_V[rows.targets_gr].to(problem.dtype)
        if problem.positive_weight is not None:
            loss_gr = problem.positive_weight * _softplus(-positive_gr)
            for part in _load_candidates(problem, draws, tile, rows):
                loss_gr += _softplus(part.logits_grk).sum(-1)
            zero_gr = torch.zeros_like(loss_gr)
            error_gr = problem.positive_weight * torch.sigmoid(-positive_gr)
            _write(result, tile, rows, Forward(loss_gr, zero_gr, zero_gr, -error_gr))
            continue
        negative_gr = torch.full_like(positive_gr, -torch.inf)
        left_gr = torch.zeros_like(positive_gr)
        for part in _load_candidates(problem, draws, tile, rows):
            negative_gr = torch.logaddexp(negative_gr, part.logits_grk.logsumexp(-1))
            left_gr += (~part.absent_grk).sum(-1)
        row_weight_gr = _row_weight(problem, draws, rows.targets_gr, left_gr)
        # log((1 - p) / p): loss and error are taken from it, not from differences that cancel.
        odds_gr = negative_gr + row_weight_gr - positive_gr
        loss_gr = torch.logaddexp(odds_gr, torch.zeros_like(odds_gr))
        error_gr = odds_gr.sigmoid()
        lse_gr = positive_gr + loss_gr
        if problem.corrected_value:
            loss_gr = (error_gr * (odds_gr + left_gr.log())).where(left_gr > 0, 0)
        _write(result, tile, rows, Forward(loss_gr, lse_gr, lse_gr - row_weight_gr, -error_gr))
    return result


def backward(
    problem: Problem,
    shift_N: Tensor,
    target_error_N: Tensor,
    grad_loss_N: Tensor,
    grad_lse_N: Tensor,
    needs: Sequence[bool],
    touched_U: Tensor | None = None,
) -> Gradients:
    """The gradients, tile by tile: of each logit the softmax, and the error of the target.

    Args:
        problem: As in `forward`.
        shift_N: From `forward`.
        target_error_N: From `forward`.
        grad_loss_N: Incoming gradient of the loss.
        grad_lse_N: Incoming gradient of the log-sum-exp.
        needs: Whether states, table, bias and logit scale need a gradient.
        touched_U: `touched_items` of the problem: the gradient of the table is that of these rows.

    Returns:
        The gradients that are needed; that of the table is [U, D] with `touched_U`.
    """
    draws, group_size = _candidates_of(problem)
    states_ND, table_VD = problem.states_ND, problem.table_VD
    dtype, (num_items, width) = problem.dtype, table_VD.shape
    num_grads = num_items if touched_U is None else len(touched_U)
    needs_states, needs_table, needs_bias, needs_scale = needs
    grad_states_ND = torch.empty_like(states_ND) if needs_states else None
    grad_table_UD = table_VD.new_zeros(num_grads, width, dtype=dtype) if needs_table else None
    grad_bias_V = table_VD.new_zeros(num_items, dtype=dtype) if needs_bias else None
    grad_scale = table_VD.new_zeros((), dtype=dtype) if needs_scale else None

    def row_of(ids: Tensor) -> Tensor:
        return ids if touched_U is None else torch.searchsorted(touched_U, ids)

    for tile in _tiles(problem, draws, group_size):
        rows = _load_rows(problem, tile)
        grad_loss_gr, grad_lse_gr, shift_gr, target_error_gr = (
            part_N[tile.rows].to(dtype).view_as(rows.valid_gr)
            for part_N in (grad_loss_N, grad_lse_N, shift_N, target_error_N)
        )
        grad_gr = (grad_loss_gr + grad_lse_gr).where(rows.valid_gr, 0)
        error_gr = grad_gr * target_error_gr + grad_lse_gr.where(rows.valid_gr, 0)
        # The sum of errors times items: the gradient of the scaled states.
        mixed_grD = error_gr[:, :, None] * rows.target_items_grD
        for part in _load_candidates(problem, draws, tile, rows):
            error_grk = part.logits_grk.sub_(shift_gr[:, :, None])
            if problem.positive_weight is None:
                error_grk.exp_()
            else:
                error_grk.sigmoid_()
            error_grk *= grad_gr[:, :, None]
            if needs_states or needs_scale:
                mixed_grD += error_grk @ part.items_gkD
            if grad_table_UD is not None:
                items_gkD = error_grk.transpose(1, 2) @ rows.scaled_grD
                _add(grad_table_UD, row_of(part.ids_gk), items_gkD, problem.deterministic)
            if grad_bias_V is not None:
                _add(grad_bias_V, part.ids_gk, error_grk.sum(1), problem.deterministic)
        if grad_table_UD is not None:
            items_grD = error_gr[:, :, None] * rows.scaled_grD
            _add(grad_table_UD, row_of(rows.targets_gr), items_grD, problem.deterministic)
        if grad_bias_V is not None:
            _add(grad_bias_V, rows.targets_gr, error_gr, problem.deterministic)
        if grad_scale is not None:
            grad_scale += (mixed_grD * rows.states_grD).sum()
        if grad_states_ND is not None:
            grad_states_ND[tile.rows] = _scaled(problem, mixed_grD).flatten(0, 1)
    if problem.bias_V is not None and grad_bias_V is not None:
        grad_bias_V = grad_bias_V.to(problem.bias_V.dtype)
    if problem.logit_scale is not None and grad_scale is not None:
        grad_scale = grad_scale.to(problem.logit_scale.dtype)
    return Gradients(grad_states_ND, grad_table_UD, grad_bias_V, grad_scale)


def touched_items(problem: Problem) -> Tensor:
    """The items whose rows of the table get a gradient.

    Returns:
        ids_U, int64, sorted and distinct: all candidates, whether or not they collide, and the
        targets of the rows that are not ignored.
    """
    draws, group_size = _candidates_of(problem)
    num_items, targets_N = len(problem.table_VD), problem.targets_N
    # The last element is for -1.
    touched = torch.zeros(num_items + 1, dtype=torch.bool, device=targets_N.device)
    touched[targets_N.masked_fill(targets_N == problem.ignore_index, -1)] = True
    num_groups = -(-len(targets_N) // group_size)
    groups_per_tile = max(1, TILE_ELEMENTS // max(draws.num_candidates, 1))
    for first in range(0, num_groups, groups_per_tile):
        groups = min(groups_per_tile, num_groups - first)
        touched[draw(draws, first, groups, num_items, targets_N.device)] = True
    return touched[:num_items].nonzero()[:, 0]


class _Tile(NamedTuple):
    """Rows first_row .. first_row + groups * rows_per_group - 1, of groups first_group and on."""

    first_row: int
    rows_per_group: int
    first_group: int
    groups: int
    candidates_per_part: int

    @property
    def rows(self) -> slice:
        return slice(self.first_row, self.first_row + self.groups * self.rows_per_group)


class _Rows(NamedTuple):
    """The rows of a tile. Where ignored, the state is 0 and the target item 0."""

    valid_gr: Tensor
    targets_gr: Tensor
    states_grD: Tensor
    scaled_grD: Tensor
    target_items_grD: Tensor


class _Candidates(NamedTuple):
    """A part of the candidates of a tile; the logit is -inf, without a, where one is absent."""

    ids_gk: Tensor
    items_gkD: Tensor
    logits_grk: Tensor
    absent_grk: Tensor


def _candidates_of(problem: Problem) -> tuple[Draws, int]:
    """The candidates and the group size, where the whole catalogue is one list for one group."""
    if problem.draws is not None:
        return problem.draws, problem.group_size
    num_items = len(problem.table_VD)
    ids_GK = torch.arange(num_items, device=problem.table_VD.device)[None]
    return Draws(num_items, ids_GK=ids_GK), max(len(problem.states_ND), 1)


def _tiles(problem: Problem, draws: Draws, group_size: int) -> Iterator[_Tile]:
    """Cuts the rows into tiles of whole groups or, where one is too large, of parts of one."""
    num_rows, width = problem.states_ND.shape
    num_candidates = draws.num_candidates
    # Half the rows of a square and twice its candidates: neither is loaded for only a few others.
    rows = max(width, math.isqrt(TILE_ELEMENTS) // 2, 1)
    part = max(1, min(num_candidates, TILE_ELEMENTS // rows))
    largest_part = max(1, TILE_ELEMENTS // max(part, width))
    per_group = max(num_candidates, part * width, part * group_size, group_size * width)
    row = 0
    while row < num_rows:
        group, offset = divmod(row, group_size)
        groups = min((num_rows - row) // group_size, max(1, TILE_ELEMENTS // per_group))
        if group_size <= largest_part and groups > 0:
            tile = _Tile(row, group_size, group, groups, part)
        else:
            rest = min(group_size - offset, num_rows - row)
            tile = _Tile(row, min(rest, largest_part), group, 1, part)
        yield tile
        row = tile.rows.stop


def _load_rows(problem: Problem, tile: _Tile) -> _Rows:
    shape, dtype = (tile.groups, tile.rows_per_group), problem.dtype
    targets_gr = problem.targets_N[tile.rows].view(shape)
    valid_gr = targets_gr != problem.ignore_index
    targets_gr = targets_gr.where(valid_gr, 0)
    states_grD = problem.states_ND[tile.rows].to(dtype).view(*shape, problem.states_ND.shape[1])
    # What an ignored row holds, NaN included, reaches nothing.
    states_grD = states_grD.where(valid_gr[:, :, None], 0)
    scaled_grD = _scaled(problem, states_grD)
    return _Rows(
        valid_gr, targets_gr, states_grD, scaled_grD, problem.table_VD[targets_gr].to(dtype)
    )


def _load_candidates(
    problem: Problem, draws: Draws, tile: _Tile, rows: _Rows
) -> Iterator[_Candidates]:
    """The candidates of a tile, part by part."""
    table_VD, dtype = problem.table_VD, problem.dtype
    groups = slice(tile.first_group, tile.first_group + tile.groups)
    drawn_gK = draw(draws, tile.first_group, tile.groups, len(table_VD), table_VD.device)
    for first in range(0, draws.num_candidates, tile.candidates_per_part):
        slots = slice(first, first + tile.candidates_per_part)
        drawn_gk = drawn_gK[:, slots]
        absent_grk = (drawn_gk == -1)[:, None] | (drawn_gk[:, None] == rows.targets_gr[:, :, None])
        absent_grk |= ~rows.valid_gr[:, :, None]
        ids_gk = drawn_gk.clamp(min=0)
        if draws.met is not None:
            _mark_met(absent_grk, draws.met, tile, ids_gk)
        items_gkD = table_VD[ids_gk].to(dtype)
        logits_grk = rows.scaled_grD @ items_gkD.transpose(1, 2)
        if problem.bias_V is not None:
            logits_grk += problem.bias_V[ids_gk].to(dtype)[:, None]
        if problem.correction == "logq" and draws.log_q_V is not None:
            logits_grk -= draws.log_q_V[ids_gk].to(dtype)[:, None]
        if draws.log_weight_GK is not None:
            logits_grk += draws.log_weight_GK[groups, slots].to(dtype)[:, None]
        logits_grk.masked_fill_(absent_grk, -torch.inf)
        yield _Candidates(ids_gk, items_gkD, logits_grk, absent_grk)


def _mark_met(absent_grk: Tensor, met: Met, tile: _Tile, ids_gk: Tensor) -> None:
    for row_numbers_N, item_numbers_V in zip(met.row_numbers_QN, met.item_numbers_QV, strict=True):
        numbers_gr = row_numbers_N[tile.rows].view(absent_grk.shape[:2])
        apart_grk = numbers_gr[:, :, None] - item_numbers_V[ids_gk][:, None]
        absent_grk |= apart_grk.abs() <= met.reach


def _softplus(values: Tensor) -> Tensor:
    """Exact, where that of PyTorch is linear from 20 on."""
    return torch.logaddexp(values, torch.zeros_like(values))


def _write(result: Forward, tile: _Tile, rows: _Rows, values: Forward) -> None:
    """Writes the outputs of a tile, 0 where a row is ignored."""
    for total_N, value_gr in zip(result, values, strict=True):
        total_N[tile.rows] = value_gr.where(rows.valid_gr, 0).flatten()


def _row_weight(problem: Problem, draws: Draws, targets_gr: Tensor, left_gr: Tensor) -> Tensor:
    """The part of the correction that all candidates of a row share: a of `Problem`."""
    left_gr = left_gr.clamp(min=1)
    if problem.correction == "logq" and draws.log_q_V is not None:
        # 1 - q(t), without cancellation; it may be 0 only where nothing but t is ever drawn.
        others_gr = -torch.expm1(draws.log_q_V[targets_gr].to(problem.dtype))
        return torch.log((others_gr / left_gr).clamp(min=torch.finfo(problem.dtype).tiny))
    if problem.correction == "logq" and draws.ids_GK is None:
        return torch.log((len(problem.table_VD) - 1) / left_gr)
    return torch.zeros_like(left_gr)


def _scaled(problem: Problem, values: Tensor) -> Tensor:
    return values if problem.logit_scale is None else values * problem.logit_scale.to(values.dtype)


def _add(total: Tensor, index: Tensor, values: Tensor, deterministic: bool) -> None:
    """Adds values to the rows of total that index names; nothing where total has no row."""
    index, values = index.flatten(), values.flatten(0, 1)
    if len(total) == 0:
        return
    if deterministic and total.is_cuda:
        total.index_put_((index,), values, accumulate=True)
    else:
        total.index_add_(0, index, values)  # in order on a CPU
