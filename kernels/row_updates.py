"""Optimizer updates of the touched rows of an item table: their cost does not grow with V.

Shapes: V items, U touched items, D width.

A half table is rounded at random, up with the probability of the part that is cut off: to nearest,
an update smaller than half a unit in the last place would vanish, and would do so every time. The
random bits are a function of (seed, step, item, column), as those of the candidates are, so the
result is one of the arguments alone, and every backend rounds a value alike.
"""

import math

import torch
from torch import Tensor

from kernels import reference_row_updates
from kernels._backend import check_interpreter, choose_backend
from kernels._checks import check_count, kind
from kernels.gpu import on_gpu
from kernels.reference_row_updates import Adam, Update

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_STEPS = (1 << 31) - 1


def row_adagrad(
    table_VD: Tensor,
    items_U: Tensor,
    rows_UD: Tensor,
    square_sum_V: Tensor,
    *,
    step: int | Tensor,
    lr: float | Tensor,
    eps: float = 1e-8,
    seed: int = 0,
    num_touched: Tensor | None = None,
) -> None:
    """A step of row-wise Adagrad on some rows of a table, in place.

    With g the gradient of row v and a its accumulator::

        a += mean_d(g^2)
        w -= lr * g / (sqrt(a) + eps)

    Args:
        table_VD: Item table, float32, bfloat16 or float16, contiguous. A half table is rounded
            at random; the module says why.
        items_U: Ids of the touched items, int64, each once.
        rows_UD: Gradients of their rows, float32, bfloat16 or float16.
        square_sum_V: Accumulators, float32, 0 at first.
        step: Number of the step, from 1 on; another one for every step, so that no two round
            alike. A number or, for a step that is captured in a CUDA graph, int32 [1] on the
            table's device; then the rate is there too.
        lr: Learning rate, a number or float32 [1].
        eps: Added to the root, positive.
        seed: 64-bit key of the rounding, unsigned.
        num_touched: int32 [1] on the table's device: only so many of the items and rows are
            meant, what follows is never read. None: all of them. Triton does not wait for it,
            the eager backend does.

    Raises:
        ValueError: An argument does not fit; the message names it. On a GPU an item outside
            [0, V) is left out instead.

    Source: row-wise Adagrad of DLRM (arXiv 1906.00091) and of FBGEMM (`EXACT_ROWWISE_ADAGRAD`).
    """
    step, lr, clock = _timed(step, lr, table_VD)
    update = Update(table_VD, items_U, rows_UD, num_touched, step, seed, clock)
    _check_update(update)
    _check_state("square_sum_V", square_sum_V, table_VD, (len(table_VD),), (torch.float32,))
    check_adagrad(lr, eps, seed)
    _update(update, (square_sum_V,), (lr, eps))


def row_adam(
    table_VD: Tensor,
    items_U: Tensor,
    rows_UD: Tensor,
    exp_avg_VD: Tensor | None,
    exp_avg_sq: Tensor,
    last_step_V: Tensor,
    *,
    step: int | Tensor,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    seed: int = 0,
    num_touched: Tensor | None = None,
) -> None:
    """A step of Adam on some rows of a table, in place, as if it had met every gradient of 0.

    With g the gradient of row v, t the step, s the last one that touched the row, and m and u its
    moments::

        m = beta1^(t - s) m + (1 - beta1) g
        u = beta2^(t - s) u + (1 - beta2) g^2
        w = (1 - lr * weight_decay)^(t - s) w - lr m' / (sqrt(u') + eps)

    where m' = m / (1 - beta1^t) and u' = u / (1 - beta2^t). The moments are those of dense Adam,
    whose gradients of 0 decay them at every step; the moves that it would have made meanwhile are
    left out: of the move that a gradient makes in ten steps of dense Adam with a beta1 of 0.9, a
    row that is seldom touched makes a tenth. With a beta1 of 0 it makes the whole at once. A row
    that is touched at every step moves as under `torch.optim.AdamW`. Weight decay is that of the
    skipped steps too, at the present learning rate; a row that is never touched has none.

    The second moment is an element's, [V, D], or a row's, [V], with mean_d(g^2) in place of g^2:
    the state is then half as large, and the elements of a row share their step size.

    Args:
        table_VD: Item table, float32, bfloat16 or float16, contiguous. A half table is rounded
            at random; the module says why.
        items_U: Ids of the touched items, int64, each once.
        rows_UD: Gradients of their rows, float32, bfloat16 or float16.
        exp_avg_VD: First moments, float32, or bfloat16 which is rounded as a half table; 0 at
            first. None with a beta1 of 0, where they are the gradients.
        exp_avg_sq: Second moments, float32 [V] or [V, D], 0 at first.
        last_step_V: The last step of every row, int32, 0 at first.
        step: t, greater than that of every earlier update; a number or, for a step that is
            captured in a CUDA graph, int32 [1] on the table's device; then the rate is there too.
        lr: Learning rate, a number or float32 [1].
        betas: Decay of the two moments, each in [0, 1).
        eps: Added to the root, positive.
        weight_decay: Decoupled weight decay, below 1 / lr; 0 where that is on the device.
        seed: 64-bit key of the rounding, unsigned.
        num_touched: int32 [1] on the table's device: only so many of the items and rows are
            meant, what follows is never read. None: all of them. Triton does not wait for it,
            the eager backend does.

    Raises:
        ValueError: An argument does not fit; the message names it. On a GPU an item outside
            [0, V) is left out instead.

    Source: Adam (arXiv 1412.6980), AdamW (arXiv 1711.05101); the second moment of a row is that of
    FBGEMM's `PARTIAL_ROWWISE_ADAM`.
    """
    step, lr, clock = _timed(step, lr, table_VD)
    update = Update(table_VD, items_U, rows_UD, num_touched, step, seed, clock)
    _check_update(update)
    shape = tuple(table_VD.shape)
    if exp_avg_VD is not None:
        _check_state("exp_avg_VD", exp_avg_VD, table_VD, shape, (torch.float32, torch.bfloat16))
    elif betas[0]:
        raise ValueError(f"exp_avg_VD is needed with a beta1 of {betas[0]}")
    square_shape = shape if exp_avg_sq.ndim == 2 else shape[:1]
    _check_state("exp_avg_sq", exp_avg_sq, table_VD, square_shape, (torch.float32,))
    _check_state("last_step_V", last_step_V, table_VD, shape[:1], (torch.int32,))
    check_adam(lr, betas, eps, weight_decay, seed)
    if clock is not None and weight_decay:
        raise ValueError("weight_decay must be 0 where step and lr are on the device")
    beta1, beta2 = betas
    adam = Adam(
        log_beta1=_log(beta1),
        log_beta2=_log(beta2),
        gain1=1 - beta1,
        gain2=1 - beta2,
        log_shrink=math.log1p(-lr * weight_decay) if lr * weight_decay else None,
        step_size=lr / (1 - beta1**step),
        root_scale=1 / math.sqrt(1 - beta2**step),
        eps=eps,
    )
    _update(update, (exp_avg_VD, exp_avg_sq, last_step_V), adam)


def _timed(
    step: int | Tensor, lr: float | Tensor, table_VD: Tensor
) -> tuple[int, float, tuple[Tensor, Tensor] | None]:
    """Step and rate as numbers; or placeholders for them, and where they are on the device."""
    if not isinstance(step, Tensor) and not isinstance(lr, Tensor):
        return step, lr, None
    for name, value, dtype in (("step", step, torch.int32), ("lr", lr, torch.float32)):
        if not isinstance(value, Tensor) or value.shape != (1,) or value.dtype != dtype:
            shown = kind(value) if isinstance(value, Tensor) else value
            raise ValueError(
                f"{name} must be {str(dtype).removeprefix('torch.')} of shape [1], as the other "
                f"of step and lr is on the device, not {shown}"
            )
        _check_device(name, value, table_VD)
    assert isinstance(step, Tensor)
    assert isinstance(lr, Tensor)
    if _backend_of(table_VD) == "triton":
        return 1, 1.0, (step, lr)
    return int(step), float(lr), None


def _backend_of(table_VD: Tensor) -> str:
    # Of one column, for the limit that it knows is on the width of matrix products.
    return choose_backend(table_VD[:, :1], table_VD)


def _log(beta: float) -> float:
    # That of 0 would be infinite; this is 0 as soon as it is raised to a power and added to 1.
    return math.log(max(beta, 1e-38))


@torch.no_grad()
def _update(
    update: Update, state: tuple[Tensor | None, ...], numbers: Adam | tuple[float, float]
) -> None:
    if not len(update.items_U):
        return
    table_VD = update.table_VD
    if not on_gpu(table_VD.device):
        _check_ids(_meant(update).items_U, len(table_VD))
    if _backend_of(table_VD) == "triton":
        from kernels import triton_row_updates

        check_interpreter(table_VD.device)
        triton_row_updates.update(update, state, numbers)
        return
    reference_row_updates.update(_meant(update), state, numbers)


def _meant(update: Update) -> Update:
    """The update without what stands behind its touched rows; waits for their number."""
    if update.num_touched is None:
        return update
    number = int(update.num_touched)
    return update._replace(
        items_U=update.items_U[:number], rows_UD=update.rows_UD[:number], num_touched=None
    )


def check_adagrad(lr: float, eps: float, seed: int) -> None:
    """Raises a ValueError that names the first setting which is out of range."""
    _check_number("lr", lr)
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be finite and positive, not {eps}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in [0, 2^64), not be {seed}")


def check_adam(
    lr: float, betas: tuple[float, float], eps: float, weight_decay: float, seed: int
) -> None:
    """Raises a ValueError that names the first setting which is out of range."""
    check_adagrad(lr, eps, seed)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), not {betas}")
    _check_number("weight_decay", weight_decay)
    if lr * weight_decay >= 1:
        raise ValueError(
            f"weight_decay must be below 1 / lr, but is {weight_decay} with an lr of {lr}"
        )


def _check_number(name: str, number: float) -> None:
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and not negative, not {number}")


def _check_update(update: Update) -> None:
    table_VD, items_U, rows_UD, num_touched, step, *_ = update
    for name, matrix in (("table_VD", table_VD), ("rows_UD", rows_UD)):
        if matrix.ndim != 2 or matrix.dtype not in _DTYPES:
            raise ValueError(
                f"{name} must be a matrix of float32, bfloat16 or float16, not {kind(matrix)}"
            )
    if table_VD.shape[1] == 0:
        raise ValueError("table_VD must have at least one column")
    if not table_VD.is_contiguous():
        raise ValueError("table_VD must be contiguous")
    check_count("table_VD", "items", len(table_VD))
    if items_U.ndim != 1 or items_U.dtype != torch.int64:
        raise ValueError(f"items_U must be an int64 vector, not {kind(items_U)}")
    _check_shape("rows_UD", rows_UD, (len(items_U), table_VD.shape[1]))
    if num_touched is not None:
        if num_touched.dtype != torch.int32:
            raise ValueError(f"num_touched must be int32 of shape [1], not {kind(num_touched)}")
        _check_shape("num_touched", num_touched, (1,))
    for name, tensor in (("items_U", items_U), ("rows_UD", rows_UD), ("num_touched", num_touched)):
        if tensor is not None:
            _check_device(name, tensor, table_VD)
    if not 1 <= step <= _MOST_STEPS:
        raise ValueError(f"step must lie in [1, {_MOST_STEPS}], not be {step}")


def _check_state(
    name: str,
    tensor: Tensor,
    table_VD: Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    _check_shape(name, tensor, shape)
    if tensor.dtype not in dtypes:
        choices = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} must be {choices}, not {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")
    _check_device(name, tensor, table_VD)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, not {list(tensor.shape)}")


def _check_device(name: str, tensor: Tensor, table_VD: Tensor) -> None:
    if tensor.device != table_VD.device:
        raise ValueError(f"{name} is on {tensor.device}, but table_VD is on {table_VD.device}")


def _check_ids(items_U: Tensor, num_items: int) -> None:
    if not len(items_U):
        return
    low, high = int(items_U.min()), int(items_U.max())
    if low < 0 or high >= num_items:
        raise ValueError(f"items_U must lie in [0, {num_items}), but spans {low} to {high}")
