"""Ranking over the whole catalogue on tensor cores: ranks of targets, and top-k lists.

Shapes: B rows, V items, D width, P seen pairs, S item groups.

A sort key is an int64 that sorts by score and then, lower first, by item id, as in
`reference_ranking.top_k`. A seen pair is its row * V + its item, or -1 where there is none; pairs
are sorted.
"""

import triton
import triton.language as tl

from kernels.triton_ranking_scores import hold_rows, item_scores

ABSENT_KEY = tl.constexpr(((-0x7F80_0001) << 32) | 0xFFFF_FFFF)
"""The key of -inf for item 0; that of every score that may be listed lies above."""

_RAGGED = ["num_rows", "row_tiles", "num_pairs", "items_per_split", "num_groups", "capacity"]


@triton.jit
def sort_key(score, item):
    """The sort key of a score that is not NaN."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - item.to(tl.int64))


@triton.jit
def item_of_key(key):
    """The item of a sort key."""
    return 0xFFFFFFFF - (key & 0xFFFFFFFF)


@triton.jit
def score_of_key(key):
    """The score of a sort key."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def next_below(score):
    """The next lower float; NaN for -inf and NaN. Both zeros have the least negative one."""
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)
    # Beside zero the order of the bits is that of the numbers, and turned where they are negative.
    lower = tl.where(bits == 0, -0x7FFFFFFF, bits + tl.where(bits > 0, -1, 1))
    lower = lower.to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(score == score, lower, score)


@triton.jit
def is_above(score, item, own, below_own, target, PRECISION: tl.constexpr):
    """Whether an item is listed before a row's target, whose score is its own.

    Equal scores of lower items are above the next lower float: one comparison an element decides.
    A thread of three products has too many rows to hold a third number of each.
    """
    if PRECISION == "bf16x3":
        tied = (score == own[:, None]) & (item[None, :] < target[:, None])
        return tied | (score > own[:, None])
    else:
        bound = tl.where(item[None, :] < target[:, None], below_own[:, None], own[:, None])
        return score > bound


@triton.jit
def tile_scores(
    begin, held, row, states, table, num_items, states_stride, table_stride,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Items begin .. begin + BLOCK_K and their scores, -inf outside the catalogue."""
    item = begin + tl.arange(0, BLOCK_K)
    place = tl.minimum(item, num_items - 1)
    score = item_scores(
        held, states, row, states_stride, table, place, table_stride, D, BLOCK_D, DTYPE, PRECISION
    )
    if begin + BLOCK_K > num_items:
        score = tl.where((item < num_items)[None, :], score, -float("inf"))
    return item, score


@triton.jit
def paired_scores(
    items, begin, end, held, row, states, table, num_items, states_stride, table_stride,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The score of row i for item begin + i of a list, modulo V: a seen pair stands for its item.

    It is the diagonal of products of the catalogue's tile shape, and so equals, bit by bit, what
    those give for the item.
    """
    own = tl.zeros((BLOCK_R,), tl.float32)
    for first in range(0, BLOCK_R, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        place = begin + column
        item = tl.load(items + place, mask=(column < BLOCK_R) & (place < end), other=0)
        item = tl.maximum(item % num_items, 0)
        score = item_scores(
            held, states, row, states_stride, table, item, table_stride,
            D, BLOCK_D, DTYPE, PRECISION,
        )  # fmt: skip
        mine = tl.arange(0, BLOCK_R)[:, None] == column[None, :]
        own += tl.sum(tl.where(mine, score, 0.0), 1)
    return own


@triton.jit(do_not_specialize=_RAGGED)
def count_above(
    counts, own_scores, states, table, targets, num_rows: tl.int32, num_items: tl.int32,
    row_tiles: tl.int32, items_per_split: tl.int32, states_stride: tl.int64,
    table_stride: tl.int64,
    D: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds to counts [B] the items above each row's target, and stores the target's own score.

    That is NaN for a target outside the catalogue. Grid: row tiles x splits of the items.
    """
    tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < num_rows
    row = tl.minimum(row, num_rows - 1)
    target = tl.load(targets + row)
    held = hold_rows(states, row, states_stride, D, BLOCK_D, DTYPE, PRECISION)
    own = paired_scores(
        targets, tile * BLOCK_R, num_rows, held, row, states, table, num_items, states_stride,
        table_stride, D, BLOCK_R, BLOCK_K, BLOCK_D, DTYPE, PRECISION,
    )  # fmt: skip
    own = tl.where((target >= 0) & (target < num_items), own, float("nan"))
    target = target.to(tl.int32)
    below_own = next_below(own)
    # A thread has items i and i + 8 of the three products, and all other threads the rest.
    if PRECISION == "bf16x3":
        count = tl.zeros((BLOCK_R, BLOCK_K // 16, 8), tl.int32)
    else:
        count = tl.zeros((BLOCK_R,), tl.int32)
    first = split * items_per_split
    last = tl.minimum(first + items_per_split, num_items)
    for begin in range(first, last, BLOCK_K):
        item, score = tile_scores(
            begin, held, row, states, table, num_items, states_stride, table_stride,
            D, BLOCK_K, BLOCK_D, DTYPE, PRECISION,
        )  # fmt: skip
        above = is_above(score, item, own, below_own, target, PRECISION).to(tl.int32)
        if PRECISION == "bf16x3":
            count += tl.sum(tl.reshape(above, (BLOCK_R, BLOCK_K // 16, 2, 8)), 2)
        else:
            count += tl.sum(above, 1)
    if PRECISION == "bf16x3":
        count = tl.sum(tl.sum(count, 2), 1)
    tl.atomic_add(counts + row, count, mask=row_mask, sem="relaxed")
    tl.store(own_scores + row, own, mask=row_mask & (split == 0))


@triton.jit(do_not_specialize=_RAGGED)
def discount_seen(
    counts, own_scores, states, table, targets, pairs, num_pairs: tl.int32, num_items: tl.int32,
    states_stride: tl.int64, table_stride: tl.int64,
    D: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Takes the seen items from the counts of `count_above`, each once.

    The own score of a target that was seen becomes -inf; its row's count is of no use then.
    Grid: tiles of BLOCK_R pairs.
    """
    begin = tl.program_id(0) * BLOCK_R
    place = begin + tl.arange(0, BLOCK_R)
    pair = tl.load(pairs + place, mask=place < num_pairs, other=-1)
    before = tl.load(pairs + place - 1, mask=(place > 0) & (place < num_pairs), other=-1)
    # Equal pairs are neighbours, and so are those that are none, which equal what is outside.
    counted = pair != before
    row = tl.where(counted, pair // num_items, 0)
    item = tl.where(counted, pair % num_items, 0)
    held = hold_rows(states, row, states_stride, D, BLOCK_D, DTYPE, PRECISION)
    score = paired_scores(
        pairs, begin, num_pairs, held, row, states, table, num_items, states_stride,
        table_stride, D, BLOCK_R, BLOCK_K, BLOCK_D, DTYPE, PRECISION,
    )  # fmt: skip
    own = tl.load(own_scores + row)
    target = tl.load(targets + row)
    above = (score > own) | ((score == own) & (item < target))
    tl.atomic_add(counts + row, -1, mask=counted & above, sem="relaxed")
    lowest = tl.full(row.shape, -float("inf"), tl.float32)
    tl.store(own_scores + row, lowest, mask=counted & (item == target))


@triton.jit(do_not_specialize=_RAGGED)
def best_of_groups(
    best_keys, states, table, num_rows: tl.int32, num_items: tl.int32, row_tiles: tl.int32,
    num_groups: tl.int32, states_stride: tl.int64, table_stride: tl.int64,
    D: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """best_keys [B, S] becomes the highest sort key of the items that equal s modulo S.

    Grid: row tiles x S / BLOCK_K.
    """
    tile = tl.program_id(0) % row_tiles
    first = tl.program_id(0) // row_tiles * BLOCK_K
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < num_rows
    row = tl.minimum(row, num_rows - 1)
    held = hold_rows(states, row, states_stride, D, BLOCK_D, DTYPE, PRECISION)
    best = tl.full((BLOCK_R, BLOCK_K), -float("inf"), tl.float32)
    best_item = tl.zeros((BLOCK_R, BLOCK_K), tl.int32)
    for begin in range(first, num_items, num_groups):
        item, score = tile_scores(
            begin, held, row, states, table, num_items, states_stride, table_stride,
            D, BLOCK_K, BLOCK_D, DTYPE, PRECISION,
        )  # fmt: skip
        # Of equal scores the first has the lowest id. NaN is never higher.
        higher = score > best
        best = tl.where(higher, score, best)
        best_item = tl.where(higher, item[None, :], best_item)
    place = best_keys + row[:, None].to(tl.int64) * num_groups + first
    place += tl.arange(0, BLOCK_K)[None, :]
    tl.store(place, sort_key(best, best_item), mask=row_mask[:, None])


@triton.jit(do_not_specialize=[*_RAGGED, "first_row"])
def drop_seen_groups(
    best_keys, pairs, first_row: tl.int32, num_rows: tl.int32, num_items: tl.int32,
    num_groups: tl.int32, num_pairs: tl.int32, BLOCK: tl.constexpr,
):  # fmt: skip
    """Marks the groups of rows from first_row on whose best item was seen. Grid: blocks of P."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(pairs + place, mask=place < num_pairs, other=-1)
    row = pair // num_items - first_row
    item = pair % num_items
    inside = (pair >= 0) & (row >= 0) & (row < num_rows)
    group = best_keys + tl.where(inside, row * num_groups + item % num_groups, 0)
    key = tl.load(group, mask=inside, other=0)
    absent = tl.full(pair.shape, ABSENT_KEY, tl.int64)
    tl.store(group, absent, mask=inside & (item_of_key(key) == item))


@triton.jit(do_not_specialize=_RAGGED)
def append_above(
    found_keys, num_found, bounds, starts, states, table, num_rows: tl.int32,
    num_items: tl.int32, row_tiles: tl.int32, items_per_split: tl.int32, capacity: tl.int32,
    states_stride: tl.int64, table_stride: tl.int64,
    D: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Appends the sort keys of each row that are no lower than its bound, in any order.

    A row has room for `capacity` keys and, with starts [B + 1], for all its seen pairs; num_found
    counts on where the room has ended. Grid: row tiles x splits of the items.
    """
    tile = tl.program_id(0) % row_tiles
    split = tl.program_id(0) // row_tiles
    row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < num_rows
    row = tl.minimum(row, num_rows - 1)
    bound = tl.load(bounds + row)
    lowest = tl.where(row_mask, score_of_key(bound), float("inf"))
    # Nothing ties with an absent bound, nor with a row that is none.
    tied = row_mask & (bound > ABSENT_KEY)
    end_of_ties = tl.where(tied, item_of_key(bound) + 1, 0).to(tl.int32)
    below_lowest = next_below(lowest)
    room = tl.zeros((BLOCK_R,), tl.int64) + capacity
    start = row.to(tl.int64) * capacity
    if starts is not None:
        room += tl.load(starts + row + 1) - tl.load(starts + row)
        start += tl.load(starts + row)
    held = hold_rows(states, row, states_stride, D, BLOCK_D, DTYPE, PRECISION)
    first = split * items_per_split
    last = tl.minimum(first + items_per_split, num_items)
    for begin in range(first, last, BLOCK_K):
        item, score = tile_scores(
            begin, held, row, states, table, num_items, states_stride, table_stride,
            D, BLOCK_K, BLOCK_D, DTYPE, PRECISION,
        )  # fmt: skip
        found = is_above(score, item, lowest, below_lowest, end_of_ties, PRECISION)
        # Few tiles have any.
        if tl.max(tl.max(found.to(tl.int32), 1), 0) > 0:
            counter = num_found + row[:, None] + tl.zeros((BLOCK_R, BLOCK_K), tl.int32)
            slot = tl.atomic_add(counter, 1, mask=found, sem="relaxed")
            key = sort_key(score, tl.zeros((BLOCK_R, BLOCK_K), tl.int32) + item[None, :])
            fits = found & (slot < room[:, None])
            tl.store(found_keys + start[:, None] + slot, key, mask=fits)


@triton.jit(do_not_specialize=["first_row", "capacity", "steps"])
def keep_unseen(
    kept_keys, num_kept, found_keys, num_found, starts, pairs, first_row: tl.int32,
    num_items: tl.int32, capacity: tl.int32, steps: tl.int32, BLOCK: tl.constexpr,
):  # fmt: skip
    """kept_keys [B, capacity] becomes the keys of `append_above` whose items were not seen.

    num_kept counts them, beyond the capacity too; it is above the capacity where some were not
    found. Pairs are searched in `steps` halvings. Grid: rows from first_row on.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    end = tl.load(starts + row + 1)
    begin_of_row = row * capacity + start
    room = (capacity + end - start).to(tl.int32)
    total = tl.load(num_found + row)
    num_here = tl.minimum(total, room)
    num_unseen = tl.full((), 0, tl.int32)
    for begin in range(0, num_here, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < num_here
        key = tl.load(found_keys + begin_of_row + place, mask=inside, other=0)
        pair = (first_row + row) * num_items + item_of_key(key)
        low = tl.zeros((BLOCK,), tl.int64) + start
        high = tl.zeros((BLOCK,), tl.int64) + end
        for _ in range(steps):
            middle = (low + high) // 2
            is_open = inside & (low < high)
            less = tl.load(pairs + middle, mask=is_open, other=0) < pair
            low = tl.where(is_open & less, middle + 1, low)
            high = tl.where(is_open & (less == 0), middle, high)
        seen = tl.load(pairs + low, mask=inside & (low < end), other=-1) == pair
        unseen = inside & (seen == 0)
        slot = num_unseen + tl.cumsum(unseen.to(tl.int32), 0) - 1
        tl.store(kept_keys + row * capacity + slot, key, mask=unseen & (slot < capacity))
        num_unseen += tl.sum(unseen.to(tl.int32), 0)
    tl.store(num_kept + row, tl.where(total > room, capacity + 1, num_unseen))
