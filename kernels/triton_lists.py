"""Lists of candidates, and which items they touch, on the device.

Shapes: G groups, K candidates, V items, N rows, W = ceil(V / 32) words of 32 items.
"""

import triton
import triton.language as tl

from kernels.triton_common import count_bits, random_candidate


@triton.jit(do_not_specialize=["seed", "num_items", "num_candidates"])
def claim_items(
    owner,
    alias,
    seed: tl.int64,
    offset,
    num_items: tl.int32,
    num_candidates: tl.int32,
    BLOCK: tl.constexpr,
):
    """owner[v] becomes the least group * K + slot that drew item v."""
    group = tl.program_id(0)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    drawn = slot < num_candidates
    item = random_candidate(seed, offset, group, slot, num_items, alias)
    tl.atomic_min(owner + item, group * num_candidates + slot, mask=drawn, sem="relaxed")


@triton.jit(do_not_specialize=["seed", "first_group", "num_items", "num_candidates"])
def write_lists(
    lists,
    num_first,
    owner,
    alias,
    seed: tl.int64,
    offset,
    first_group: tl.int32,
    num_items: tl.int32,
    num_candidates: tl.int32,
    BLOCK: tl.constexpr,
):
    """Candidates of every group from first_group on.

    Those that claimed their item stand in front, the others behind, so that the fronts of all
    groups have no item twice. Without an owner the order is that of the slots.
    """
    line = tl.program_id(0).to(tl.int64) * num_candidates
    group = first_group + tl.program_id(0)
    front = tl.full((), 0, tl.int32)
    back = num_candidates
    for begin in range(0, num_candidates, BLOCK):
        slot = begin + tl.arange(0, BLOCK)
        drawn = slot < num_candidates
        item = random_candidate(seed, offset, group, slot, num_items, alias)
        if owner is None:
            place = slot
        else:
            holder = tl.load(owner + item, mask=drawn, other=-1)
            first = (holder == group * num_candidates + slot).to(tl.int32)
            other = (drawn & (first == 0)).to(tl.int32)
            place = tl.where(
                first == 1, front + tl.cumsum(first, 0) - 1, back - tl.cumsum(other, 0)
            )
            front += tl.sum(first, 0)
            back -= tl.sum(other, 0)
        tl.store(lists + line + place, item, mask=drawn)
    if owner is not None:
        tl.store(num_first + group, front)


@triton.jit(do_not_specialize=["num_items"])
def pack_claimed(touched, owner, num_items: tl.int32, BLOCK: tl.constexpr):
    """The set of the items that have an owner, a bit each."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 32)
    item = word[:, None].to(tl.int64) * 32 + bit[None, :]
    claimed = tl.load(owner + item, mask=item < num_items, other=0x7FFFFFFF) != 0x7FFFFFFF
    bits = claimed.to(tl.uint32) << bit[None, :].to(tl.uint32)
    packed = tl.sum(bits, 1).to(tl.uint32)
    tl.store(touched + word, packed.to(tl.int32, bitcast=True), mask=word * 32 < num_items)


@triton.jit
def add_to_set(touched, item, mask):
    """Sets the items' bits."""
    one = tl.full(item.shape, 1, tl.uint32)
    bit = (one << (item & 31).to(tl.uint32)).to(tl.int32, bitcast=True)
    tl.atomic_or(touched + (item >> 5), bit, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["num_entries", "num_items"])
def mark_touched(touched, items, num_entries: tl.int64, num_items: tl.int32, BLOCK: tl.constexpr):
    """Adds items to the set; an entry outside [0, V) is none."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    item = tl.load(items + entry, mask=entry < num_entries, other=-1)
    add_to_set(touched, item.to(tl.int32), (item >= 0) & (item < num_items))


@triton.jit(do_not_specialize=["seed", "num_items", "num_candidates"])
def mark_drawn(
    touched,
    alias,
    seed: tl.int64,
    offset,
    num_items: tl.int32,
    num_candidates: tl.int32,
    BLOCK: tl.constexpr,
):
    """Adds the candidates of every group to the set."""
    group = tl.program_id(0)
    slot = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    item = random_candidate(seed, offset, group, slot, num_items, alias)
    add_to_set(touched, item, slot < num_candidates)


@triton.jit(do_not_specialize=["num_words"])
def count_touched(counts, touched, num_words: tl.int32, BLOCK: tl.constexpr):
    """Items of the set in each word."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(touched + word, mask=word < num_words, other=0).to(tl.uint32, bitcast=True)
    tl.store(counts + word, count_bits(bits), mask=word < num_words)


@triton.jit(do_not_specialize=["num_words"])
def list_touched(items, touched, rank, num_words: tl.int32, BLOCK: tl.constexpr):
    """The items of the set in ascending order."""
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 32)[None, :].to(tl.uint32)
    bits = tl.load(touched + word, mask=word < num_words, other=0).to(tl.uint32, bitcast=True)
    bits = bits[:, None] + bit * 0
    ones = tl.full((BLOCK, 32), 1, tl.uint32)
    place = tl.load(rank + word, mask=word < num_words, other=0)[:, None] + count_bits(
        bits & ((ones << bit) - 1)
    )
    item = word[:, None].to(tl.int64) * 32 + bit
    tl.store(items + place, item, mask=((bits >> bit) & 1) == 1)


@triton.jit(do_not_specialize=["num_items"])
def clear_untouched(
    rows, touched, num_items: tl.int32, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Zero in the rows [V, D] of the items that are not in the set."""
    item = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = item < num_items
    bits = tl.load(touched + (item >> 5), mask=inside, other=0).to(tl.uint32, bitcast=True)
    untouched = inside & (((bits >> (item & 31).to(tl.uint32)) & 1) == 0)
    for begin in tl.static_range(0, D, BLOCK_D):
        d = begin + tl.arange(0, BLOCK_D)
        place = rows + item[:, None].to(tl.int64) * D + d[None, :]
        zero = tl.zeros((BLOCK, BLOCK_D), rows.dtype.element_ty)
        tl.store(place, zero, mask=untouched[:, None] & (d[None, :] < D))
