"""Scores of items by bfloat16 states: as one product, or as three where the items are float32.

Shapes: R rows, K items, D width.

A float32 is the sum of three bfloat16. Their products with a bfloat16 state are exact in float32,
so three products that take twice the rate of TF32 give what a float32 product gives (precision
"bf16x3"), and only the items have to be split. The parts of an item are operands in registers,
which on Hopper only the left one can be: items times states, `BLOCK_D` columns at a time. A state
that is infinite has scores of NaN.
"""

import triton
import triton.language as tl

from kernels.triton_common import dot
from kernels.triton_tiles import load_rows, scores


@triton.jit
def high_part(block):
    """The upper 16 bits of float32: a bfloat16 that leaves at most 16 of 24 digits, and no inf."""
    bits = block.to(tl.int32, bitcast=True) & -0x10000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def split(block):
    """Three bfloat16 that add up to a float32; the others are zero where the first is infinite."""
    hi = high_part(block).to(tl.bfloat16)
    rest = tl.where(tl.abs(block) == float("inf"), 0.0, block)
    rest -= high_part(rest)
    mid = high_part(rest)
    return hi, mid.to(tl.bfloat16), (rest - mid).to(tl.bfloat16)


@triton.jit
def hold_rows(
    states, row, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What a loop over items keeps of the rows: one block or, for three products, a tuple."""
    if PRECISION == "bf16x3":
        held = ()
        for begin in tl.static_range(0, D, BLOCK_D):
            held += (load_rows(states, row, stride, None, begin, D, BLOCK_D, DTYPE),)
        return held
    else:
        return load_rows(states, row, stride, None, 0, D, BLOCK_D, DTYPE)


@triton.jit
def item_scores(
    held, states, row, states_stride, table, item, table_stride, D: tl.constexpr,
    BLOCK_D: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The scores [R, K] of items; held: What `hold_rows` kept."""
    if PRECISION == "bf16x3":
        product = tl.zeros((item.shape[0], row.shape[0]), tl.float32)
        for i in tl.static_range((D + BLOCK_D - 1) // BLOCK_D):
            block = load_rows(table, item, table_stride, None, i * BLOCK_D, D, BLOCK_D, tl.float32)
            hi, mid, lo = split(block)
            rows = tl.trans(held[i])
            product = dot(lo, rows, product, "tf32")
            product = dot(mid, rows, product, "tf32")
            product = dot(hi, rows, product, "tf32")
        return tl.trans(product)
    else:
        product, _ = scores(
            held, states, row, states_stride, table, item, table_stride, D, BLOCK_D, DTYPE,
            PRECISION,
        )  # fmt: skip
        return product
