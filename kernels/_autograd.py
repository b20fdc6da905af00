"""How the losses are differentiated.

Shapes: N rows, K candidates, V items, U touched items, D width.

The states' gradient is made in place of an output of the forward operator. The rows of a table's
gradient go into a sink, where one is given.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import reference
from kernels._arguments import LEAVES, NUM_ARGUMENTS, NUM_TENSORS, Flat, problem_of, split
from kernels.row_gradient import RowGradient, RowSink

_LOSSES = "the losses"


def _setup_context(ctx: Any, inputs: Flat, output: tuple[Tensor, ...]) -> None:
    sink, *arguments = inputs
    ctx.sink = sink
    flat, ctx.options = split(arguments)
    kept = output[2:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(*flat[:NUM_TENSORS], *kept)
    ctx.numbers = flat[NUM_TENSORS:]
    ctx.is_spent = False


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    found: list[Tensor | None] = [None] * len(LEAVES)
    losses_grads = grads[:2]
    if any(grad is not None for grad in losses_grads):
        backend, *_ = ctx.options
        compute = _eager_backward if backend == "eager" else _triton_backward
        # The sink comes before the arguments.
        needs = [ctx.needs_input_grad[1 + place] for place in LEAVES]
        with torch.no_grad():
            found = compute(ctx, losses_grads, needs)
        if torch.is_grad_enabled():
            leaves = [ctx.saved_tensors[place] for place in LEAVES]
            found = refuse_second_derivative(found, [*leaves, *losses_grads], _LOSSES)
    by_place = dict(zip(LEAVES, found, strict=True))
    places = range(NUM_ARGUMENTS + len(ctx.options))
    return None, *(by_place.get(place) for place in places)


def _eager_backward(
    ctx: Any, grads: tuple[Tensor | None, ...], needs: list[bool]
) -> list[Tensor | None]:
    saved, (_, table_gradient, *_) = ctx.saved_tensors, ctx.options
    flat = (*saved[:NUM_TENSORS], *ctx.numbers)
    shift_N, target_error_N, *_ = saved[NUM_TENSORS:]
    touched_U = None
    if table_gradient == "touched":
        touched_U = reference.touched_items(problem_of(flat))
    found = torch.ops.paretocut.eager_gradients(
        *flat, shift_N, target_error_N, *grads, touched_U, needs
    )
    states_ND, table_UD, bias_V, scale = (
        grad if needed else None for grad, needed in zip(found, needs, strict=True)
    )
    if table_UD is not None and touched_U is not None:
        if ctx.sink is not None:
            ctx.sink.add(RowGradient(touched_U, table_UD))
            table_UD = None
        else:
            table_UD = _sparse_rows(table_UD, touched_U, flat[1])
    return [states_ND, table_UD, bias_V, scale]


def _triton_backward(
    ctx: Any, grads: tuple[Tensor | None, ...], needs: list[bool]
) -> list[Tensor | None]:
    saved, (_, table_gradient, _, filter_eps) = ctx.saved_tensors, ctx.options
    flat = (*saved[:NUM_TENSORS], *ctx.numbers)
    *kept, mixtures_ND = saved[NUM_TENSORS:]
    needs_states, needs_table, needs_bias, needs_scale = needs
    found: list[Tensor | None] = [None] * 4
    touched: Any = (None,) * 4
    num_touched = None
    if needs_table and table_gradient == "touched":
        touched = torch.ops.paretocut.triton_touched_items(*flat, kept[2])
        if ctx.sink is None:
            num_touched = _OnItsWay(touched[-1])
    if needs_table or needs_bias:
        rows, bias_V = torch.ops.paretocut.triton_table_gradients(
            *flat, *kept, *touched, *grads, table_gradient, filter_eps
        )
        if ctx.sink is not None and needs_table:
            *_, items_U, number_1 = touched
            ctx.sink.add(RowGradient(items_U, rows, number_1))
        elif needs_table:
            found[1] = rows
        found[2] = bias_V if needs_bias else None
    if needs_states or needs_scale:
        if ctx.is_spent:
            *_, mixtures_ND = torch.ops.paretocut.cross_entropy(*flat, *ctx.options)
        ctx.is_spent = True
        # Autograd need not know that what was saved becomes the gradient: `is_spent` does.
        mixtures_ND = mixtures_ND.data
        scale_1 = torch.ops.paretocut.triton_states_gradient(*flat, mixtures_ND, kept[1], *grads)
        found[0] = mixtures_ND if needs_states else None
        found[3] = scale_1.reshape(()) if needs_scale else None
    if num_touched is not None:
        number = num_touched.wait()
        found[1] = _sparse_rows(rows[:number], touched[2][:number], flat[1])
    return found


class _OnItsWay:
    """A number of the device that is copied to the host while the device goes on."""

    def __init__(self, number_1: Tensor) -> None:
        self._event = None
        self._number_1 = number_1.to("cpu", non_blocking=True)
        if number_1.is_cuda:
            self._event = torch.cuda.current_stream(number_1.device).record_event()

    def wait(self) -> int:
        """The number, as soon as it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._number_1)


def _sparse_rows(rows_UD: Tensor, items_U: Tensor, table_VD: Tensor) -> Tensor:
    """The gradient of a table that has these rows, in the order of the items."""
    _have_invariants_warned()
    return torch.sparse_coo_tensor(
        items_U[None], rows_UD, table_VD.shape, is_coalesced=True, check_invariants=False
    )


@functools.cache
def _have_invariants_warned() -> None:
    """Has torch say now, once and unheard, that `_sparse_rows` skips its checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_coo_tensor(torch.empty(1, 0), torch.empty(0), (1,), check_invariants=False)


def refuse_second_derivative(
    found: Sequence[Tensor | None], sources: Sequence[Tensor | None], name: str
) -> list[Tensor | None]:
    """Gradients of `name` that refuse to be differentiated by what they were made from."""
    return list(_Final.apply(name, len(found), *found, *sources))  # type: ignore[no-untyped-call]


class _Final(torch.autograd.Function):
    """Passes gradients on as functions of what they depend on, to refuse a second derivative."""

    @staticmethod
    def forward(
        ctx: Any, name: str, number: int, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        ctx.name = name
        return tuple(None if grad is None else grad.detach() for grad in tensors[:number])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(f"the gradient of {ctx.name} cannot be differentiated twice")


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sink: RowSink | None, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, ...] = torch.ops.paretocut.cross_entropy(*arguments)
        _setup_context(ctx, (sink, *arguments), output)
        return output

    backward = staticmethod(_backward)


def cross_entropy(*arguments: Any, sink: RowSink | None = None) -> tuple[Tensor, ...]:
    """`paretocut::cross_entropy`, differentiable; the table's gradient goes into the sink."""
    output: tuple[Tensor, ...] = _Differentiable.apply(sink, *arguments)  # type: ignore[no-untyped-call]
    return output
