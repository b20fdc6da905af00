"""Sums rows of a table's gradient on the device: a set of the items, their ranks, and additions.

Shapes: V items, D width, U touched items, W = ceil(V / 32) words of 32 items.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels import triton_lists, triton_table_gradient
from kernels.launch import block_of, cdiv
from kernels.row_gradient import RowGradient
from kernels.triton_common import destination
from kernels.triton_plan import Touched
from kernels.triton_row_updates import end_of, load_columns, touched_rows

_WIDEST_BLOCK = 256
_BLOCK_ELEMENTS = 2048
_MARKED = 1024


@triton.jit(do_not_specialize=["num_entries", "num_items"])
def mark_rows(
    touched, items, num_touched, num_entries: tl.int64, num_items: tl.int64, BLOCK: tl.constexpr
):
    """Adds the items that are meant to the set. Grid: blocks of entries."""
    end = end_of(num_touched, num_entries)
    _, item, here = touched_rows(items, end, num_items, BLOCK)
    triton_lists.add_to_set(touched, item.to(tl.int32), here)


@triton.jit(do_not_specialize=["num_entries", "num_items"])
def add_rows(
    sums, items, rows, num_touched, touched, rank, num_entries: tl.int64, num_items: tl.int64,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds rows to those of their items. Grid: blocks of entries."""
    end = end_of(num_touched, num_entries)
    if tl.program_id(0).to(tl.int64) * ROWS >= end:
        return
    entry, item, here = touched_rows(items, end, num_items, ROWS)
    line = destination(tl.where(here, item, 0).to(tl.int32), touched, rank, here)
    for begin in tl.static_range(0, D, BLOCK_D):
        value, _, mask = load_columns(rows, entry, here, begin, D, BLOCK_D)
        d = begin + tl.arange(0, BLOCK_D)
        tl.atomic_add(sums + line[:, None] * D + d[None, :], value, mask=mask, sem="relaxed")


def sum_rows(parts: Sequence[RowGradient], num_items: int, deterministic: bool) -> RowGradient:
    """`row_gradient.sum_rows`; the host waits for nothing."""
    width = parts[0].rows_UD.shape[1]
    empty = parts[0].rows_UD.new_empty
    words = cdiv(num_items, 32)
    most = min(num_items, sum(len(part.items_U) for part in parts))
    touched = Touched(
        set_W=empty(words, dtype=torch.int32).zero_(),
        rank_W=empty(words, dtype=torch.int32),
        items_U=empty(most, dtype=torch.int64),
        num_touched=empty(1, dtype=torch.int32),
    )
    rows_UD = empty(most, width, dtype=torch.float32).zero_()
    parts = [
        RowGradient(part.items_U.contiguous(), part.rows_UD.contiguous(), part.num_touched)
        for part in parts
        if len(part.items_U)
    ]
    with torch.cuda.device_of(rows_UD):
        for items_U, _, num_touched in parts:
            mark_rows[(cdiv(len(items_U), _MARKED),)](
                touched.set_W, items_U, num_touched, len(items_U), num_items, BLOCK=_MARKED
            )
        rank_items(touched)
        for part in parts:
            # Of items that are there once each, the order is that of the parts.
            in_order = deterministic and part.num_touched is None
            (_add_in_order if in_order else _add)(rows_UD, part, touched, num_items)
    return RowGradient(touched.items_U, rows_UD, touched.num_touched)


def rank_items(touched: Touched) -> None:
    """Ranks, ids and number of the items of a set."""
    set_W, rank_W, items_U, num_touched = touched
    words = len(set_W)
    counts_W = torch.empty_like(set_W)
    triton_lists.count_touched[(cdiv(words, 1024),)](counts_W, set_W, words, BLOCK=1024)
    ends_W = counts_W.cumsum(0, dtype=torch.int32)
    torch.sub(ends_W, counts_W, out=rank_W)
    num_touched.copy_(ends_W[-1:])
    triton_lists.list_touched[(cdiv(words, 32),)](items_U, set_W, rank_W, words, BLOCK=32)


def _add(rows_UD: torch.Tensor, part: RowGradient, touched: Touched, num_items: int) -> None:
    block_d = min(_WIDEST_BLOCK, block_of(rows_UD.shape[1]))
    height = max(1, _BLOCK_ELEMENTS // block_d)
    add_rows[(cdiv(len(part.items_U), height),)](
        rows_UD,
        *part,
        touched.set_W,
        touched.rank_W,
        len(part.items_U),
        num_items,
        D=rows_UD.shape[1],
        ROWS=height,
        BLOCK_D=block_d,
    )


def _add_in_order(
    rows_UD: torch.Tensor, part: RowGradient, touched: Touched, num_items: int
) -> None:
    """Adds the rows of an item in the order of the part."""
    width = rows_UD.shape[1]
    items_U, order = part.items_U.sort(stable=True)
    block_d = min(_WIDEST_BLOCK, block_of(width))
    triton_table_gradient.add_segments[(len(items_U), cdiv(width, block_d))](
        rows_UD,
        part.rows_UD,
        order,
        items_U,
        None,
        touched.set_W,
        touched.rank_W,
        len(items_U),
        width,
        num_items,
        D=width,
        DTYPE=tl.float32,
        BLOCK=16,
        BLOCK_D=block_d,
        num_warps=1,
    )
