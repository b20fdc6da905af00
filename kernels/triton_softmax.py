"""The losses over candidates on tensor cores: forward with the gradient of the states.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width, S splits.

Logits are in base 2 here: z2 = logit * log2(e), and so is `shift`. Lists None stands for the whole
catalogue, one candidate an item, the target among them. With a positive weight the loss is a sum
of binary cross-entropies, sigmoids stand for the softmax, and `highest` stays at `LOWEST`.
"""

import triton
import triton.language as tl

from kernels.triton_common import HALF_SHIFT, LN_2, LOG2_E, LOWEST, dot
from kernels.triton_tiles import (
    binary_terms,
    candidate_bias,
    have_met,
    load_items,
    load_rows,
    load_scale,
    load_weight,
    probability,
    scores,
    softplus,
    target_gradient,
)

_RAGGED = ["num_rows", "num_candidates", "group_size", "tiles_per_group", "rounds", "reach"]


@triton.jit
def load_absent(absent, row, row_mask):
    """Slots without a candidate for the row, 0 where nobody counts."""
    if absent is None:
        return tl.zeros(row.shape, tl.int32)
    else:
        return tl.load(absent + row, mask=row_mask, other=0)


@triton.jit
def row_constant(target, absent, log_q, num_items, num_candidates, CORRECTION: tl.constexpr):
    """The part of the logQ correction that all candidates of a row share, in base 2."""
    constant = tl.zeros(target.shape, tl.float32)
    if CORRECTION:
        misses = tl.maximum(num_candidates - absent, 1).to(tl.float32)
        if log_q is None:
            constant = tl.log2((num_items - 1).to(tl.float32) / misses)
        else:
            target_q = tl.exp(tl.load(log_q + target))
            constant = tl.log2(tl.maximum(1 - target_q, 1e-30) / misses)
    return constant


@triton.jit
def softmax_tile(
    begin, group, held, row, target, highest, total, mixture,
    states, table, lists, bias, log_q, log_weight, row_numbers, item_numbers, positive_weight,
    num_rows, num_items, rounds, reach, states_stride, table_stride, num_candidates,
    end, slope, filter_eps, column,
    D: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, EXTRA: tl.constexpr,
    WITH_GRADIENT: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online sums: candidates begin .. begin + BLOCK_K of the rows' group."""
    slot = begin + tl.arange(0, BLOCK_K)
    inside = slot < end
    item = load_items(lists, group, slot, num_candidates, inside, EXTRA)
    place = tl.maximum(item, 0)
    z, block = scores(
        held, states, row, states_stride, table, place, table_stride, D, BLOCK_D, DTYPE, PRECISION
    )
    z *= slope
    if EXTRA:
        extra = candidate_bias(item, slot, group, num_candidates, inside, bias, log_q, log_weight)
        z += extra[None, :]
    if lists is not None:
        z = tl.where(item[None, :] == target[:, None], -float("inf"), z)
    if row_numbers is not None:
        met = have_met(row, place, row_numbers, item_numbers, num_rows, num_items, rounds, reach)
        z = tl.where(met, -float("inf"), z)
    higher = highest
    if positive_weight is not None:
        p, part = binary_terms(z)
        total += part
        if DTYPE == tl.float16:
            p *= tl.exp2(tl.full((), HALF_SHIFT, tl.float32))
    else:
        higher = tl.maximum(highest, tl.max(z, 1))
        decay = tl.exp2(highest - higher)
        p = tl.exp2(z - higher[:, None])
        total = total * decay + tl.sum(p, 1)
        if WITH_GRADIENT:
            mixture *= decay[:, None]
    if WITH_GRADIENT:
        if D > BLOCK_D:
            block = load_rows(table, place, table_stride, None, column, D, BLOCK_D, DTYPE)
        if filter_eps is None:
            mixture = dot(p.to(DTYPE), block, mixture, PRECISION)
        elif tl.max(tl.max(p, 1) / total, 0) >= filter_eps:
            # The running total is at most the final one, so that no larger share is skipped.
            mixture = dot(p.to(DTYPE), block, mixture, PRECISION)
    return higher, total, mixture


@triton.jit
def target_logits(
    row, row_mask, target, states, table, bias, scale, num_items, states_stride, table_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Logits of the rows' targets in base 2; of item 0 where a target is none."""
    inside = row_mask & (target >= 0) & (target < num_items)
    item = tl.where(inside, target, 0)
    score = tl.zeros(row.shape, tl.float32)
    for begin in range(0, D, BLOCK_D):
        e = load_rows(states, row, states_stride, row_mask, begin, D, BLOCK_D, DTYPE)
        c = load_rows(table, item, table_stride, inside, begin, D, BLOCK_D, DTYPE)
        score += tl.sum(e.to(tl.float32) * c.to(tl.float32), 1)
    logit = score * load_scale(scale) * LOG2_E
    if bias is not None:
        logit += tl.load(bias + item).to(tl.float32) * LOG2_E
    return logit


@triton.jit
def finish_rows(
    row, row_mask, highest, total, absent, mixture, positive, block, faults,
    targets, log_q, loss, lse, shift, target_error, gradient, positive_weight, num_rows, num_items,
    num_candidates, ignore_index,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CATALOGUE: tl.constexpr, CORRECTION: tl.constexpr,
    CORRECTED_VALUE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """From the sums over the candidates to the outputs of the rows, and a block of D."""
    target = tl.load(targets + row, mask=row_mask, other=ignore_index)
    known = row_mask & (target != ignore_index)
    inside = known & (target >= 0) & (target < num_items)
    item = tl.where(inside, target, 0).to(tl.int32)
    constant = row_constant(item, absent, log_q, num_items, num_candidates, CORRECTION)
    # A softmax is that of the running maximum, until here.
    rest = highest + constant
    # At least 1 where there is a candidate at all; LOWEST stays lowest.
    negative = highest + tl.log2(tl.maximum(total, 1e-30)) + constant
    if positive_weight is not None:
        row_lse = tl.zeros(row.shape, tl.float32)
        row_loss = (positive_weight * softplus(-positive) + total) * LN_2
        error = -positive_weight * probability(-positive, 0.0, True)
        rest = row_lse
        if DTYPE == tl.float16:
            rest -= HALF_SHIFT
    elif CATALOGUE:
        row_lse = negative
        row_loss = tl.maximum(negative - positive, 0) * LN_2
        # The target is one of the candidates, whose softmax is in the mixture.
        error = tl.full(row.shape, -1.0, tl.float32)
    else:
        larger = tl.maximum(negative, positive)
        smaller = tl.minimum(negative, positive)
        tail = tl.log2(1 + tl.exp2(smaller - larger))
        row_lse = larger + tail
        row_loss = (larger - positive + tail) * LN_2
        error = -tl.exp2(negative - row_lse)
        if CORRECTED_VALUE:
            misses = tl.maximum(num_candidates - absent, 1).to(tl.float32)
            value = -error * (negative + tl.log2(misses) - positive) * LN_2
            row_loss = tl.where(total > 0, value, 0.0)
    if gradient is not None:
        share = tl.where(inside, tl.exp2(rest - row_lse), 0.0)
        d = block * BLOCK_D + tl.arange(0, BLOCK_D)
        place = gradient + row[:, None].to(tl.int64) * D + d[None, :]
        value = (mixture * share[:, None]).to(gradient.dtype.element_ty)
        tl.store(place, value, mask=row_mask[:, None] & (d[None, :] < D))
    first = row_mask & (block == 0)
    tl.atomic_or(faults + row * 0, 1, mask=first & known & (inside == 0), sem="relaxed")
    row_loss = tl.where(inside, row_loss, tl.where(known, float("nan"), 0.0))
    tl.store(loss + row, row_loss, mask=first)
    tl.store(lse + row, tl.where(inside, row_lse * LN_2, 0.0), mask=first)
    # Infinite where there is nothing to learn: every softmax of such a row is 0.
    tl.store(shift + row, tl.where(inside, row_lse - constant, float("inf")), mask=first)
    tl.store(target_error + row, tl.where(inside, error, 0.0), mask=first)


@triton.jit(do_not_specialize=_RAGGED)
def count_absent(
    absent, targets, lists, num_rows: tl.int32, num_candidates: tl.int32, group_size: tl.int32,
    tiles_per_group: tl.int32, GIVEN: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Slots of a row's list that hold its own target, or no candidate. Grid: row tiles.

    Apart from the softmax, whose registers are full.
    """
    group = tl.program_id(0) // tiles_per_group
    offset = (tl.program_id(0) % tiles_per_group) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = group * group_size + offset
    row_mask = (offset < group_size) & (row < num_rows)
    target = tl.load(targets + row, mask=row_mask, other=0).to(tl.int32)
    hits = tl.zeros((BLOCK_R, BLOCK_K), tl.int32)
    empty = tl.zeros((BLOCK_K,), tl.int32)
    for begin in range(0, num_candidates, BLOCK_K):
        slot = begin + tl.arange(0, BLOCK_K)
        place = lists + group.to(tl.int64) * num_candidates + slot
        # Beyond the list stands what is neither an item nor an empty slot.
        item = tl.load(place, mask=slot < num_candidates, other=-2)
        hits += (item[None, :] == target[:, None]).to(tl.int32)
        if GIVEN:
            empty += (item == -1).to(tl.int32)
    tl.store(absent + row, tl.sum(hits, 1) + tl.sum(empty, 0), mask=row_mask)


@triton.jit(do_not_specialize=_RAGGED)
def softmax_forward(
    states, table, targets, lists, bias, scale, log_q, log_weight, row_numbers, item_numbers,
    loss, lse, shift, target_error, gradient, faults, absent, filter_eps, partial_rows,
    partial_mixture, positive_weight,
    num_rows: tl.int32, num_items: tl.int32, num_candidates: tl.int32, group_size: tl.int32,
    tiles_per_group: tl.int32, rounds: tl.int32, reach: tl.int32, states_stride: tl.int64,
    table_stride: tl.int64, ignore_index: tl.int64,
    D: tl.constexpr, CORRECTION: tl.constexpr, CORRECTED_VALUE: tl.constexpr,
    GIVEN: tl.constexpr, SPLITS: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Losses of a tile of rows and, where `gradient` is given, their mixture of candidates.

    The mixture weighted by the softmax is the gradient of the states but for the target's term; it
    is accumulated in the same pass as the log-sum-exp, as attention accumulates its output.

    Grid: row tiles, blocks of D that the gradient has (1 without it), splits of the candidates.
    With SPLITS > 1 the partial softmax goes to partial_rows [S, 2, N] and partial_mixture
    [S, N, D], for `combine_splits`.
    """
    tile = tl.program_id(0)
    block = tl.program_id(1)
    split = tl.program_id(2)
    group = tile // tiles_per_group
    offset = (tile % tiles_per_group) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = group * group_size + offset
    row_mask = (offset < group_size) & (row < num_rows)
    row = tl.minimum(row, num_rows - 1)
    target = tl.load(targets + row).to(tl.int32)
    positive = target_logits(
        row, row_mask, target, states, table, bias, scale, num_items, states_stride, table_stride,
        D, BLOCK_D, DTYPE,
    )  # fmt: skip
    held = load_rows(states, row, states_stride, None, 0, D, BLOCK_D, DTYPE)
    slope = load_scale(scale) * LOG2_E
    highest = tl.full((BLOCK_R,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    mixture = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    tiles_per_split = tl.cdiv(tl.cdiv(num_candidates, BLOCK_K), SPLITS)
    first = split * tiles_per_split * BLOCK_K
    last = tl.minimum(first + tiles_per_split * BLOCK_K, num_candidates)
    whole = first + tl.maximum(last - first, 0) // BLOCK_K * BLOCK_K
    EXTRA: tl.constexpr = GIVEN or bias is not None or log_q is not None or log_weight is not None
    for begin in range(first, whole, BLOCK_K):
        highest, total, mixture = softmax_tile(
            begin, group, held, row, target, highest, total, mixture,
            states, table, lists, bias, log_q, log_weight, row_numbers, item_numbers,
            positive_weight, num_rows, num_items, rounds, reach, states_stride, table_stride,
            num_candidates, last, slope, filter_eps, block * BLOCK_D,
            D, BLOCK_K, BLOCK_D, EXTRA, gradient is not None, DTYPE, PRECISION,
        )  # fmt: skip
    if whole < last:
        highest, total, mixture = softmax_tile(
            whole, group, held, row, target, highest, total, mixture,
            states, table, lists, bias, log_q, log_weight, row_numbers, item_numbers,
            positive_weight, num_rows, num_items, rounds, reach, states_stride, table_stride,
            num_candidates, last, slope, filter_eps, block * BLOCK_D,
            D, BLOCK_K, BLOCK_D, True, gradient is not None, DTYPE, PRECISION,
        )  # fmt: skip
    if SPLITS == 1:
        row_absent = load_absent(absent, row, row_mask)
        finish_rows(
            row, row_mask, highest, total, row_absent, mixture, positive, block, faults,
            targets, log_q, loss, lse, shift, target_error, gradient, positive_weight, num_rows,
            num_items, num_candidates, ignore_index, D, BLOCK_D, lists is None, CORRECTION,
            CORRECTED_VALUE, DTYPE,
        )  # fmt: skip
    else:
        place = partial_rows + split * 2 * num_rows.to(tl.int64) + row
        mine = row_mask & (block == 0)
        tl.store(place, highest, mask=mine)
        tl.store(place + num_rows, total, mask=mine)
        if gradient is not None:
            d = block * BLOCK_D + tl.arange(0, BLOCK_D)
            line = split * num_rows.to(tl.int64) + row
            tl.store(
                partial_mixture + line[:, None] * D + d[None, :],
                mixture,
                mask=row_mask[:, None] & (d[None, :] < D),
            )


@triton.jit(do_not_specialize=["num_rows", "num_candidates"])
def combine_splits(
    states, table, targets, lists, bias, scale, log_q, loss, lse, shift, target_error,
    gradient, faults, absent, partial_rows, partial_mixture, positive_weight,
    num_rows: tl.int32, num_items: tl.int32, num_candidates: tl.int32,
    states_stride: tl.int64, table_stride: tl.int64, ignore_index: tl.int64,
    D: tl.constexpr, CORRECTION: tl.constexpr, CORRECTED_VALUE: tl.constexpr,
    SPLITS: tl.constexpr, DTYPE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Merges the splits of `softmax_forward`. Grid: row tiles, blocks of D."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    block = tl.program_id(1)
    row_mask = row < num_rows
    highest = tl.full((BLOCK_R,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    mixture = tl.zeros((BLOCK_R, BLOCK_D), tl.float32)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    for split in range(SPLITS):
        place = partial_rows + split * 2 * num_rows.to(tl.int64) + row
        part_highest = tl.load(place, mask=row_mask, other=LOWEST)
        part_total = tl.load(place + num_rows, mask=row_mask, other=0)
        higher = tl.maximum(highest, part_highest)
        decay = tl.exp2(highest - higher)
        part_decay = tl.exp2(part_highest - higher)
        total = total * decay + part_total * part_decay
        if gradient is not None:
            line = split * num_rows.to(tl.int64) + row
            part = tl.load(
                partial_mixture + line[:, None] * D + d[None, :],
                mask=row_mask[:, None] & (d[None, :] < D),
                other=0,
            )
            mixture = mixture * decay[:, None] + part * part_decay[:, None]
        highest = higher
    target = tl.load(targets + row, mask=row_mask, other=-1).to(tl.int32)
    positive = target_logits(
        row, row_mask, target, states, table, bias, scale, num_items, states_stride, table_stride,
        D, BLOCK_D, DTYPE,
    )  # fmt: skip
    finish_rows(
        row, row_mask, highest, total, load_absent(absent, row, row_mask), mixture, positive,
        block, faults,
        targets, log_q, loss, lse, shift, target_error, gradient, positive_weight, num_rows,
        num_items, num_candidates, ignore_index, D, BLOCK_D, lists is None, CORRECTION,
        CORRECTED_VALUE, DTYPE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows"])
def finish_states_gradient(
    gradient, scale_gradient, states, table, targets, scale, target_error, loss_weight, lse_weight,
    num_rows: tl.int32, num_items: tl.int32, loss_weight_stride: tl.int64,
    lse_weight_stride: tl.int64, states_stride: tl.int64, table_stride: tl.int64,
    ignore_index: tl.int64,
    D: tl.constexpr, CATALOGUE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Turns the mixtures into the gradient of the states under the upstream weights, in place.

    With a logit scale, also the part of its gradient that every row has. Grid: row tiles, blocks
    of D.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    block = tl.program_id(1)
    row_mask = row < num_rows
    target = tl.load(targets + row, mask=row_mask, other=-1)
    inside = row_mask & (target != ignore_index) & (target >= 0) & (target < num_items)
    item = tl.where(inside, target, 0).to(tl.int32)
    g = load_weight(loss_weight, row, loss_weight_stride, row_mask)
    h = load_weight(lse_weight, row, lse_weight_stride, row_mask)
    error = tl.load(target_error + row, mask=row_mask, other=0)
    target_weight = target_gradient(error, g, h, CATALOGUE)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    place = gradient + row[:, None].to(tl.int64) * D + d[None, :]
    mask = row_mask[:, None] & (d[None, :] < D)
    # Of SCE most rows have no weight.
    weighs = mask & (g + h != 0)[:, None]
    value = tl.load(place, mask=weighs, other=0).to(tl.float32) * (g + h)[:, None]
    inside = inside & (target_weight != 0)
    c = load_rows(table, item, table_stride, inside, block * BLOCK_D, D, BLOCK_D, DTYPE)
    value += c.to(tl.float32) * target_weight[:, None]
    tl.store(place, (value * load_scale(scale)).to(gradient.dtype.element_ty), mask=mask)
    if scale_gradient is not None:
        e = load_rows(states, row, states_stride, row_mask, block * BLOCK_D, D, BLOCK_D, DTYPE)
        part = tl.sum(value * e.to(tl.float32), 1)
        tl.store(scale_gradient + block * num_rows.to(tl.int64) + row, part, mask=row_mask)
