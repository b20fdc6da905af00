"""What the Triton kernels share: random candidates, the set of touched items, matrix products.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width, W = ceil(V / 32).

Kernel arguments that are tensors are pointers; the optional ones may be None, which Triton makes
a constant.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""In the interpreter a bf16 matrix product is wrong without a word; operands are widened there."""

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
HALF_SHIFT = tl.constexpr(12)
"""A probability in float16 is kept times 2^12: the small ones are lost otherwise."""
LOWEST = tl.constexpr(-1e30)
"""Stands for -inf where inf - inf would be NaN."""


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    """A @ b + accumulator in float32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision=PRECISION)


@triton.jit
def random_candidate(seed, offset, group, slot, num_items, alias):
    """Item of a slot, as `candidates.draw` has it; alias is [V, 2] or None."""
    if offset is not None:
        seed += tl.load(offset)
    counter = slot.to(tl.uint32)
    zero = counter * 0
    high, low, choice, _ = tl.philox(
        seed.to(tl.uint64), counter, zero + group.to(tl.uint32), zero, zero
    )
    items = num_items.to(tl.uint64)
    carry = (low.to(tl.uint64) * items) >> 32
    item = ((high.to(tl.uint64) * items + carry) >> 32).to(tl.int32)
    if alias is not None:
        entry = alias + item.to(tl.int64) * 2
        threshold = tl.load(entry).to(tl.uint32, bitcast=True)
        item = tl.where(choice < threshold, item, tl.load(entry + 1))
    return item


@triton.jit
def count_bits(word):
    """Set bits of a uint32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return ((word * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def destination(item, touched, rank, mask):
    """Row of the table gradient that an item has: itself, or its rank among the touched items.

    touched [W] holds a bit an item, rank [W] the number of touched items before each word.
    """
    if touched is None:
        row = item
    else:
        word = tl.load(touched + (item >> 5), mask=mask, other=0).to(tl.uint32, bitcast=True)
        below = word & ((tl.full(item.shape, 1, tl.uint32) << (item & 31).to(tl.uint32)) - 1)
        row = tl.load(rank + (item >> 5), mask=mask, other=0) + count_bits(below)
    return row.to(tl.int64)
