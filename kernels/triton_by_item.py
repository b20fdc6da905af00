"""Launches the table's gradient of rows that have candidates of their own: a sort, then sums.

Shapes: N rows, K candidates, V items, D width, U touched items.
"""

from typing import Any

import torch
from torch import Tensor

from kernels import triton_lists, triton_rows
from kernels.launch import cdiv, next_power_of_2
from kernels.triton_plan import (
    Backward,
    TableGradients,
    log_q_of,
    strides,
    weight_strides,
)

_SEGMENT = 512
"""Entries of an item that one program sums; what is more is shared among programs."""
_LEAST_ENTRIES = 1 << 24
"""Entries that are sorted at once: half of all, but no fewer than are worth a pass."""
_MOST_ENTRIES = 1 << 29


def sum_by_item(task: Backward, result: TableGradients) -> None:
    """Sorts the rows' candidates by item, a bounded number of rows at a time, and sums."""
    cut = task.cut
    entries_per_row = cut.num_candidates + 1
    half = cdiv(cut.num_rows * entries_per_row, 2)
    most = max(_LEAST_ENTRIES, min(half, _MOST_ENTRIES))
    rows_per_pass = max(1, most // entries_per_row)
    items = None
    if task.touched is not None:
        # Bins beyond the number of touched items are empty, but their item is read.
        *_, items_U, num_touched = task.touched
        past_end = torch.arange(len(items_U), device=items_U.device) >= num_touched
        items = items_U.masked_fill(past_end, 0)
    for first in range(0, cut.num_rows, rows_per_pass):
        last = min(first + rows_per_pass, cut.num_rows)
        _sum_pass(task, result, items, range(first, last))


def _sum_pass(task: Backward, result: TableGradients, items: Tensor | None, rows: range) -> None:
    """Adds what some rows owe; its room is free again at its end."""
    problem, cut, saved, weights, *_ = task
    num_bins = len(result.rows)
    bias = result.bias_V if len(result.bias_V) else None
    tile = cut.config.segment
    constants: dict[str, Any] = {
        "D": cut.width,
        "BINARY": problem.positive_weight is not None,
        "DTYPE": cut.config.dtype,
        "BLOCK_K": tile.block_k,
        "BLOCK_D": cut.config.block_d,
        "num_warps": tile.num_warps,
    }
    if problem.deterministic:
        entries, ends = _sort_in_order(task, rows, items, num_bins)
    else:
        entries, ends = _sort(task, rows, num_bins)
    segment = 1 << 30 if problem.deterministic else _SEGMENT
    sources = (
        entries,
        problem.states_ND,
        problem.table_VD,
        problem.bias_V,
        problem.logit_scale,
        log_q_of(problem),
        saved.shift_N,
        saved.target_error_N,
        *weights,
        num_bins,
        segment,
        *weight_strides(*weights),
        *strides(problem),
    )
    triton_rows.sum_segments[(num_bins,)](
        result.rows, bias, items, ends, *sources, ADD=rows.start > 0, **constants
    )
    if not problem.deterministic:
        # Full chunks beyond the first of every bin.
        left = ends.clone()
        left[1:] -= ends[:-1]
        left.sub_(1).div_(_SEGMENT, rounding_mode="floor").clamp_(min=0)
        chunk_ends = left.cumsum(0, dtype=torch.int32)
        triton_rows.add_long_segments[(cdiv(len(entries), _SEGMENT),)](
            result.rows, bias, items, ends, chunk_ends, *sources, **constants
        )


def _sort(task: Backward, rows: range, num_bins: int) -> tuple[Tensor, Tensor]:
    """Counting sort of the rows' candidates and targets by item."""
    problem, cut = task.problem, task.cut
    assert problem.draws is not None
    device = problem.states_ND.device
    counts = torch.zeros(num_bins, dtype=torch.int32, device=device)
    entries = torch.empty(len(rows) * (cut.num_candidates + 1), dtype=torch.int32, device=device)
    block = min(1024, next_power_of_2(cut.num_candidates + 1))
    grid = (len(rows), cdiv(cut.num_candidates + 1, block))
    arguments = (
        problem.targets_N,
        task.lists_GK,
        problem.draws.alias_V2,
        *task.places,
        *problem.draws.key,
        rows.start,
        cut.num_rows,
        cut.num_items,
        cut.num_candidates,
        problem.ignore_index,
    )
    triton_rows.count_entries[grid](counts, *arguments, BLOCK=block)
    cursor = counts.cumsum(0, dtype=torch.int32)
    cursor -= counts
    triton_rows.sort_entries[grid](entries, cursor, *arguments, BLOCK=block)
    return entries, cursor


def _sort_in_order(
    task: Backward, rows: range, items: Tensor | None, num_bins: int
) -> tuple[Tensor, Tensor]:
    """As `_sort`, the entries of an item in the order of the rows."""
    problem, cut = task.problem, task.cut
    assert problem.draws is not None
    device = problem.states_ND.device
    num_candidates = cut.num_candidates
    keys = torch.empty(len(rows), num_candidates + 1, dtype=torch.int32, device=device)
    if task.lists_GK is None:
        block = min(1024, next_power_of_2(num_candidates))
        drawn = torch.empty(len(rows), num_candidates, dtype=torch.int32, device=device)
        triton_lists.write_lists[(len(rows),)](
            drawn,
            None,
            None,
            problem.draws.alias_V2,
            *problem.draws.key,
            rows.start,
            cut.num_items,
            num_candidates,
            BLOCK=block,
        )
    else:
        drawn = task.lists_GK[rows.start : rows.stop]
    targets = problem.targets_N[rows.start : rows.stop, None]
    known = (targets != problem.ignore_index) & (targets >= 0) & (targets < cut.num_items)
    keys[:, :-1] = drawn.masked_fill((drawn == targets) | (drawn < 0) | ~known, cut.num_items)
    keys[:, -1:] = targets.masked_fill(~known, cut.num_items)
    ordered, places = keys.flatten().sort(stable=True)
    row = rows.start + places // (num_candidates + 1)
    is_target = places % (num_candidates + 1) == num_candidates
    entries = torch.where(is_target, -1 - row, row).to(torch.int32)
    if items is None:
        items = torch.arange(num_bins, dtype=torch.int64, device=device)
    ends = torch.searchsorted(ordered, items.to(torch.int32), right=True, out_int32=True)
    return entries, ends
