"""What the kernels that multiply states and items share: tiles of them, and their products.

Shapes: N rows, K candidates, V items, D width. Lists None stands for the whole catalogue.
"""

import triton
import triton.language as tl

from kernels.triton_common import LOG2_E, dot


@triton.jit
def load_rows(
    matrix, row, stride, mask, begin, D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr
):
    """Columns begin .. begin + BLOCK_D of some rows, zero outside.

    In a loop the mask is None and the rows are any valid ones: a predicate for every load costs
    more than a row that nobody looks at.
    """
    d = begin + tl.arange(0, BLOCK_D)
    place = matrix + row[:, None].to(tl.int64) * stride + d[None, :]
    if mask is None:
        if D % BLOCK_D == 0:
            return tl.load(place).to(DTYPE)
        else:
            return tl.load(place, mask=d[None, :] < D, other=0).to(DTYPE)
    else:
        if D % BLOCK_D == 0:
            return tl.load(place, mask=mask[:, None], other=0).to(DTYPE)
        else:
            return tl.load(place, mask=mask[:, None] & (d[None, :] < D), other=0).to(DTYPE)


@triton.jit
def load_scale(scale):
    """The logit scale, 1 where there is none."""
    if scale is None:
        return 1.0
    else:
        return tl.load(scale).to(tl.float32)


@triton.jit
def load_weight(weight, row, stride, mask):
    """A row's upstream gradient, 0 where there is none."""
    if weight is None:
        return tl.zeros(row.shape, tl.float32)
    else:
        return tl.load(weight + row.to(tl.int64) * stride, mask=mask, other=0).to(tl.float32)


@triton.jit
def target_gradient(error, g, h, CATALOGUE: tl.constexpr):
    """Upstream gradient of the targets' logits, beside their share among the candidates.

    error: Softmax of the target less 1 or, over the catalogue, -1.
    """
    if CATALOGUE:
        return g * error
    else:
        return g * error + h * (1 + error)


@triton.jit
def probability(z, shift, BINARY: tl.constexpr):
    """Softmax of a candidate's logit or, for binary cross-entropies, its sigmoid."""
    if BINARY:
        return 1 / (1 + tl.exp2(shift - z))
    else:
        return tl.exp2(z - shift)


@triton.jit
def softplus(z):
    """log(1 + e^z) in base 2."""
    return tl.maximum(z, 0) + tl.log2(1 + tl.exp2(-tl.abs(z)))


@triton.jit
def product(a, b):
    """The product of two."""
    return a * b


@triton.jit
def binary_terms(z):
    """Sigmoid of every logit, and the sum of softplus over the last axis.

    That is one logarithm a row, of a product that at most 64 columns keep within float32.
    """
    tl.static_assert(z.shape[1] <= 64)
    small = tl.exp2(-tl.abs(z))
    whole = 1 + small
    total = tl.sum(tl.maximum(z, 0), 1) + tl.log2(tl.reduce(whole, 1, product))
    return tl.where(z >= 0, 1.0, small) / whole, total


@triton.jit
def have_met(left, right, left_numbers, right_numbers, num_left, num_right, rounds, reach):
    """Which of them had numbers within `reach` of each other in an earlier round."""
    met = tl.zeros((left.shape[0], right.shape[0]), tl.int1)
    for number in range(rounds):
        a = tl.load(left_numbers + number * num_left.to(tl.int64) + left)
        b = tl.load(right_numbers + number * num_right.to(tl.int64) + right)
        met = met | (tl.abs(a[:, None] - b[None, :]) <= reach)
    return met


@triton.jit
def load_items(lists, group, slot, num_candidates, inside, MASKED: tl.constexpr):
    """The items of a group's slots, -1 where there is no candidate."""
    if lists is None:
        if MASKED:
            return tl.where(inside, slot, -1)
        else:
            return slot
    else:
        place = lists + group.to(tl.int64) * num_candidates + slot
        if MASKED:
            return tl.load(place, mask=inside, other=-1)
        else:
            return tl.load(place)


@triton.jit
def candidate_bias(item, slot, group, num_candidates, inside, bias, log_q, log_weight):
    """What the logit of a candidate has beside its score, in base 2; -inf in an empty slot."""
    extra = tl.where(item >= 0, 0.0, -float("inf"))
    if bias is not None:
        extra += tl.load(bias + item, mask=item >= 0, other=0).to(tl.float32) * LOG2_E
    if log_q is not None:
        extra -= tl.load(log_q + item, mask=item >= 0, other=0) * LOG2_E
    if log_weight is not None:
        place = log_weight + group.to(tl.int64) * num_candidates + slot
        extra += tl.load(place, mask=inside & (item >= 0), other=0) * LOG2_E
    return extra


@triton.jit
def scores(
    held, left, left_row, left_stride, right, right_row, right_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products of left and right rows, and the right rows where D is one block.

    held: The left rows where D is one block, which a loop keeps.
    """
    product = tl.zeros((left_row.shape[0], right_row.shape[0]), tl.float32)
    if D <= BLOCK_D:
        block = load_rows(right, right_row, right_stride, None, 0, D, BLOCK_D, DTYPE)
        return dot(held, tl.trans(block), product, PRECISION), block
    else:
        for begin in range(0, D, BLOCK_D):
            a = load_rows(left, left_row, left_stride, None, begin, D, BLOCK_D, DTYPE)
            block = load_rows(right, right_row, right_stride, None, begin, D, BLOCK_D, DTYPE)
            product = dot(a, tl.trans(block), product, PRECISION)
        return product, held
