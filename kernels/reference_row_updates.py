"""The eager twin of the row updates, any device, tile by tile.

Shapes: V items, U touched items, u items of a tile, D width.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.candidates import philox
from kernels.reference import TILE_ELEMENTS

_GRIDS = {torch.bfloat16: (16, 1.0), torch.float16: (13, 2.0**-112)}
"""Bits of a float32 that a type cuts off, and the factor that maps the type's subnormal numbers to
those of float32, so that this holds for them too."""


class Update(NamedTuple):
    """What every update is made of; `row_adam` says what the fields are."""

    table_VD: Tensor
    items_U: Tensor
    rows_UD: Tensor
    num_touched: Tensor | None
    step: int
    seed: int
    clock: tuple[Tensor, Tensor] | None = None
    """Step and learning rate, where they are on the device: `step` and the numbers that depend on
    them are not meant."""


class Adam(NamedTuple):
    """Numbers of an Adam step that all rows share, made in double precision.

    Attributes:
        log_beta1: Natural logarithm of beta1.
        log_beta2: Natural logarithm of beta2.
        gain1: 1 - beta1.
        gain2: 1 - beta2.
        log_shrink: Logarithm of 1 - lr * weight_decay; None: no weight decay.
        step_size: lr / (1 - beta1^step).
        root_scale: 1 / sqrt(1 - beta2^step).
        eps: Added to the root of the second moment.
    """

    log_beta1: float
    log_beta2: float
    gain1: float
    gain2: float
    log_shrink: float | None
    step_size: float
    root_scale: float
    eps: float


def update(task: Update, state: tuple[Any, ...], numbers: Adam | tuple[float, float]) -> None:
    """A step of the optimizer whose numbers these are; all rows of the task are meant."""
    for tile in _tiles(task):
        if isinstance(numbers, Adam):
            _eager_adam(tile, numbers, *state)
        else:
            _eager_adagrad(tile, numbers, *state)


def _tiles(update: Update) -> Iterator[Update]:
    """The update in parts that bound the memory, with gradients in float32."""
    height = max(1, TILE_ELEMENTS // update.table_VD.shape[1])
    for begin in range(0, len(update.items_U), height):
        rows = slice(begin, begin + height)
        yield update._replace(items_U=update.items_U[rows], rows_UD=update.rows_UD[rows].float())


def _eager_adagrad(update: Update, numbers: tuple[float, float], square_sum_V: Tensor) -> None:
    table_VD, items_u, rows_uD, *_ = update
    lr, eps = numbers
    square_sum_u = square_sum_V[items_u] + rows_uD.square().sum(1) / rows_uD.shape[1]
    square_sum_V[items_u] = square_sum_u
    step_size_u = lr / (square_sum_u.sqrt() + eps)
    moved_uD = table_VD[items_u].float() - rows_uD * step_size_u[:, None]
    table_VD[items_u] = _round(moved_uD, table_VD.dtype, update, 0)


def _eager_adam(
    update: Update,
    adam: Adam,
    exp_avg_VD: Tensor | None,
    exp_avg_sq: Tensor,
    last_step_V: Tensor,
) -> None:
    table_VD, items_u, rows_uD, *_ = update
    skipped_u1 = (update.step - last_step_V[items_u])[:, None].float()
    last_step_V[items_u] = update.step
    exp_avg_uD = rows_uD
    if exp_avg_VD is not None:
        exp_avg_uD = exp_avg_VD[items_u].float() * _power(adam.log_beta1, skipped_u1)
        exp_avg_uD += adam.gain1 * rows_uD
        exp_avg_VD[items_u] = _round(exp_avg_uD, exp_avg_VD.dtype, update, 16)
    by_row = exp_avg_sq.ndim == 1
    square_ud = rows_uD.square()
    if by_row:
        square_ud = square_ud.sum(1, keepdim=True) / square_ud.shape[1]
    square_ud *= adam.gain2
    square_ud += exp_avg_sq[items_u].view_as(square_ud) * _power(adam.log_beta2, skipped_u1)
    exp_avg_sq[items_u] = square_ud[:, 0] if by_row else square_ud
    moved_uD = table_VD[items_u].float()
    if adam.log_shrink is not None:
        moved_uD += moved_uD * torch.expm1(skipped_u1 * adam.log_shrink)
    moved_uD -= exp_avg_uD * (adam.step_size / (square_ud.sqrt() * adam.root_scale + adam.eps))
    table_VD[items_u] = _round(moved_uD, table_VD.dtype, update, 0)


def _power(log_base: float, exponent: Tensor) -> Tensor:
    """A power of a base near 1, as exact as the base."""
    return torch.expm1(exponent * log_base) + 1


def _noise(update: Update) -> Tensor:
    """Random 32-bit words of the update's rows, int64 [U, D].

    Word d % 4 of the block of (d // 4, item, step, 1). The candidates' counters end in 0, so a
    seed that is also theirs does no harm.
    """
    items_U, (_, width) = update.items_U, update.table_VD.shape
    blocks = -(-width // 4)
    counter = torch.empty(4, len(items_U), blocks, dtype=torch.int64, device=items_U.device)
    counter[0] = torch.arange(blocks, device=items_U.device)
    counter[1] = items_U[:, None]
    counter[2] = update.step
    counter[3] = 1
    return philox(update.seed, counter).permute(1, 2, 0).flatten(1)[:, :width]


def _round(value_UD: Tensor, dtype: torch.dtype, update: Update, shift: int) -> Tensor:
    """float32 values of an update's rows in a type; in a half type, at random.

    A value that the type has stays as it is. The random bits are those of `_noise` from the bit
    `shift` on.
    """
    if dtype == torch.float32:
        return value_UD
    bits, scale = _GRIDS[dtype]
    cut_off = (1 << bits) - 1
    noise_UD = (_noise(update) >> shift & cut_off).to(torch.int32)
    word_UD = (value_UD * scale).view(torch.int32) + noise_UD
    rounded_UD = (word_UD & ~cut_off).view(torch.float32) / scale
    return torch.where(value_UD.isnan(), value_UD, rounded_UD).to(dtype)
