"""Optimizer updates of the touched rows of a table: a few rows a program, in one pass.

Shapes: V items, U touched items, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import block_of, cdiv
from kernels.reference_row_updates import Adam, Update

_WIDEST_BLOCK = 1024
_BLOCK_ELEMENTS = 1024
_RAGGED = ["seed", "step", "num_entries", "num_items"]


@triton.jit
def end_of(num_touched, num_entries):
    """Entries that are meant."""
    end = num_entries
    if num_touched is not None:
        end = tl.minimum(end, tl.load(num_touched).to(tl.int64))
    return end


@triton.jit
def touched_rows(items, end, num_items, ROWS: tl.constexpr):
    """Entries of a program, their items, and which of them are meant."""
    entry = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    item = tl.load(items + entry, mask=entry < end, other=-1)
    return entry, item, (item >= 0) & (item < num_items)


@triton.jit
def load_columns(matrix, row, here, begin, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A block of columns of some rows in float32, their places, and which of them are meant."""
    d = begin + tl.arange(0, BLOCK_D)
    place = row[:, None] * D + d[None, :]
    mask = here[:, None] & (d[None, :] < D)
    return tl.load(matrix + place, mask=mask, other=0).to(tl.float32), place, mask


@triton.jit
def mean_square(rows, entry, here, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mean over the columns of the squared gradient, and its last block of columns."""
    total = tl.zeros(entry.shape, tl.float32)
    for begin in tl.static_range(0, D, BLOCK_D):
        g, _, _ = load_columns(rows, entry, here, begin, D, BLOCK_D)
        total += tl.sum(g * g, 1)
    return tl.div_rn(total, D), g


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0; where x is small, the difference would cancel."""
    series = tl.full(x.shape, 1, tl.float32)
    for n in tl.static_range(6, 1, -1):
        series = 1 + x * (1 / n) * series
    return tl.where(x > -0.25, x * series, tl.exp(x) - 1)


@triton.jit
def random_words(seed, step, item, begin, BLOCK_D: tl.constexpr):
    """32 random bits for each column, as `row_updates` has them."""
    block = begin // 4 + tl.arange(0, BLOCK_D // 4)[None, :]
    zero = (block * 0 + item[:, None] * 0).to(tl.uint32)
    a, b, c, d = tl.philox(
        seed.to(tl.uint64),
        zero + block.to(tl.uint32),
        zero + item[:, None].to(tl.uint32),
        zero + step.to(tl.uint32),
        zero + 1,
    )
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (item.shape[0], BLOCK_D))


@triton.jit
def round_at_random(value, noise, DTYPE: tl.constexpr):
    """A float32 value as one of its two neighbours in a half type; one that it has stays."""
    if DTYPE == tl.bfloat16:
        BITS: tl.constexpr = 16
        SCALE: tl.constexpr = 1.0
    else:
        BITS: tl.constexpr = 13
        # The subnormal numbers of float16 become those of float32.
        SCALE: tl.constexpr = 2.0**-112
    word = (value * SCALE).to(tl.uint32, bitcast=True) + (noise & ((1 << BITS) - 1))
    rounded = ((word >> BITS) << BITS).to(tl.float32, bitcast=True) * (1 / SCALE)
    return tl.where(value == value, rounded, value)


@triton.jit(do_not_specialize=_RAGGED)
def adagrad_rows(
    table, items, rows, num_touched, square_sum, clock, rate,
    seed: tl.int64, step: tl.int32, num_entries: tl.int64, num_items: tl.int64,
    lr: tl.float32, eps: tl.float32,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`row_updates.row_adagrad`. Grid: blocks of entries. With clock and rate, these are meant."""
    end = end_of(num_touched, num_entries)
    if tl.program_id(0).to(tl.int64) * ROWS >= end:
        return
    if clock is not None:
        step = tl.load(clock)
        lr = tl.load(rate)
    entry, item, here = touched_rows(items, end, num_items, ROWS)
    mean, g = mean_square(rows, entry, here, D, BLOCK_D)
    mean += tl.load(square_sum + item, mask=here, other=0)
    # Every warp of a row reads its number, and one writes it.
    tl.debug_barrier()
    tl.store(square_sum + item, mean, mask=here)
    step_size = tl.div_rn(lr, tl.sqrt_rn(mean) + eps)[:, None]
    for begin in tl.static_range(0, D, BLOCK_D):
        if D > BLOCK_D:
            g, _, _ = load_columns(rows, entry, here, begin, D, BLOCK_D)
        w, place, mask = load_columns(table, item, here, begin, D, BLOCK_D)
        w -= g * step_size
        if table.dtype.element_ty != tl.float32:
            noise = random_words(seed, step, item, begin, BLOCK_D)
            w = round_at_random(w, noise, table.dtype.element_ty)
        tl.store(table + place, w, mask=mask)


@triton.jit(do_not_specialize=_RAGGED)
def adam_rows(
    table, items, rows, num_touched, exp_avg, exp_avg_sq, last_step, clock, rate,
    seed: tl.int64, step: tl.int32, num_entries: tl.int64, num_items: tl.int64,
    log_beta1: tl.float32, log_beta2: tl.float32, gain1: tl.float32, gain2: tl.float32,
    log_shrink: tl.float32, step_size: tl.float32, root_scale: tl.float32, eps: tl.float32,
    BY_ROW: tl.constexpr, SHRINKS: tl.constexpr, ROUNDS: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`row_updates.row_adam`. Grid: blocks of entries.

    With clock and rate, the step and what depends on it and on the rate are made of them.
    BY_ROW: a row has one second moment. SHRINKS: there is weight decay.
    ROUNDS: table or exp_avg is of a half type. Without exp_avg, beta1 is 0.
    """
    end = end_of(num_touched, num_entries)
    if tl.program_id(0).to(tl.int64) * ROWS >= end:
        return
    if clock is not None:
        step = tl.load(clock)
        time = tl.zeros((1,), tl.float32) + step.to(tl.float32)
        step_size = tl.sum(tl.load(rate) / -expm1(time * log_beta1), 0)
        root_scale = tl.sum(1 / tl.sqrt_rn(-expm1(time * log_beta2)), 0)
    entry, item, here = touched_rows(items, end, num_items, ROWS)
    skipped = (step - tl.load(last_step + item, mask=here, other=0)).to(tl.float32)
    decay2 = expm1(skipped * log_beta2) + 1
    if BY_ROW:
        mean, g = mean_square(rows, entry, here, D, BLOCK_D)
        square = tl.load(exp_avg_sq + item, mask=here, other=0) * decay2 + gain2 * mean
    # Every warp of a row reads its numbers, and one writes them.
    tl.debug_barrier()
    tl.store(last_step + item, step, mask=here)
    if BY_ROW:
        tl.store(exp_avg_sq + item, square, mask=here)
        pace = tl.div_rn(step_size, tl.sqrt_rn(square) * root_scale + eps)[:, None]
    for begin in tl.static_range(0, D, BLOCK_D):
        if D > BLOCK_D or not BY_ROW:
            g, _, _ = load_columns(rows, entry, here, begin, D, BLOCK_D)
        w, place, mask = load_columns(table, item, here, begin, D, BLOCK_D)
        m = g
        if exp_avg is not None:
            m, _, _ = load_columns(exp_avg, item, here, begin, D, BLOCK_D)
            m = m * (expm1(skipped * log_beta1) + 1)[:, None] + gain1 * g
        if not BY_ROW:
            square = tl.load(exp_avg_sq + place, mask=mask, other=0)
            square = square * decay2[:, None] + gain2 * (g * g)
            tl.store(exp_avg_sq + place, square, mask=mask)
            pace = tl.div_rn(step_size, tl.sqrt_rn(square) * root_scale + eps)
        if SHRINKS:
            w += w * expm1(skipped * log_shrink)[:, None]
        w -= m * pace
        if ROUNDS:
            noise = random_words(seed, step, item, begin, BLOCK_D)
        if table.dtype.element_ty != tl.float32:
            w = round_at_random(w, noise, table.dtype.element_ty)
        tl.store(table + place, w, mask=mask)
        if exp_avg is not None:
            if exp_avg.dtype.element_ty != tl.float32:
                m = round_at_random(m, noise >> 16, exp_avg.dtype.element_ty)
            tl.store(exp_avg + place, m, mask=mask)


def update(
    task: Update, state: tuple[Tensor | None, ...], numbers: Adam | tuple[float, float]
) -> None:
    """A step of the optimizer whose numbers these are."""
    table_VD, items_U, rows_UD, num_touched, step, seed, clock = task
    num_items, width = table_VD.shape
    block_d = min(_WIDEST_BLOCK, block_of(width))
    height = max(1, _BLOCK_ELEMENTS // block_d)
    is_adam = isinstance(numbers, Adam)
    kernel = adam_rows if is_adam else adagrad_rows
    flags = {}
    if is_adam:
        exp_avg_VD, exp_avg_sq, _ = state
        moved = (table_VD, exp_avg_VD)
        flags = {
            "BY_ROW": exp_avg_sq.ndim == 1,
            "SHRINKS": numbers.log_shrink is not None,
            "ROUNDS": any(m is not None and m.dtype != torch.float32 for m in moved),
        }
        numbers = numbers._replace(log_shrink=numbers.log_shrink or 0.0)
    with torch.cuda.device_of(table_VD):
        kernel[(cdiv(len(items_U), height),)](
            table_VD,
            items_U.contiguous(),
            rows_UD.contiguous(),
            num_touched,
            *state,
            *(clock or (None, None)),
            # The same bits as a signed integer.
            seed - (1 << 64) if seed >= 1 << 63 else seed,
            step,
            len(items_U),
            num_items,
            *numbers,
            **flags,
            D=width,
            ROWS=height,
            BLOCK_D=block_d,
        )
    # Autograd has to know that what it saved of the table has changed.
    torch.autograd.graph.increment_version(table_VD)
