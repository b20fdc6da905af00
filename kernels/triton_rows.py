"""CCE- where every row has candidates of its own: one gather forward, one sorted pass backward.

Shapes: N rows, K candidates, V items, D width, U touched items, E = N * (K + 1) entries.

Nothing is shared between rows, so there is no matrix product; both passes read one row of the
other matrix for each candidate and nothing else. The backward pass needs the rows that drew an
item side by side: a counting sort by item, whose keys come again from the counter. Logits are in
base 2.
"""

import triton
import triton.language as tl

from kernels.triton_common import LOG2_E, LOWEST, destination, random_candidate
from kernels.triton_softmax import finish_rows, target_logits
from kernels.triton_tiles import (
    load_rows,
    load_scale,
    load_weight,
    probability,
    softplus,
    target_gradient,
)

_RAGGED = ["seed", "num_rows", "num_candidates", "num_items"]


@triton.jit
def row_candidates(lists, seed, offset, row, slot, num_items, num_candidates, inside, alias):
    """Items of some slots of a row, -1 where there is no candidate."""
    if lists is None:
        return tl.where(inside, random_candidate(seed, offset, row, slot, num_items, alias), -1)
    else:
        place = lists + row.to(tl.int64) * num_candidates + slot
        return tl.load(place, mask=inside, other=-1).to(tl.int32)


@triton.jit(do_not_specialize=_RAGGED)
def row_forward(
    states, table, targets, lists, alias, bias, scale, log_q, loss, lse, shift,
    target_error, gradient, faults, positive_weight,
    seed: tl.int64, offset, num_rows: tl.int32, num_items: tl.int32, num_candidates: tl.int32,
    states_stride: tl.int64, table_stride: tl.int64, ignore_index: tl.int64,
    D: tl.constexpr, CORRECTION: tl.constexpr, CORRECTED_VALUE: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Loss of a row and, where `gradient` is given, its unit gradient. Grid: rows."""
    row = tl.program_id(0)
    line = row + tl.arange(0, 1)
    target = tl.load(targets + row).to(tl.int32)
    here = line < num_rows
    e = load_rows(states, line, states_stride, here, 0, D, BLOCK_D, DTYPE).to(tl.float32)
    slope = load_scale(scale) * LOG2_E
    highest = tl.full((1,), LOWEST, tl.float32)
    total = tl.zeros((1,), tl.float32)
    absent = tl.zeros((1,), tl.int32)
    mixture = tl.zeros((1, BLOCK_D), tl.float32)
    for begin in range(0, num_candidates, BLOCK_K):
        slot = begin + tl.arange(0, BLOCK_K)
        inside = slot < num_candidates
        item = row_candidates(
            lists, seed, offset, row, slot, num_items, num_candidates, inside, alias
        )
        present = (item >= 0) & (item != target)
        c = load_rows(table, item, table_stride, present, 0, D, BLOCK_D, DTYPE).to(tl.float32)
        z = tl.sum(c * e, 1) * slope
        if bias is not None:
            z += tl.load(bias + item, mask=present, other=0).to(tl.float32) * LOG2_E
        if log_q is not None:
            z -= tl.load(log_q + item, mask=present, other=0) * LOG2_E
        z = tl.where(present, z, -float("inf"))
        absent += tl.sum((inside & (present == 0)).to(tl.int32), 0)
        if positive_weight is not None:
            p = probability(z, 0.0, True)
            total += tl.sum(softplus(z), 0)
        else:
            higher = tl.maximum(highest, tl.max(z, 0))
            decay = tl.exp2(highest - higher)
            p = tl.exp2(z - higher)
            total = total * decay + tl.sum(p, 0)
            if gradient is not None:
                mixture *= decay[:, None]
            highest = higher
        if gradient is not None:
            mixture += tl.sum(p[:, None] * c, 0)[None, :]
    positive = target_logits(
        line, here, target + line * 0, states, table, bias, scale, num_items, states_stride,
        table_stride, D, BLOCK_D, DTYPE,
    )  # fmt: skip
    finish_rows(
        line, here, highest, total, absent, mixture, positive, 0, faults,
        targets, log_q, loss, lse, shift, target_error, gradient, positive_weight, num_rows,
        num_items, num_candidates, ignore_index, D, BLOCK_D, False, CORRECTION, CORRECTED_VALUE,
        tl.float32,
    )  # fmt: skip


@triton.jit(do_not_specialize=_RAGGED)
def count_entries(
    counts, targets, lists, alias, touched, rank, seed: tl.int64, offset,
    first_row: tl.int32, num_rows: tl.int32, num_items: tl.int32, num_candidates: tl.int32,
    ignore_index: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """counts[bin] += candidates and targets of that item, for rows first_row .. num_rows.

    Grid: rows, blocks of slots; slot K is the target.
    """
    row = first_row + tl.program_id(0)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    known = (target != ignore_index) & (target >= 0) & (target < num_items)
    inside = slot < num_candidates
    item = row_candidates(lists, seed, offset, row, slot, num_items, num_candidates, inside, alias)
    item = tl.where(slot == num_candidates, target.to(tl.int32), item)
    mask = known & (item >= 0) & ((item != target) | (slot == num_candidates))
    tl.atomic_add(counts + destination(item, touched, rank, mask), 1, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=_RAGGED)
def sort_entries(
    entries, cursor, targets, lists, alias, touched, rank, seed: tl.int64, offset,
    first_row: tl.int32, num_rows: tl.int32, num_items: tl.int32, num_candidates: tl.int32,
    ignore_index: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes every entry of `count_entries` behind its bin's cursor, which moves to the bin's end.

    An entry is the row, or -1 - row for its target.
    """
    row = first_row + tl.program_id(0)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    known = (target != ignore_index) & (target >= 0) & (target < num_items)
    inside = slot < num_candidates
    item = row_candidates(lists, seed, offset, row, slot, num_items, num_candidates, inside, alias)
    is_target = slot == num_candidates
    item = tl.where(is_target, target.to(tl.int32), item)
    mask = known & (item >= 0) & ((item != target) | is_target)
    place = tl.atomic_add(
        cursor + destination(item, touched, rank, mask), 1, mask=mask, sem="relaxed"
    )
    entry = tl.where(is_target, -1 - row, row)
    tl.store(entries + place, entry, mask=mask)


@triton.jit
def sum_entries(
    begin, end, item, entries, states, table, bias, scale, log_q, shift, target_error, loss_weight,
    lse_weight, loss_weight_stride, lse_weight_stride, states_stride, table_stride,
    D: tl.constexpr, BINARY: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of an item's row, [1, BLOCK_D], and of its bias, from entries begin .. end."""
    item = item + tl.arange(0, 1)
    here = item >= 0
    c = load_rows(table, item, table_stride, here, 0, D, BLOCK_D, DTYPE).to(tl.float32)
    strength = load_scale(scale)
    extra = tl.zeros((1,), tl.float32)
    if bias is not None:
        extra += tl.load(bias + item).to(tl.float32) * LOG2_E
    if log_q is not None:
        extra -= tl.load(log_q + item) * LOG2_E
    value = tl.zeros((1, BLOCK_D), tl.float32)
    error_sum = tl.zeros((1,), tl.float32)
    for start in range(begin, end, BLOCK_K):
        place = start + tl.arange(0, BLOCK_K)
        mask = place < end
        entry = tl.load(entries + place, mask=mask, other=0)
        is_target = entry < 0
        row = tl.where(is_target, -1 - entry, entry)
        e = load_rows(states, row, states_stride, mask, 0, D, BLOCK_D, DTYPE).to(tl.float32)
        z = tl.sum(e * c, 1) * (strength * LOG2_E) + extra
        g = load_weight(loss_weight, row, loss_weight_stride, mask)
        h = load_weight(lse_weight, row, lse_weight_stride, mask)
        row_shift = tl.load(shift + row, mask=mask, other=float("inf"))
        error = probability(z, row_shift, BINARY) * (g + h)
        target_part = tl.load(target_error + row, mask=mask & is_target, other=0)
        error = tl.where(is_target, target_gradient(target_part, g, h, False), error)
        value += tl.sum(e * error[:, None], 0)[None, :]
        error_sum += tl.sum(error, 0)
    return value * strength, error_sum


@triton.jit(do_not_specialize=["num_bins", "segment"])
def sum_segments(
    rows, bias_gradient, items, ends, entries, states, table, bias, scale, log_q, shift,
    target_error, loss_weight, lse_weight,
    num_bins: tl.int32, segment: tl.int32, loss_weight_stride: tl.int64,
    lse_weight_stride: tl.int64, states_stride: tl.int64, table_stride: tl.int64,
    D: tl.constexpr, ADD: tl.constexpr, BINARY: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row of the table gradient of each bin, from its first `segment` entries. Grid: bins."""
    index = tl.program_id(0)
    begin = tl.load(ends + index - 1, mask=index > 0, other=0)
    end = tl.minimum(tl.load(ends + index), begin + segment)
    if items is None:
        item = index
    else:
        item = tl.load(items + index).to(tl.int32)
    d = tl.arange(0, BLOCK_D)
    place = rows + index.to(tl.int64) * D + d[None, :]
    if ADD:
        if end > begin:
            value, error_sum = sum_entries(
                begin, end, item, entries, states, table, bias, scale, log_q, shift, target_error,
                loss_weight, lse_weight, loss_weight_stride, lse_weight_stride, states_stride,
                table_stride, D, BINARY, DTYPE, BLOCK_K, BLOCK_D,
            )  # fmt: skip
            value += tl.load(place, mask=d[None, :] < D, other=0)
            tl.store(place, value, mask=d[None, :] < D)
            if bias_gradient is not None:
                error_sum += tl.load(bias_gradient + item)
                tl.store(bias_gradient + item + tl.arange(0, 1), error_sum)
    else:
        value, error_sum = sum_entries(
            begin, end, item, entries, states, table, bias, scale, log_q, shift, target_error,
            loss_weight, lse_weight, loss_weight_stride, lse_weight_stride, states_stride,
            table_stride, D, BINARY, DTYPE, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        tl.store(place, value, mask=d[None, :] < D)
        if bias_gradient is not None:
            # The item of a bin beyond the touched ones is any.
            mine = item + tl.arange(0, 1)
            tl.store(bias_gradient + mine, error_sum, mask=(mine >= 0) & (end > begin))


@triton.jit(do_not_specialize=["num_bins", "segment"])
def add_long_segments(
    rows, bias_gradient, items, ends, chunk_ends, entries, states, table, bias, scale, log_q,
    shift, target_error, loss_weight, lse_weight,
    num_bins: tl.int32, segment: tl.int32, loss_weight_stride: tl.int64,
    lse_weight_stride: tl.int64, states_stride: tl.int64, table_stride: tl.int64,
    D: tl.constexpr, BINARY: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds what `sum_segments` left of bins with more than `segment` entries.

    chunk_ends: Chunks of `segment` entries left in the bins up to each. Grid: at least all chunks.
    """
    chunk = tl.program_id(0)
    if chunk < tl.load(chunk_ends + num_bins - 1):
        low = tl.full((), 0, tl.int32)
        high = num_bins - 1
        while low < high:
            middle = (low + high) // 2
            if tl.load(chunk_ends + middle) > chunk:
                high = middle
            else:
                low = middle + 1
        index = low
        before = tl.load(chunk_ends + index - 1, mask=index > 0, other=0)
        begin = tl.load(ends + index - 1, mask=index > 0, other=0)
        begin += (chunk - before + 1) * segment
        end = tl.minimum(tl.load(ends + index), begin + segment)
        if items is None:
            item = index
        else:
            item = tl.load(items + index).to(tl.int32)
        value, error_sum = sum_entries(
            begin, end, item, entries, states, table, bias, scale, log_q, shift, target_error,
            loss_weight, lse_weight, loss_weight_stride, lse_weight_stride, states_stride,
            table_stride, D, BINARY, DTYPE, BLOCK_K, BLOCK_D,
        )  # fmt: skip
        d = tl.arange(0, BLOCK_D)
        place = rows + index.to(tl.int64) * D + d[None, :]
        tl.atomic_add(place, value, mask=d[None, :] < D, sem="relaxed")
        if bias_gradient is not None:
            tl.atomic_add(bias_gradient + item + tl.arange(0, 1), error_sum, sem="relaxed")
