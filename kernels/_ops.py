"""The losses as operators of PyTorch: `torch.compile` keeps them whole, autograd differentiates.

Shapes: N rows, G groups, K candidates, V items, U touched items, D width.

An operator takes a `Problem` as flat arguments. The forward operator gives what the backward pass
needs in addition to the losses; the states' gradient is made in place of one of its outputs.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import reference
from kernels._backend import Backend, check_interpreter
from kernels._checks import check_ids
from kernels._faults import Faults, faults_of, mark_bad_ids
from kernels.candidates import Draws
from kernels.reference import Problem

_PROBLEM = (
    "Tensor states_ND, Tensor table_VD, Tensor targets_N, Tensor? bias_V, Tensor? logit_scale, "
    "Tensor? ids_GK, Tensor? alias_V2, Tensor? log_q_V, Tensor? log_weight_GK, "
    "SymInt? num_candidates, SymInt seed, SymInt group_size, str correction, "
    "bool corrected_value, SymInt ignore_index, bool deterministic, ScalarType operand_dtype"
)
_NUM_TENSORS = 9
_NUM_ARGUMENTS = 17
_NUM_SAVED = 8
"""Fields of `triton_backend.Saved`; loss and log-sum-exp are in front, the mixtures at the end."""
_LEAVES = (0, 1, 3, 4)
"""Arguments that may need a gradient: states, table, bias and logit scale."""
_Flat = tuple[Any, ...]


def row_losses(
    problem: Problem, backend: Backend, table_gradient: str, filter_eps: float | None
) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of every row, differentiable.

    Args:
        problem: The seed of its draws is unsigned.
        backend: Which one computes.
        table_gradient: "dense" or "touched"; with the latter the gradient of the table is sparse.
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
    if not table:
        # The gradient of the bias comes with that of the table.
        table_gradient = "dense" if bias else "none"
    loss_N, lse_N, *_ = torch.ops.paretocut.cross_entropy(
        *_flatten(problem), backend, table_gradient, states or scale, filter_eps
    )
    return loss_N, lse_N


def _flatten(problem: Problem) -> _Flat:
    draws = problem.draws
    lists: _Flat = (None, None, None, None)
    num_candidates, seed = None, 0
    if draws is not None:
        lists = (draws.ids_GK, draws.alias_V2, draws.log_q_V, draws.log_weight_GK)
        num_candidates, seed = draws.num_candidates, draws.seed
        # The same bits as a signed integer.
        if seed >= 1 << 63:
            seed -= 1 << 64
    return (
        problem.states_ND,
        problem.table_VD,
        problem.targets_N,
        problem.bias_V,
        problem.logit_scale,
        *lists,
        num_candidates,
        seed,
        problem.group_size,
        problem.correction,
        problem.corrected_value,
        problem.ignore_index,
        problem.deterministic,
        problem.operand_dtype,
    )


def _problem(flat: _Flat) -> Problem:
    """The problem of flat arguments; its seed is signed, which both backends understand."""
    states_ND, table_VD, targets_N, bias_V, logit_scale = flat[:5]
    ids_GK, alias_V2, log_q_V, log_weight_GK, num_candidates, seed, *options = flat[5:]
    draws = None
    if num_candidates is not None:
        draws = Draws(num_candidates, seed, ids_GK, alias_V2, log_q_V, log_weight_GK)
    group_size, correction, corrected_value, ignore_index, deterministic, operand_dtype = options
    return Problem(
        states_ND,
        table_VD,
        targets_N,
        draws,
        group_size,
        correction,
        corrected_value,
        bias_V,
        logit_scale,
        ignore_index,
        deterministic,
        operand_dtype,
    )


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
    flat, (backend, table_gradient, with_mixtures, filter_eps) = _split(arguments)
    problem = _problem(flat)
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
    flat, (backend, table_gradient, with_mixtures, _) = _split(arguments)
    problem = _problem(flat)
    if backend == "eager":
        num_rows, dtype = problem.states_ND.shape[0], problem.dtype
        rows = [problem.states_ND.new_empty(num_rows, dtype=dtype) for _ in range(4)]
        return *rows, *_nothing(problem, _NUM_SAVED - 4)
    from kernels import triton_backend

    return tuple(triton_backend.saved_like(problem, table_gradient, with_mixtures))


def _eager_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    flat, (shift_N, target_error_N, grad_loss_N, grad_lse_N, touched_U, needs) = _split(arguments)
    problem = _problem(flat)
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
    flat, (shift_N, *_, touched_U, needs) = _split(arguments)
    problem = _problem(flat)
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

    flat, rest = _split(arguments)
    problem = _aligned(_problem(flat))
    with _on_device_of(problem.states_ND):
        scale_gradient: Tensor = triton_backend.finish_states_gradient(problem, *rest)
    return scale_gradient


def _fake_triton_states_gradient(*arguments: Any) -> Tensor:
    flat, (mixtures_ND, *_) = _split(arguments)
    has_scale = _problem(flat).logit_scale is not None
    scale_gradient: Tensor = mixtures_ND.new_empty(int(has_scale), dtype=torch.float32)
    return scale_gradient


def _triton_touched_items(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, (lists_GK,) = _split(arguments)
    problem = _without_bad_ids(_aligned(_problem(flat)))
    with _on_device_of(problem.states_ND):
        return tuple(triton_backend.touched_items(problem, lists_GK))


def _fake_triton_touched_items(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, _ = _split(arguments)
    return tuple(triton_backend.touched_like(_problem(flat)))


def _triton_table_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, rest = _split(arguments)
    shift_N, target_error_N, lists_GK, num_first_G, touched_W = rest[:5]
    touched = _touched(rest[5:9])
    grad_loss_N, grad_lse_N, table_gradient, filter_eps = rest[9:]
    unused = shift_N.new_empty(0)
    saved = triton_backend.Saved(
        unused, unused, shift_N, target_error_N, lists_GK, num_first_G, touched_W, unused
    )
    problem = _without_bad_ids(_aligned(_problem(flat)))
    with _on_device_of(problem.states_ND):
        return tuple(
            triton_backend.table_gradients(
                problem, table_gradient, saved, touched, grad_loss_N, grad_lse_N, filter_eps
            )
        )


def _fake_triton_table_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_backend

    flat, rest = _split(arguments)
    touched, table_gradient = _touched(rest[5:9]), rest[-2]
    return tuple(triton_backend.gradients_like(_problem(flat), table_gradient, touched))


def _touched(tensors: _Flat) -> Any:
    """The touched items of four arguments that are there or not."""
    from kernels import triton_backend

    return None if tensors[0] is None else triton_backend.Touched(*tensors)


def _on_device_of(tensor: Tensor) -> Any:
    """Triton launches on the current CUDA device, which need not be that of the tensors."""
    return torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]


def _split(arguments: Sequence[Any]) -> tuple[_Flat, _Flat]:
    return tuple(arguments[:_NUM_ARGUMENTS]), tuple(arguments[_NUM_ARGUMENTS:])


def _nothing(problem: Problem, number: int) -> list[Tensor]:
    return [problem.states_ND.new_empty(0) for _ in range(number)]


def _setup_context(ctx: Any, inputs: _Flat, output: tuple[Tensor, ...]) -> None:
    flat, ctx.options = _split(inputs)
    kept = output[2:]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(*flat[:_NUM_TENSORS], *kept)
    ctx.numbers = flat[_NUM_TENSORS:]
    ctx.is_spent = False


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    found: list[Tensor | None] = [None] * len(_LEAVES)
    losses_grads = grads[:2]
    if any(grad is not None for grad in losses_grads):
        backend, *_ = ctx.options
        compute = _eager_backward if backend == "eager" else _triton_backward
        needs = [ctx.needs_input_grad[place] for place in _LEAVES]
        with torch.no_grad():
            found = compute(ctx, losses_grads, needs)
        if torch.is_grad_enabled():
            leaves = [ctx.saved_tensors[place] for place in _LEAVES]
            found = list(_Final.apply(len(found), *found, *leaves, *losses_grads))  # type: ignore[no-untyped-call]
    by_place = dict(zip(_LEAVES, found, strict=True))
    return tuple(by_place.get(place) for place in range(_NUM_ARGUMENTS + len(ctx.options)))


def _eager_backward(
    ctx: Any, grads: tuple[Tensor | None, ...], needs: list[bool]
) -> list[Tensor | None]:
    saved, (_, table_gradient, *_) = ctx.saved_tensors, ctx.options
    flat = (*saved[:_NUM_TENSORS], *ctx.numbers)
    shift_N, target_error_N, *_ = saved[_NUM_TENSORS:]
    touched_U = None
    if table_gradient == "touched":
        touched_U = reference.touched_items(_problem(flat))
    found = torch.ops.paretocut.eager_gradients(
        *flat, shift_N, target_error_N, *grads, touched_U, needs
    )
    states_ND, table_UD, bias_V, scale = (
        grad if needed else None for grad, needed in zip(found, needs, strict=True)
    )
    if table_UD is not None and touched_U is not None:
        table_UD = _sparse_rows(table_UD, touched_U, flat[1])
    return [states_ND, table_UD, bias_V, scale]


def _triton_backward(
    ctx: Any, grads: tuple[Tensor | None, ...], needs: list[bool]
) -> list[Tensor | None]:
    saved, (_, table_gradient, _, filter_eps) = ctx.saved_tensors, ctx.options
    flat = (*saved[:_NUM_TENSORS], *ctx.numbers)
    *kept, mixtures_ND = saved[_NUM_TENSORS:]
    needs_states, needs_table, needs_bias, needs_scale = needs
    found: list[Tensor | None] = [None] * 4
    touched: Any = (None,) * 4
    num_touched = None
    if needs_table and table_gradient == "touched":
        touched = torch.ops.paretocut.triton_touched_items(*flat, kept[2])
        num_touched = _OnItsWay(touched[-1])
    if needs_table or needs_bias:
        rows, bias_V = torch.ops.paretocut.triton_table_gradients(
            *flat, *kept, *touched, *grads, table_gradient, filter_eps
        )
        found[1] = rows if needs_table else None
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


class _Final(torch.autograd.Function):
    """Passes gradients on as functions of what they depend on, to refuse a second derivative."""

    @staticmethod
    def forward(ctx: Any, number: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if grad is None else grad.detach() for grad in tensors[:number])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(
            "the gradient of sampled_cross_entropy and full_cross_entropy cannot be "
            "differentiated twice"
        )


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, ...] = torch.ops.paretocut.cross_entropy(*arguments)
        _setup_context(ctx, arguments, output)
        return output

    backward = staticmethod(_backward)


def _differentiable(*arguments: Any) -> tuple[Tensor, ...]:
    output: tuple[Tensor, ...] = _Differentiable.apply(*arguments)  # type: ignore[no-untyped-call]
    return output


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
    _LIBRARY.define(f"{_name}({_PROBLEM}, {_schema}")
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"paretocut::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("cross_entropy", _differentiable, "Autograd")
