"""Launches the table's gradient in Triton.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width, U touched items,
W = ceil(V / 32).
"""

from typing import Any

import torch
import triton
from torch import Tensor

from kernels import triton_lists, triton_table_gradient
from kernels.launch import cdiv, for_group, next_power_of_2
from kernels.reference import Problem
from kernels.triton_by_item import sum_by_item
from kernels.triton_plan import (
    Plan,
    Saved,
    TableGradients,
    Touched,
    Weights,
    gradients_like,
    is_given,
    is_uniform,
    lists_of,
    log_q_of,
    log_weight_of,
    plan,
    strides,
    weight_strides,
)

_PARTIAL_BYTES = 1 << 28
"""Partial rows that the deterministic mode keeps at once."""


def table_gradients(
    problem: Problem,
    table_gradient: str,
    saved: Saved,
    loss_weight_N: Tensor | None,
    lse_weight_N: Tensor | None,
    filter_eps: float | None,
) -> TableGradients:
    """Gradients of the table and of the bias."""
    cut = plan(problem, table_gradient)
    result = gradients_like(problem, table_gradient)
    result.bias_V.zero_()
    if cut.num_rows == 0:
        result.rows.zero_()
        result.num_touched.zero_()
        return result
    touched = Touched()
    if table_gradient == "touched":
        touched = _touch(problem, cut, saved, result)
    weights = (loss_weight_N, lse_weight_N)
    if cut.by_row:
        sum_by_item(problem, cut, saved, weights, result, touched)
    elif problem.deterministic and problem.draws is not None:
        _add_in_order(problem, cut, saved, weights, result, touched)
    else:
        _add_by_group(problem, cut, saved, weights, result, touched, filter_eps)
    return result


def _touch(problem: Problem, cut: Plan, saved: Saved, result: TableGradients) -> Touched:
    """The set of the items that have a gradient, their ranks in it and their list."""
    assert problem.draws is not None
    device = problem.states_ND.device
    words = cdiv(cut.num_items, 32)
    set_W = torch.zeros(words, dtype=torch.int32, device=device)
    targets_N = problem.targets_N
    targets_N = targets_N.masked_fill(targets_N == problem.ignore_index, -1)
    block = 1024
    if cut.by_row and not is_given(problem):
        grid = (cut.num_rows, cdiv(cut.num_candidates, block))
        triton_lists.mark_drawn[grid](
            set_W,
            problem.draws.alias_V2,
            problem.draws.seed,
            cut.num_items,
            cut.num_candidates,
            BLOCK=block,
        )
        marked = [targets_N]
    else:
        lists = lists_of(problem, saved.lists_GK)
        assert lists is not None
        marked = [lists, targets_N]
    for items in marked:
        triton_lists.mark_touched[(cdiv(items.numel(), block),)](
            set_W, items, items.numel(), cut.num_items, BLOCK=block
        )
    counts_W = torch.empty_like(set_W)
    triton_lists.count_touched[(cdiv(words, block),)](counts_W, set_W, words, BLOCK=block)
    ends_W = counts_W.cumsum(0, dtype=torch.int32)
    rank_W = ends_W - counts_W
    triton_lists.list_touched[(cdiv(words, 32),)](result.items_U, set_W, rank_W, words, BLOCK=32)
    result.num_touched.copy_(ends_W[-1:])
    return Touched(set_W, rank_W)


def _add_by_group(
    problem: Problem,
    cut: Plan,
    saved: Saved,
    weights: Weights,
    result: TableGradients,
    touched: Touched,
    filter_eps: float | None,
) -> None:
    rows = result.rows
    bias = result.bias_V if len(result.bias_V) else None
    lists = lists_of(problem, saved.lists_GK)
    if lists is None:
        _catalogue_gradient(problem, cut, saved, weights, rows, bias, filter_eps)
        return
    if cut.claims:
        block = max(1, 4096 // cut.config.block_d)
        triton_lists.clear_untouched[(cdiv(cut.num_items, block),)](
            rows, saved.touched_W, cut.num_items, cut.width, block, cut.config.block_d
        )
        _group_gradient(problem, cut, saved, weights, rows, bias, touched, lists, front=True)
    else:
        rows.zero_()
    _add_targets(problem, cut, saved, weights, rows, bias, touched)
    if cut.is_pool:
        parts = _parts(cut, cut.num_groups)
        _pool_gradient(problem, cut, saved, weights, rows, bias, touched, lists, parts, False)
    else:
        _group_gradient(problem, cut, saved, weights, rows, bias, touched, lists)


def _catalogue_gradient(
    problem: Problem,
    cut: Plan,
    saved: Saved,
    weights: Weights,
    rows: Tensor,
    bias: Tensor | None,
    filter_eps: float | None,
) -> None:
    # Only float32 can be added to; every row of another type is written once, by one program.
    parts = 1
    if rows.dtype == torch.float32 and not problem.deterministic:
        parts = _parts(cut, 1)
    if parts > 1:
        rows.zero_()
    _pool_gradient(
        problem, cut, saved, weights, rows, bias, Touched(), None, parts, parts == 1, filter_eps
    )


def _parts(cut: Plan, num_groups: int) -> int:
    """Programs that share the rows of a tile of candidates, so that the device is full."""
    tile = cut.config.pool
    tiles = cdiv(cut.num_candidates, tile.block_k) * num_groups * cut.blocks_of_width
    return max(1, min(cut.config.programs // tiles, cdiv(cut.group_size, tile.block_r)))


def _sources(
    problem: Problem,
    saved: Saved,
    lists: Tensor | None,
    weights: Weights,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Arguments that both table gradient kernels take, before and after the lists."""
    return (*problem[:3], lists), (
        problem.bias_V,
        problem.logit_scale,
        log_q_of(problem),
        log_weight_of(problem),
        saved.shift_N,
        *weights,
    )


def _group_gradient(
    problem: Problem,
    cut: Plan,
    saved: Saved,
    weights: Weights,
    rows: Tensor,
    bias: Tensor | None,
    touched: Touched,
    lists: Tensor,
    *,
    front: bool = False,
    first_group: int = 0,
    num_groups: int | None = None,
    by_slot: bool = False,
) -> None:
    tile = for_group(cut.config.group, cut.group_size)
    num_groups = cut.num_groups if num_groups is None else num_groups
    parts = max(1, min(cut.config.programs // num_groups, 64))
    parts = min(parts, cdiv(cut.num_candidates, tile.block_k))
    before, after = _sources(problem, saved, lists, weights)
    triton_table_gradient.group_gradient[(num_groups, parts)](
        *before,
        saved.num_first_G if cut.claims else None,
        *after,
        rows,
        bias,
        *touched,
        cut.num_rows,
        cut.num_candidates,
        cut.group_size,
        parts,
        first_group,
        *weight_strides(*weights),
        *strides(problem),
        D=cut.width,
        GIVEN=is_given(problem),
        FRONT=front,
        BY_SLOT=by_slot,
        UNIFORM=is_uniform(*weights),
        DTYPE=cut.config.dtype,
        PRECISION=cut.config.precision,
        BLOCK_R=tile.block_r,
        BLOCK_K=tile.block_k,
        BLOCK_D=cut.config.block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _pool_gradient(
    problem: Problem,
    cut: Plan,
    saved: Saved,
    weights: Weights,
    rows: Tensor,
    bias: Tensor | None,
    touched: Touched,
    lists: Tensor | None,
    parts: int,
    stores: bool,
    filter_eps: float | None = None,
    *,
    first_group: int = 0,
    num_groups: int | None = None,
    by_slot: bool = False,
) -> None:
    tile = cut.config.pool
    num_groups = cut.num_groups if num_groups is None else num_groups
    tiles = cdiv(cut.num_candidates, tile.block_k) * num_groups
    before, after = _sources(problem, saved, lists, weights)
    triton_table_gradient.pool_gradient[(tiles, parts, cut.blocks_of_width)](
        *before,
        *after,
        rows,
        bias,
        *touched,
        filter_eps,
        cut.num_rows,
        cut.num_candidates,
        cut.group_size,
        parts,
        first_group,
        *weight_strides(*weights),
        *strides(problem),
        D=cut.width,
        GIVEN=is_given(problem),
        STORE=stores,
        BY_SLOT=by_slot,
        UNIFORM=is_uniform(*weights),
        DTYPE=cut.config.dtype,
        PRECISION=cut.config.precision,
        BLOCK_R=tile.block_r,
        BLOCK_K=tile.block_k,
        BLOCK_D=cut.config.block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _add_targets(
    problem: Problem,
    cut: Plan,
    saved: Saved,
    weights: Weights,
    rows: Tensor,
    bias: Tensor | None,
    touched: Touched,
) -> None:
    block_d = cut.config.block_d
    block_r = max(1, 4096 // block_d)
    grid = (cdiv(cut.num_rows, block_r), cut.blocks_of_width)
    triton_table_gradient.add_targets[grid](
        problem.states_ND,
        problem.targets_N,
        problem.logit_scale,
        saved.target_error_N,
        *weights,
        rows,
        bias,
        *touched,
        cut.num_rows,
        cut.num_items,
        *weight_strides(*weights),
        problem.states_ND.stride(0),
        problem.ignore_index,
        D=cut.width,
        DTYPE=cut.config.dtype,
        BLOCK_R=block_r,
        BLOCK_D=block_d,
    )


def _target_errors(problem: Problem, saved: Saved, weights: Weights) -> Tensor:
    """Error of every row's target under the upstream weights, float32."""
    error_N = torch.zeros_like(saved.target_error_N)
    if weights[0] is not None:
        error_N += weights[0] * saved.target_error_N
    if weights[1] is not None:
        error_N += weights[1] * (1 + saved.target_error_N)
    return error_N


def _add_in_order(
    problem: Problem,
    cut: Plan,
    saved: Saved,
    weights: Weights,
    result: TableGradients,
    touched: Touched,
) -> None:
    """The deterministic form: partial rows of every slot, then sums in the order of the slots."""
    lists = lists_of(problem, saved.lists_GK)
    assert lists is not None
    has_bias = len(result.bias_V) > 0
    result.rows.zero_()
    groups = max(1, _PARTIAL_BYTES // (4 * cut.num_candidates * cut.width))
    groups = min(groups, cut.num_groups)
    empty = problem.states_ND.new_empty
    parts = empty(groups * cut.num_candidates, cut.width, dtype=torch.float32)
    bias_parts = empty(groups * cut.num_candidates if has_bias else 0, 1, dtype=torch.float32)
    for first in range(0, cut.num_groups, groups):
        num = min(groups, cut.num_groups - first)
        arguments = (problem, cut, saved, weights, parts, bias_parts if has_bias else None)
        where: dict[str, Any] = {"first_group": first, "num_groups": num, "by_slot": True}
        if not cut.is_pool:
            _group_gradient(*arguments, Touched(), lists, **where)
        else:
            _pool_gradient(*arguments, Touched(), lists, 1, False, **where)
        items, slots = lists[first : first + num].flatten().sort(stable=True)
        _add_segments(cut, result.rows, parts, slots, items, None, touched)
        if has_bias:
            _add_segments(cut, result.bias_V[:, None], bias_parts, slots, items, None, Touched())
    error_N = _target_errors(problem, saved, weights)
    targets_N = problem.targets_N.masked_fill(problem.targets_N == problem.ignore_index, -1)
    items, order = targets_N.sort(stable=True)
    if has_bias:
        _add_segments(cut, result.bias_V[:, None], error_N[:, None], order, items, None, Touched())
    if problem.logit_scale is not None:
        error_N = error_N * problem.logit_scale.to(torch.float32)
    states = problem.states_ND
    _add_segments(cut, result.rows, states, order, items, error_N, touched)


def _add_segments(
    cut: Plan,
    rows: Tensor,
    parts: Tensor,
    part_of_entry: Tensor,
    item_of_entry: Tensor,
    weight: Tensor | None,
    touched: Touched,
) -> None:
    width = rows.shape[1]
    block_d = min(cut.config.block_d, max(16, next_power_of_2(width)))
    grid = (len(item_of_entry), cdiv(width, block_d))
    is_state = weight is not None
    triton_table_gradient.add_segments[grid](
        rows,
        parts,
        part_of_entry,
        item_of_entry,
        weight,
        *touched,
        len(item_of_entry),
        parts.stride(0),
        cut.num_items,
        D=width,
        DTYPE=cut.config.dtype if is_state else triton.language.float32,
        BLOCK=16,
        BLOCK_D=block_d,
        num_warps=1,
    )
