"""The losses as operators of PyTorch: `torch.compile` keeps them whole, autograd differentiates.

Shapes: N rows, K candidates, V items, D width.

An operator takes a `Problem` as flat arguments. The forward operator gives what the backward pass
needs in addition to the losses.
"""

from typing import Any

import torch
from torch import Tensor

from kernels import _autograd, reference
from kernels._arguments import SCHEMA, Flat, flatten, problem_of, split
from kernels._backend import Backend, check_interpreter
from kernels._checks import check_ids
from kernels._faults import Faults, faults_of, mark_bad_ids
from kernels.reference import Problem
from kernels.row_gradient import RowSink

_NUM_SAVED = 8
"""Fields of `triton_backend.Saved`; loss and log-sum-exp are in front, the mixtures at the end."""


def row_losses(
    problem: Problem, backend: Backend, table_gradient: str | RowSink, filter_eps: float | None
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of every row, differentiable.

    Args:
        problem: The seed of its draws is unsigned.
        backend: Which one computes.
        table_gradient: "dense", "touched" (the gradient of the table is sparse), or where its rows
            go.
        filter_eps: See `full_cross_entropy`.
    """
    with_gradient = torch.is_grad_enabled()
    states, table, bias, scale = (
        with_gradient and tensor is not None and tensor.requires_grad
        for tensor in (
            problem.states_ND,
            problem.table_VD,
            problem.bias_V,
            problem.logit_scale,
        )
    )
    if backend == "triton" and problem.operand_dtype.itemsize < problem.states_ND.dtype.itemsize:
        # As autocast does it. The table, which may be large, is rounded where it is read.
        problem = problem._replace(states_ND=problem.states_ND.to(problem.operand_dtype))
    sink = table_gradient if isinstance(table_gradient, RowSink) else None
    form = "touched" if sink is not None else table_gradient
    if not table:
        # The gradient of the bias comes with that of the table.
        form = "dense" if bias else "none"
    arguments = (*flatten(problem), backend, form, states or scale, filter_eps)
    if sink is None:
        loss_N, lse_N, *_ = torch.ops.paretocut.cross_entropy(*arguments)
    else:
        # No operator takes one.
        loss_N, lse_N, *_ = _autograd.cross_entropy(*arguments, sink=sink)
    return loss_N, lse_N


def _aligned(problem: Problem) -> Problem:
    """The problem in the layout that the Triton kernels ask for."""
    bias_V, draws = problem.bias_V, problem.draws
    if draws is not None and draws.log_weight_GK is not None:
        draws = draws._replace(log_weight_GK=draws.log_weight_GK.contiguous())
    return problem._replace(
        states_ND=_dense_rows(problem.states_ND),
        table_VD=_dense_rows(problem.table_VD),
        targets_N=problem.targets_N.contiguous(),
        bias_V=None if bias_V is None else bias_V.contiguous(),
        draws=draws,
    )


def _without_bad_ids(problem: Problem, faults: Faults | None = None) -> Problem:
    """The problem with lists of candidates that the Triton kernels can follow."""
    draws = problem.draws
    if draws is None or draws.ids_GK is None:
        return problem
    ids_GK = mark_bad_ids(draws.ids_GK, problem.table_VD.shape[0], faults)
    return problem._replace(draws=draws._replace(ids_GK=ids_GK))


def _dense_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _cross_entropy(*arguments: Any) -> tuple[Tensor, ...]:
    flat, (backend, table_gradient, with_mixtures, filter_eps) = split(arguments)
    problem = problem_of(flat)
    check_ids(problem)
    if backend == "eager":
        with torch.autocast(problem.states_ND.device.type, enabled=False):
            return *reference.forward(problem), *_nothing(problem, _NUM_SAVED - 4)
    from kernels import triton_backend

    check_interpreter(problem.states_ND.device)
    faults = faults_of(problem.states_ND.device)
    faults.check()
    problem = _without_bad_ids(_aligned(problem), faults)
    with _on_device_of(problem.states_ND):
        saved = triton_backend.forward(
            problem, table_gradient, with_mixtures, filter_eps, faults.bits
        )
        faults.report()
    return tuple(saved)


def _fake_cross_entropy(*arguments: Any) -> tuple[Tensor, ...]:
    flat, (backend, table_gradient, with_mixtures, _) = split(arguments)
    problem = problem_of(flat)
    if backend == "eager":
        num_rows, dtype = problem.states_ND.shape[0], problem.dtype
        rows = [problem.states_ND.new_empty(num_rows, dtype=dtype) for _ in range(4)]
        return *rows, *_nothing(problem, _NUM_SAVED - 4)
    from kernels import triton_backend

    return tuple(triton_backend.saved_like(problem, table_gradient, with_mixtures))


def _eager_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    flat, (shift_N, target_error_N, grad_loss_N, grad_lse_N, touched_U, needs) = split(arguments)
    problem = problem_of(flat)
    zero_N = shift_N.new_zeros(()).expand(len(shift_N))
    with torch.autocast(shift_N.device.type, enabled=False):
        gradients = reference.backward(
            problem,
            shift_N,
            target_error_N,
            zero_N if grad_loss_N is None else grad_loss_N,
            zero_N if grad_lse_N is None else grad_lse_N,
            needs,
            touched_U,
        )
    return tuple(shift_N.new_empty(0) if each is None else each for each in gradients)


def _fake_eager_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    flat, (shift_N, *_, touched_U, needs) = split(arguments)
    problem = problem_of(flat)
    num_items, width = problem.table_VD.shape
    num_grads = num_items if touched_U is None else touched_U.shape[0]
    table_UD = shift_N.new_empty(num_grads, width)
    likes = (problem.states_ND, table_UD, problem.bias_V, problem.logit_scale)
    return tuple(
        torch.empty_like(like) if needed and like is not None else shift_N.new_empty(0)
        for like, needed in zip(likes, needs, strict=True)
    )


def _triton_states_gradient(*arguments: Any) -> Tensor:
    from kernels import triton_backend

    flat, rest = split(arguments)
    problem = _aligned(problem_of(flat))
    with _on_device_of(problem.states_ND):
        scale_gradient: Tensor = triton_backend.finish_states_gradient(problem, *rest)
    return scale_gradient


def _fake_triton_states_gradient(*arguments: Any) -> Tensor:
    flat, (mixtures_ND, *_) = split(arguments)
    has_scale = problem_of(flat).logit_scale is not None
    scale_gradient: Tensor = mixtures_ND.new_empty(int(has_scale), dtype=torch.float32)
    return scale_gradient


def _triton_touched_items(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, (lists_GK,) = split(arguments)
    problem = _without_bad_ids(_aligned(problem_of(flat)))
    with _on_device_of(problem.states_ND):
        return tuple(triton_backend.touched_items(problem, lists_GK))


def _fake_triton_touched_items(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, _ = split(arguments)
    return tuple(triton_backend.touched_like(problem_of(flat)))


def _triton_table_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, rest = split(arguments)
    shift_N, target_error_N, lists_GK, num_first_G, touched_W = rest[:5]
    touched = _touched(rest[5:9])
    grad_loss_N, grad_lse_N, table_gradient, filter_eps = rest[9:]
    unused = shift_N.new_empty(0)
    saved = triton_backend.Saved(
        unused, unused, shift_N, target_error_N, lists_GK, num_first_G, touched_W, unused
    )
    problem = _without_bad_ids(_aligned(problem_of(flat)))
    with _on_device_of(problem.states_ND):
        return tuple(
            triton_backend.table_gradients(
                problem, table_gradient, saved, touched, grad_loss_N, grad_lse_N, filter_eps
            )
        )


def _fake_triton_table_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, rest = split(arguments)
    touched, table_gradient = _touched(rest[5:9]), rest[-2]
    return tuple(triton_backend.gradients_like(problem_of(flat), table_gradient, touched))


def _touched(tensors: Flat) -> Any:
    """The touched items of four arguments that are there or not."""
    from kernels import triton_backend

    return None if tensors[0] is None else triton_backend.Touched(*tensors)


def _on_device_of(tensor: Tensor) -> Any:
    """Triton launches on the current CUDA device, which need not be that of the tensors."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _nothing(problem: Problem, number: int) -> list[Tensor]:
    return [problem.states_ND.new_empty(0) for _ in range(number)]


# Defined by hand: a `custom_op` spends 0.3 ms on every call that has so many arguments.
_LIBRARY: Any = torch.library.Library("paretocut", "DEF")  # type: ignore[no-untyped-call]
for _name, _run, _fake, _schema in (
    (
        "cross_entropy",
        _cross_entropy,
        _fake_cross_entropy,
        "str backend, str table_gradient, bool with_mixtures, float? filter_eps"
        f") -> ({', '.join(['Tensor'] * _NUM_SAVED)})",
    ),
    (
        "eager_gradients",
        _eager_gradients,
        _fake_eager_gradients,
        "Tensor shift_N, Tensor target_error_N, Tensor? grad_loss_N, Tensor? grad_lse_N, "
        "Tensor? touched_U, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    ),
    (
        "triton_states_gradient",
        _triton_states_gradient,
        _fake_triton_states_gradient,
        "Tensor(a!) mixtures_ND, Tensor target_error_N, Tensor? grad_loss_N, Tensor? grad_lse_N"
        ") -> Tensor",
    ),
    (
        "triton_touched_items",
        _triton_touched_items,
        _fake_triton_touched_items,
        "Tensor lists_GK) -> (Tensor, Tensor, Tensor, Tensor)",
    ),
    (
        "triton_table_gradients",
        _triton_table_gradients,
        _fake_triton_table_gradients,
        "Tensor shift_N, Tensor target_error_N, Tensor lists_GK, Tensor num_first_G, "
        "Tensor touched_W, Tensor? set_W, Tensor? rank_W, Tensor? items_U, Tensor? num_touched, "
        "Tensor? grad_loss_N, Tensor? grad_lse_N, str table_gradient, float? filter_eps"
        ") -> (Tensor, Tensor)",
    ),
):
    _LIBRARY.define(f"{_name}({SCHEMA}, {_schema}")
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"paretocut::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("cross_entropy", _autograd.cross_entropy, "Autograd")
