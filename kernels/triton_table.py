"""Launches the table's gradient in Triton.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width, U touched items,
W = ceil(V / 32).
"""

from typing import Any

import torch
import triton
from torch import Tensor

from kernels import triton_lists, triton_table_gradient
from kernels.launch import Tile, cdiv, for_group, next_power_of_2
from kernels.reference import Problem
from kernels.triton_by_item import sum_by_item
from kernels.triton_plan import (
    Backward,
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
    met_of,
    plan,
    strides,
    touched_like,
    weight_strides,
)
from kernels.triton_row_gradient import rank_items

_PARTIAL_BYTES = 1 << 28
"""Partial rows that the deterministic mode keeps at once."""


def touched_items(problem: Problem, lists_GK: Tensor) -> Touched:
    """The items that have a gradient: every row's target and candidates."""
    assert problem.draws is not None
    touched = touched_like(problem)
    set_W = touched.set_W.zero_()
    num_items, block = len(problem.table_VD), 1024
    marked = [problem.targets_N]
    if 0 <= problem.ignore_index < num_items:
        is_ignored_N = problem.targets_N == problem.ignore_index
        marked = [problem.targets_N.masked_fill(is_ignored_N, -1)]
    lists = lists_of(problem, lists_GK)
    if lists is not None:
        marked.append(lists)
    elif len(problem.targets_N):
        num_candidates = problem.draws.num_candidates
        grid = (len(problem.targets_N), cdiv(num_candidates, block))
        triton_lists.mark_drawn[grid](
            set_W,
            problem.draws.alias_V2,
            *problem.draws.key,
            num_items,
            num_candidates,
            BLOCK=block,
        )
    for items in marked:
        if items.numel():
            triton_lists.mark_touched[(cdiv(items.numel(), block),)](
                set_W, items, items.numel(), num_items, BLOCK=block
            )
    rank_items(touched)
    return touched


def table_gradients(
    problem: Problem,
    table_gradient: str,
    saved: Saved,
    touched: Touched | None,
    loss_weight_N: Tensor | None,
    lse_weight_N: Tensor | None,
    filter_eps: float | None,
) -> TableGradients:
    """Gradients of the table and of the bias."""
    cut = plan(problem, table_gradient)
    result = gradients_like(problem, table_gradient, touched)
    result.bias_V.zero_()
    if cut.num_rows == 0:
        result.rows.zero_()
        return result
    lists_GK = lists_of(problem, saved.lists_GK)
    task = Backward(problem, cut, saved, (loss_weight_N, lse_weight_N), lists_GK, touched)
    if cut.by_row:
        sum_by_item(task, result)
    elif problem.draws is None:
        _catalogue_gradient(task, result, filter_eps)
    elif problem.deterministic:
        _add_in_order(task, result)
    else:
        _add_by_group(task, result)
    return result


def _add_by_group(task: Backward, result: TableGradients) -> None:
    cut, rows, bias = task.cut, result.rows, _bias(result)
    if cut.claims:
        block = max(1, 4096 // cut.config.block_d)
        triton_lists.clear_untouched[(cdiv(cut.num_items, block),)](
            rows, task.saved.touched_W, cut.num_items, cut.width, block, cut.config.block_d
        )
        _group_gradient(task, rows, bias, front=True)
    else:
        rows.zero_()
    _add_targets(task, rows, bias)
    if cut.is_pool:
        _pool_gradient(task, rows, bias, parts=_parts(cut))
    else:
        _group_gradient(task, rows, bias)


def _catalogue_gradient(task: Backward, result: TableGradients, filter_eps: float | None) -> None:
    rows = result.rows
    # Only float32 can be added to; every row of another type is written once, by one program.
    addable = rows.dtype == torch.float32 and not task.problem.deterministic
    parts = _parts(task.cut) if addable else 1
    if parts > 1:
        rows.zero_()
    _pool_gradient(task, rows, _bias(result), parts=parts, filter_eps=filter_eps)


def _bias(result: TableGradients) -> Tensor | None:
    return result.bias_V if len(result.bias_V) else None


def _parts(cut: Plan) -> int:
    """Programs that share the rows of a tile of candidates, so that the device is full."""
    tile = cut.config.pool
    tiles = cdiv(cut.num_candidates, tile.block_k) * cut.num_groups * cut.blocks_of_width
    return max(1, min(cut.config.programs // tiles, cdiv(cut.group_size, tile.block_r)))


def _group_gradient(
    task: Backward,
    rows: Tensor,
    bias: Tensor | None,
    *,
    front: bool = False,
    slots_of: range | None = None,
) -> None:
    """Launches `group_gradient`; slots_of: groups whose slots have a row each."""
    cut = task.cut
    tile = for_group(cut.config.group, cut.group_size)
    groups = range(cut.num_groups) if slots_of is None else slots_of
    parts = max(1, min(cut.config.programs // len(groups), 64))
    parts = min(parts, cdiv(cut.num_candidates, tile.block_k))
    num_first_G = task.saved.num_first_G if cut.claims else None
    arguments, constants = _arguments(task, num_first_G, rows, bias, parts, groups.start, tile)
    triton_table_gradient.group_gradient[(len(groups), parts)](
        *arguments, **constants, FRONT=front, BY_SLOT=slots_of is not None
    )


def _pool_gradient(
    task: Backward,
    rows: Tensor,
    bias: Tensor | None,
    *,
    parts: int = 1,
    filter_eps: float | None = None,
    slots_of: range | None = None,
) -> None:
    """Launches `pool_gradient`; slots_of: groups whose slots have a row each."""
    cut = task.cut
    tile = cut.config.pool
    groups = range(cut.num_groups) if slots_of is None else slots_of
    tiles = cdiv(cut.num_candidates, tile.block_k) * len(groups)
    arguments, constants = _arguments(task, filter_eps, rows, bias, parts, groups.start, tile)
    # Over the catalogue each row has one program, unless several share the rows.
    stores = task.problem.draws is None and parts == 1
    triton_table_gradient.pool_gradient[(tiles, parts, cut.blocks_of_width)](
        *arguments, **constants, STORE=stores, BY_SLOT=slots_of is not None
    )


def _arguments(
    task: Backward,
    own: Tensor | float | None,
    rows: Tensor,
    bias: Tensor | None,
    parts: int,
    first_group: int,
    tile: Tile,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of both kernels; `own` is the one that each has to itself."""
    problem, cut, weights = task.problem, task.cut, task.weights
    numbers, rounds_and_reach = met_of(problem)
    arguments = (
        *problem[:3],
        task.lists_GK,
        problem.bias_V,
        problem.logit_scale,
        log_q_of(problem),
        log_weight_of(problem),
        *numbers,
        task.saved.shift_N,
        *weights,
        own,
        rows,
        bias,
        *task.places,
        cut.num_rows,
        cut.num_items,
        cut.num_candidates,
        cut.group_size,
        parts,
        first_group,
        *rounds_and_reach,
        *weight_strides(*weights),
        *strides(problem),
    )
    constants = {
        "D": cut.width,
        "GIVEN": is_given(problem),
        "UNIFORM": is_uniform(problem, *weights),
        "BINARY": problem.positive_weight is not None,
        "DTYPE": cut.config.dtype,
        "PRECISION": cut.config.precision,
        "BLOCK_R": tile.block_r,
        "BLOCK_K": tile.block_k,
        "BLOCK_D": cut.config.block_d,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    return arguments, constants


def _add_targets(task: Backward, rows: Tensor, bias: Tensor | None) -> None:
    problem, cut = task.problem, task.cut
    block_d = cut.config.block_d
    block_r = max(1, 4096 // block_d)
    grid = (cdiv(cut.num_rows, block_r), cut.blocks_of_width)
    triton_table_gradient.add_targets[grid](
        problem.states_ND,
        problem.targets_N,
        problem.logit_scale,
        task.saved.target_error_N,
        *task.weights,
        rows,
        bias,
        *task.places,
        cut.num_rows,
        cut.num_items,
        *weight_strides(*task.weights),
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


def _add_in_order(task: Backward, result: TableGradients) -> None:
    """The deterministic form: partial rows of every slot, then sums in the order of the slots."""
    problem, cut, lists_GK = task.problem, task.cut, task.lists_GK
    assert lists_GK is not None
    bias_V1 = None if _bias(result) is None else result.bias_V[:, None]
    result.rows.zero_()
    groups = max(1, _PARTIAL_BYTES // (4 * cut.num_candidates * cut.width))
    groups = min(groups, cut.num_groups)
    empty = problem.states_ND.new_empty
    parts = empty(groups * cut.num_candidates, cut.width, dtype=torch.float32)
    bias_parts = None
    if bias_V1 is not None:
        bias_parts = empty(groups * cut.num_candidates, 1, dtype=torch.float32)
    launch = _pool_gradient if cut.is_pool else _group_gradient
    for first in range(0, cut.num_groups, groups):
        portion = range(first, min(first + groups, cut.num_groups))
        launch(task, parts, bias_parts, slots_of=portion)
        items, slots = lists_GK[first : portion.stop].flatten().sort(stable=True)
        _add_segments(cut, result.rows, parts, slots, items, None, task.places)
        if bias_V1 is not None and bias_parts is not None:
            _add_segments(cut, bias_V1, bias_parts, slots, items, None, (None, None))
    error_N = _target_errors(problem, task.saved, task.weights)
    targets_N = problem.targets_N.masked_fill(problem.targets_N == problem.ignore_index, -1)
    items, order = targets_N.sort(stable=True)
    if bias_V1 is not None:
        _add_segments(cut, bias_V1, error_N[:, None], order, items, None, (None, None))
    if problem.logit_scale is not None:
        error_N = error_N * problem.logit_scale.to(torch.float32)
    _add_segments(cut, result.rows, problem.states_ND, order, items, error_N, task.places)


def _add_segments(
    cut: Plan,
    rows: Tensor,
    parts: Tensor,
    part_of_entry: Tensor,
    item_of_entry: Tensor,
    weight: Tensor | None,
    places: tuple[Tensor | None, Tensor | None],
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
        *places,
        len(item_of_entry),
        parts.stride(0),
        cut.num_items,
        D=width,
        DTYPE=cut.config.dtype if is_state else triton.language.float32,
        BLOCK=16,
        BLOCK_D=block_d,
        num_warps=1,
    )
