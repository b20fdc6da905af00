"""The gradient of the item table on tensor cores.

Shapes as in `triton_softmax`; logits are in base 2. `loss_weight` and `lse_weight` are the
upstream gradients of the rows. Rows of the gradient are found by `triton_common.destination`.
"""

import triton
import triton.language as tl

from kernels.triton_common import HALF_SHIFT, LOG2_E, destination, dot
from kernels.triton_tiles import (
    candidate_bias,
    have_met,
    load_items,
    load_rows,
    load_scale,
    load_weight,
    probability,
    scores,
    target_gradient,
)

_RAGGED = ["num_rows", "num_candidates", "group_size", "parts", "rounds", "reach"]


@triton.jit
def load_weights(
    loss_weight, lse_weight, row, loss_stride, lse_stride, row_mask, UNIFORM: tl.constexpr
):
    """Upstream gradients of rows, of the loss and of the log-sum-exp.

    UNIFORM: The weight is one number, as under a mean, which multiplies the sums in the end.
    """
    if UNIFORM:
        one = tl.full(row.shape, 1.0, tl.float32)
        return one, one * 0
    else:
        g = load_weight(loss_weight, row, loss_stride, row_mask)
        return g, load_weight(lse_weight, row, lse_stride, row_mask)


@triton.jit
def half_range(weight, DTYPE: tl.constexpr):
    """A factor that keeps weighted errors within the range of float16."""
    if DTYPE == tl.float16:
        return 4096.0 / tl.maximum(tl.max(tl.abs(weight), 0), 1e-30)
    else:
        return 1.0


@triton.jit
def add_rows(place, value, mask, STORE: tl.constexpr):
    """Stores or, where several programs may meet, adds."""
    if STORE:
        tl.store(place, value.to(place.dtype.element_ty), mask=mask)
    else:
        tl.atomic_add(place, value.to(place.dtype.element_ty), mask=mask, sem="relaxed")


@triton.jit
def group_tile(
    start, end, group, held, row, target, row_shift, weight, factor, strength,
    states, table, lists, bias, log_q, log_weight, row_numbers, item_numbers, rows, bias_gradient,
    touched, rank, num_rows, num_items, rounds, reach, num_candidates, local_group, states_stride,
    table_stride,
    D: tl.constexpr, EXTRA: tl.constexpr, MASKED: tl.constexpr, STORE: tl.constexpr,
    BY_SLOT: tl.constexpr, UNIFORM: tl.constexpr, BINARY: tl.constexpr, DTYPE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What a group adds to the rows of candidates start .. start + BLOCK_K."""
    slot = start + tl.arange(0, BLOCK_K)
    inside = slot < end
    item = load_items(lists, group, slot, num_candidates, inside, MASKED)
    place = tl.maximum(item, 0)
    z, _ = scores(
        held, states, row, states_stride, table, place, table_stride, D, BLOCK_D, DTYPE, PRECISION
    )
    z *= strength * LOG2_E
    if EXTRA:
        extra = candidate_bias(item, slot, group, num_candidates, inside, bias, log_q, log_weight)
        z += extra[None, :]
    error = probability(z, row_shift[:, None], BINARY)
    error = tl.where(item[None, :] == target[:, None], 0.0, error)
    if row_numbers is not None:
        met = have_met(row, place, row_numbers, item_numbers, num_rows, num_items, rounds, reach)
        error = tl.where(met, 0.0, error)
    if not UNIFORM:
        error *= weight[:, None]
    if BY_SLOT:
        line = local_group.to(tl.int64) * num_candidates + slot
    else:
        line = destination(place, touched, rank, inside)
    # An empty slot has a row of its own only where slots have.
    mask = inside
    if EXTRA and not BY_SLOT:
        mask = inside & (item >= 0)
    if bias_gradient is not None:
        where = bias_gradient + (line if BY_SLOT else place)
        add_rows(where, tl.sum(error, 0) * factor, mask, BY_SLOT)
    error = error.to(DTYPE)
    for column in tl.static_range(0, D, BLOCK_D):
        if D <= BLOCK_D:
            e = held
        else:
            e = load_rows(states, row, states_stride, None, column, D, BLOCK_D, DTYPE)
        value = dot(tl.trans(error), e, tl.zeros((BLOCK_K, BLOCK_D), tl.float32), PRECISION)
        d = column + tl.arange(0, BLOCK_D)
        where = rows + line[:, None] * D + d[None, :]
        value *= strength * factor
        if D % BLOCK_D != 0:
            add_rows(where, value, mask[:, None] & (d[None, :] < D), STORE or BY_SLOT)
        elif MASKED:
            add_rows(where, value, mask[:, None], STORE or BY_SLOT)
        else:
            add_rows(where, value, None, STORE or BY_SLOT)


@triton.jit(do_not_specialize=_RAGGED)
def group_gradient(
    states, table, targets, lists, bias, scale, log_q, log_weight, row_numbers, item_numbers,
    shift, loss_weight, lse_weight, num_first, rows, bias_gradient, touched, rank,
    num_rows: tl.int32, num_items: tl.int32, num_candidates: tl.int32, group_size: tl.int32,
    parts: tl.int32, first_group: tl.int32, rounds: tl.int32, reach: tl.int32,
    loss_weight_stride: tl.int64, lse_weight_stride: tl.int64, states_stride: tl.int64,
    table_stride: tl.int64,
    D: tl.constexpr, GIVEN: tl.constexpr, FRONT: tl.constexpr, BY_SLOT: tl.constexpr,
    UNIFORM: tl.constexpr, BINARY: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What a group of at most BLOCK_R rows adds to the rows of its candidates.

    With num_first, FRONT chooses between the front parts of the lists, whose items are distinct
    and are stored, and the rest, which is added. BY_SLOT stores the row of every slot by itself,
    [groups, K, D], from first_group on. Grid: groups, parts that share a group's tiles.
    """
    local_group = tl.program_id(0)
    group = local_group + first_group
    offset = tl.arange(0, BLOCK_R)
    row = group * group_size + offset
    row_mask = (offset < group_size) & (row < num_rows)
    row = tl.minimum(row, num_rows - 1)
    target = tl.load(targets + row).to(tl.int32)
    # Softmax 0 for the rows of others.
    row_shift = tl.load(shift + row, mask=row_mask, other=float("inf"))
    g, h = load_weights(
        loss_weight, lse_weight, row, loss_weight_stride, lse_weight_stride, row_mask, UNIFORM
    )
    weight = g + h
    strength = load_scale(scale)
    if UNIFORM:
        factor = tl.load(loss_weight).to(tl.float32)
        if DTYPE == tl.float16:
            row_shift -= HALF_SHIFT
            factor *= tl.exp2(-tl.full((), HALF_SHIFT, tl.float32))
    else:
        factor = 1 / half_range(weight, DTYPE)
        weight = weight * half_range(weight, DTYPE)
    held = load_rows(states, row, states_stride, None, 0, D, BLOCK_D, DTYPE)
    begin = tl.full((), 0, tl.int32)
    end = num_candidates
    if num_first is not None:
        if FRONT:
            end = tl.load(num_first + group)
        else:
            begin = tl.load(num_first + group)
    EXTRA: tl.constexpr = GIVEN or bias is not None or log_q is not None or log_weight is not None
    STORE: tl.constexpr = num_first is not None and FRONT
    # Each part takes a run of tiles; the last tile may be short.
    tiles = tl.cdiv(tl.cdiv(end - begin, BLOCK_K), parts)
    begin += tl.program_id(1) * tiles * BLOCK_K
    end = tl.minimum(end, begin + tiles * BLOCK_K)
    whole = begin + tl.maximum(end - begin, 0) // BLOCK_K * BLOCK_K
    for start in range(begin, whole, BLOCK_K):
        group_tile(
            start, end, group, held, row, target, row_shift, weight, factor, strength,
            states, table, lists, bias, log_q, log_weight, row_numbers, item_numbers, rows,
            bias_gradient, touched, rank, num_rows, num_items, rounds, reach, num_candidates,
            local_group, states_stride, table_stride,
            D, EXTRA, EXTRA, STORE, BY_SLOT, UNIFORM, BINARY, DTYPE, PRECISION, BLOCK_K, BLOCK_D,
        )  # fmt: skip
    if whole < end:
        group_tile(
            whole, end, group, held, row, target, row_shift, weight, factor, strength,
            states, table, lists, bias, log_q, log_weight, row_numbers, item_numbers, rows,
            bias_gradient, touched, rank, num_rows, num_items, rounds, reach, num_candidates,
            local_group, states_stride, table_stride,
            D, True, True, STORE, BY_SLOT, UNIFORM, BINARY, DTYPE, PRECISION, BLOCK_K, BLOCK_D,
        )  # fmt: skip


@triton.jit
def pool_tile(
    start, end, first_row, held, item, extra, value, error_sum, strength,
    states, table, targets, lists, row_numbers, item_numbers, shift, loss_weight, lse_weight,
    bias_gradient, filter_eps, num_rows, num_items, rounds, reach,
    loss_weight_stride, lse_weight_stride, states_stride, table_stride, column,
    D: tl.constexpr, EXTRA: tl.constexpr, MASKED: tl.constexpr, UNIFORM: tl.constexpr,
    BINARY: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds what rows start .. start + BLOCK_R of a group owe to a tile of candidates."""
    offset = start + tl.arange(0, BLOCK_R)
    row_mask = offset < end
    row = first_row + offset
    if MASKED:
        row = first_row + tl.minimum(offset, end - 1)
    target = tl.load(targets + row).to(tl.int32)
    if MASKED:
        row_shift = tl.load(shift + row, mask=row_mask, other=float("inf"))
    else:
        row_shift = tl.load(shift + row)
    g, h = load_weights(
        loss_weight, lse_weight, row, loss_weight_stride, lse_weight_stride, row_mask, UNIFORM
    )
    factor = 1.0
    if DTYPE == tl.float16:
        if UNIFORM:
            row_shift -= HALF_SHIFT
            g *= tl.exp2(tl.full((), HALF_SHIFT, tl.float32))
        else:
            factor = half_range(tl.abs(g) + tl.abs(h), DTYPE)
            g *= factor
            h *= factor
    place = tl.maximum(item, 0)
    z, block = scores(
        held, table, place, table_stride, states, row, states_stride, D, BLOCK_D, DTYPE, PRECISION
    )
    z *= strength * LOG2_E
    if EXTRA:
        z += extra[:, None]
    error = probability(z, row_shift[None, :], BINARY)
    if row_numbers is not None:
        met = have_met(place, row, item_numbers, row_numbers, num_items, num_rows, rounds, reach)
        error = tl.where(met, 0.0, error)
    if not UNIFORM:
        error *= (g + h)[None, :]
    if lists is not None:
        error = tl.where(item[:, None] == target[None, :], 0.0, error)
    else:
        # The target of a row that learns is one of the items, here or in another tile.
        learns = row_shift < float("inf")
        least = tl.min(item + tl.where(item < 0, 0x7FFFFFFF, 0), 0)
        here = learns & (target >= least) & (target <= tl.max(item, 0))
        if tl.max(here.to(tl.int32), 0) > 0:
            hit = here[None, :] & (item[:, None] == target[None, :])
            error -= tl.where(hit, g[None, :], 0.0)
    if bias_gradient is not None:
        error_sum += tl.sum(error, 1) / factor
    if D > BLOCK_D:
        block = load_rows(states, row, states_stride, None, column, D, BLOCK_D, DTYPE)
    if DTYPE == tl.float16 and not UNIFORM:
        value += dot(error.to(DTYPE), block, tl.zeros(value.shape, tl.float32), PRECISION) / factor
    elif filter_eps is None:
        value = dot(error.to(DTYPE), block, value, PRECISION)
    elif tl.max(tl.max(tl.abs(error), 1), 0) >= filter_eps * tl.max(tl.abs(g) + tl.abs(h), 0):
        value = dot(error.to(DTYPE), block, value, PRECISION)
    return value, error_sum


@triton.jit(do_not_specialize=_RAGGED)
def pool_gradient(
    states, table, targets, lists, bias, scale, log_q, log_weight, row_numbers, item_numbers,
    shift, loss_weight, lse_weight, filter_eps, rows, bias_gradient, touched, rank,
    num_rows: tl.int32, num_items: tl.int32, num_candidates: tl.int32, group_size: tl.int32,
    parts: tl.int32, first_group: tl.int32, rounds: tl.int32, reach: tl.int32,
    loss_weight_stride: tl.int64, lse_weight_stride: tl.int64, states_stride: tl.int64,
    table_stride: tl.int64,
    D: tl.constexpr, GIVEN: tl.constexpr, STORE: tl.constexpr, BY_SLOT: tl.constexpr,
    UNIFORM: tl.constexpr, BINARY: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What all rows of a large group add to a tile of its candidates, or of the catalogue.

    A program keeps its candidates and walks over the rows. Grid: candidate tiles of all groups,
    parts that share the rows (then the result is added, not stored), blocks of D.
    """
    tiles = tl.cdiv(num_candidates, BLOCK_K)
    local_group = tl.program_id(0) // tiles
    group = local_group + first_group
    slot = (tl.program_id(0) % tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    column = tl.program_id(2) * BLOCK_D
    inside = slot < num_candidates
    item = load_items(lists, group, slot, num_candidates, inside, True)
    strength = load_scale(scale)
    held = load_rows(table, tl.maximum(item, 0), table_stride, item >= 0, 0, D, BLOCK_D, DTYPE)
    EXTRA: tl.constexpr = GIVEN or bias is not None or log_q is not None or log_weight is not None
    extra = item
    if EXTRA:
        extra = candidate_bias(item, slot, group, num_candidates, inside, bias, log_q, log_weight)
    value = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    error_sum = tl.zeros((BLOCK_K,), tl.float32)
    first_row = group * group_size
    size = tl.minimum(group_size, num_rows - first_row)
    # Each part takes a run of row tiles; the last tile may be short.
    row_tiles = tl.cdiv(tl.cdiv(size, BLOCK_R), parts)
    begin = tl.program_id(1) * row_tiles * BLOCK_R
    end = tl.minimum(size, begin + row_tiles * BLOCK_R)
    whole = begin + tl.maximum(end - begin, 0) // BLOCK_R * BLOCK_R
    for start in range(begin, whole, BLOCK_R):
        value, error_sum = pool_tile(
            start, end, first_row, held, item, extra, value, error_sum, strength,
            states, table, targets, lists, row_numbers, item_numbers, shift, loss_weight,
            lse_weight, bias_gradient, filter_eps, num_rows, num_items, rounds, reach,
            loss_weight_stride, lse_weight_stride, states_stride, table_stride, column,
            D, EXTRA, False, UNIFORM, BINARY, DTYPE, PRECISION, BLOCK_R, BLOCK_D,
        )  # fmt: skip
    if whole < end:
        value, error_sum = pool_tile(
            whole, end, first_row, held, item, extra, value, error_sum, strength,
            states, table, targets, lists, row_numbers, item_numbers, shift, loss_weight,
            lse_weight, bias_gradient, filter_eps, num_rows, num_items, rounds, reach,
            loss_weight_stride, lse_weight_stride, states_stride, table_stride, column,
            D, EXTRA, True, UNIFORM, BINARY, DTYPE, PRECISION, BLOCK_R, BLOCK_D,
        )  # fmt: skip
    factor = 1.0
    if UNIFORM:
        factor = tl.load(loss_weight).to(tl.float32)
        if DTYPE == tl.float16:
            factor *= tl.exp2(-tl.full((), HALF_SHIFT, tl.float32))
    present = item >= 0
    if BY_SLOT:
        line = local_group.to(tl.int64) * num_candidates + slot
        present = inside
    else:
        line = destination(tl.maximum(item, 0), touched, rank, present)
    d = column + tl.arange(0, BLOCK_D)
    mask = present[:, None] & (d[None, :] < D)
    where = rows + line[:, None] * D + d[None, :]
    add_rows(where, value * (strength * factor), mask, STORE or BY_SLOT)
    if bias_gradient is not None:
        where = bias_gradient + (line if BY_SLOT else tl.maximum(item, 0))
        first = present & (tl.program_id(2) == 0)
        add_rows(where, error_sum * factor, first, BY_SLOT)


@triton.jit(do_not_specialize=["num_rows"])
def add_targets(
    states, targets, scale, target_error, loss_weight, lse_weight, rows, bias_gradient, touched,
    rank, num_rows: tl.int32, num_items: tl.int32, loss_weight_stride: tl.int64,
    lse_weight_stride: tl.int64, states_stride: tl.int64, ignore_index: tl.int64,
    D: tl.constexpr, DTYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What the rows add to their targets. Grid: row tiles, blocks of D."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < num_rows
    target = tl.load(targets + row, mask=row_mask, other=-1)
    inside = row_mask & (target != ignore_index) & (target >= 0) & (target < num_items)
    item = tl.where(inside, target, 0).to(tl.int32)
    g = load_weight(loss_weight, row, loss_weight_stride, row_mask)
    h = load_weight(lse_weight, row, lse_weight_stride, row_mask)
    error = target_gradient(tl.load(target_error + row, mask=row_mask, other=0), g, h, False)
    inside = inside & (error != 0)
    column = tl.program_id(1) * BLOCK_D
    e = load_rows(states, row, states_stride, inside, column, D, BLOCK_D, DTYPE)
    d = column + tl.arange(0, BLOCK_D)
    line = destination(item, touched, rank, inside)
    value = e.to(tl.float32) * (error * load_scale(scale))[:, None]
    mask = inside[:, None] & (d[None, :] < D)
    tl.atomic_add(rows + line[:, None] * D + d[None, :], value, mask=mask, sem="relaxed")
    if bias_gradient is not None:
        first = inside & (tl.program_id(1) == 0)
        tl.atomic_add(bias_gradient + item, error, mask=first, sem="relaxed")


@triton.jit(do_not_specialize=["num_entries"])
def add_segments(
    rows, parts, part_of_entry, item_of_entry, weight, touched, rank, num_entries: tl.int32,
    parts_stride: tl.int64, num_items: tl.int32,
    D: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds weighted parts to the rows of their items, in a fixed order.

    The entries are sorted by item; the program of an item's first entry sums all of them.
    Grid: entries, blocks of D.
    """
    entry = tl.program_id(0)
    item = tl.load(item_of_entry + entry)
    before = tl.load(item_of_entry + entry - 1, mask=entry > 0, other=-1)
    if (item != before) & (item >= 0) & (item < num_items):
        column = tl.program_id(1) * BLOCK_D
        value = tl.zeros((BLOCK_D,), tl.float32)
        begin = entry
        same = item
        while same == item:
            place = begin + tl.arange(0, BLOCK)
            mask = place < num_entries
            mask = mask & (tl.load(item_of_entry + place, mask=mask, other=-1) == item)
            part = tl.load(part_of_entry + place, mask=mask, other=0)
            block = load_rows(parts, part, parts_stride, mask, column, D, BLOCK_D, DTYPE)
            block = block.to(tl.float32)
            if weight is not None:
                block *= tl.load(weight + part, mask=mask, other=0)[:, None]
            value += tl.sum(block, 0)
            begin += BLOCK
            same = tl.load(item_of_entry + begin, mask=begin < num_entries, other=-1)
        line = destination(tl.full((1,), 0, tl.int32) + item.to(tl.int32), touched, rank,
                           tl.full((1,), 1, tl.int1))  # fmt: skip
        d = column + tl.arange(0, BLOCK_D)
        target = rows + line[:, None] * D + d[None, :]
        mask = d[None, :] < D
        old = tl.load(target, mask=mask, other=0)
        tl.store(target, old + value[None, :], mask=mask)
