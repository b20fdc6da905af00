"""Layer norm in the type that what follows asks for: a Triton kernel on CUDA, torch's elsewhere.

Shapes: T rows, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kernels._autograd import refuse_second_derivative
from kernels._backend import check_interpreter, choose_backend
from kernels._checks import kind

_WIDEST = 1024
"""What the registers of a Triton program hold; torch's own kernel has no limit."""


def layer_norm(
    x_TD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    *,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Rows less their mean, over their standard deviation, times the weight, plus the bias.

    Computed in float32 (a float64 input in float64), rounded once. On CUDA, gradients have the
    same bits at every repetition.

    Args:
        x_TD: Rows.
        weight_D: Weights of the columns.
        bias_D: Added to the columns.
        eps: Added to the variance.
        out_dtype: Type of the output. None: that of autocast where it is on and the input is not
            float64, else that of the input.

    Returns:
        y_TD.

    Raises:
        ValueError: An argument does not fit; the message names it.
        RuntimeError: A gradient that Triton computed is differentiated again.

    Source: Layer Normalization (arXiv 1607.06450).
    """
    if x_TD.ndim != 2 or not x_TD.is_floating_point():
        raise ValueError(f"x_TD must be a float matrix, not {kind(x_TD)}")
    for name, vector in (("weight_D", weight_D), ("bias_D", bias_D)):
        if vector.shape != x_TD.shape[1:] or not vector.is_floating_point():
            raise ValueError(
                f"{name} must be float of shape {list(x_TD.shape[1:])}, not {kind(vector)}"
            )
        if vector.device != x_TD.device:
            raise ValueError(f"{name} is on {vector.device}, but x_TD is on {x_TD.device}")
    if out_dtype is None:
        out_dtype = _default_type(x_TD)
    fits = 0 < x_TD.shape[1] <= _WIDEST and x_TD.dtype != torch.float64
    if not fits or choose_backend(x_TD, weight_D) == "eager":
        wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
        weight_D, bias_D = weight_D.to(wide_TD.dtype), bias_D.to(wide_TD.dtype)
        return F.layer_norm(wide_TD, weight_D.shape, weight_D, bias_D, eps).to(out_dtype)
    y_TD: Tensor = torch.ops.paretocut.layer_norm(
        x_TD.contiguous(), weight_D, bias_D, eps, out_dtype
    )[0]
    return y_TD


def _default_type(x_TD: Tensor) -> torch.dtype:
    device = x_TD.device.type
    if x_TD.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x_TD.dtype


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_layer_norm

    check_interpreter(arguments[0].device)
    return tuple(triton_layer_norm.forward(*arguments))


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    from kernels import triton_layer_norm

    return tuple(triton_layer_norm.backward(*arguments))


def _fake_forward(x_TD: Tensor, *others: Any) -> tuple[Tensor, ...]:
    from kernels import triton_layer_norm

    return tuple(triton_layer_norm.like(x_TD, others[-1]))


def _fake_backward(
    grad_y_TD: Tensor, x_TD: Tensor, weight_D: Tensor, *others: Any
) -> tuple[Tensor, ...]:
    from kernels import triton_layer_norm

    return tuple(triton_layer_norm.gradients_like(x_TD, weight_D))


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, ...] = torch.ops.paretocut.layer_norm(*arguments)
        _, mean_T, rstd_T = output
        ctx.mark_non_differentiable(mean_T, rstd_T)
        ctx.save_for_backward(*arguments[:2], mean_T, rstd_T)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x_TD, weight_D, *statistics = ctx.saved_tensors
        with torch.no_grad():
            found = torch.ops.paretocut.layer_norm_gradients(grads[0], x_TD, weight_D, *statistics)
        if torch.is_grad_enabled():
            sources = x_TD, weight_D, grads[0]
            found = refuse_second_derivative(found, sources, "layer_norm")
        return *found, None, None


def _differentiable(*arguments: Any) -> tuple[Tensor, ...]:
    output: tuple[Tensor, ...] = _Differentiable.apply(*arguments)  # type: ignore[no-untyped-call]
    return output


_LIBRARY: Any = torch.library.Library("paretocut", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _run, _fake, _schema in (
    (
        "layer_norm",
        _forward,
        _fake_forward,
        "Tensor x_TD, Tensor weight_D, Tensor bias_D, float eps, ScalarType out_dtype",
    ),
    (
        "layer_norm_gradients",
        _backward,
        _fake_backward,
        "Tensor grad_y_TD, Tensor x_TD, Tensor weight_D, Tensor mean_T, Tensor rstd_T",
    ),
):
    _LIBRARY.define(f"{_name}({_schema}) -> (Tensor, Tensor, Tensor)")
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"paretocut::{_name}", _fake, lib=_LIBRARY)
_LIBRARY.impl("layer_norm", _differentiable, "Autograd")
