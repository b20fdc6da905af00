"""Layer norm on each backend against float64, held to what torch's own reaches.

Shapes: T rows, D width.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F  # noqa: N812

from kernels import layer_norm

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
TOLERANCES = {FP32: 2e-6, FP16: 1e-3, BF16: 8e-3}
"""Relative to an element and to its row; a unit in the last place of the half types."""


def random(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=FP64, generator=generator)


def inputs(
    num_rows: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """x, weight and bias; and the gradient of the output. Rows differ in level and in size."""
    levels_T1, sizes_T1 = random(0, num_rows, 1) * 3, random(1, num_rows, 1).exp()
    x_TD = (levels_T1 + sizes_T1 * random(2, num_rows, width)).to(dtype)
    weight_D, bias_D = 1 + 0.3 * random(3, width), random(4, width)
    leaves = [x_TD.to(device), weight_D.float().to(device), bias_D.float().to(device)]
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves, random(5, num_rows, width).to(device)


def results(y_TD: Tensor, leaves: list[Tensor], grad_TD: Tensor) -> list[Tensor]:
    """The output and the three gradients."""
    return [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, grad_TD.to(y_TD.dtype))]


def assert_within(
    ours: list[Tensor], theirs: list[Tensor], truths: list[Tensor], tolerance: float
) -> None:
    """The relative rule: an error is at most torch's own, and a tolerance."""
    for our, their, truth in zip(ours, theirs, truths, strict=True):
        assert our.shape == truth.shape
        size = 1 + truth.abs() + truth.square().mean(-1, keepdim=True).sqrt()
        allowed = (their.double() - truth).abs() + tolerance * size
        excess = ((our.double() - truth).abs() - allowed).nan_to_num(nan=torch.inf)
        assert (excess <= 0).all(), f"off by {excess.max():.2g} too much"


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("num_rows", "width"), [(1, 8), (37, 1), (37, 100), (300, 64), (37, 256), (300, 100)]
)
@pytest.mark.parametrize(
    ("dtype", "out_dtype"), [(FP32, FP32), (FP32, BF16), (BF16, BF16), (BF16, FP32), (FP16, FP16)]
)
def test_output_and_gradients_are_as_exact_as_torchs(
    num_rows: int, width: int, dtype: torch.dtype, out_dtype: torch.dtype, device: torch.device
) -> None:
    check(num_rows, width, dtype, out_dtype, device)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("width", [513, 1024, 1030])
def test_wide_rows(width: int, device: torch.device) -> None:
    check(7, width, FP32, BF16, device)


def check(
    num_rows: int, width: int, dtype: torch.dtype, out_dtype: torch.dtype, device: torch.device
) -> None:
    leaves, grad_TD = inputs(num_rows, width, dtype, device)
    # All are given a gradient that the type of the output has.
    grad_TD = grad_TD.to(out_dtype).double()
    ours = results(layer_norm(*leaves, out_dtype=out_dtype), leaves, grad_TD)
    assert [each.dtype for each in ours] == [out_dtype, dtype, FP32, FP32]
    theirs, truths = (torchs(leaves, grad_TD, each) for each in (FP32, FP64))
    tolerance = max(TOLERANCES[out_dtype], TOLERANCES[dtype])
    assert_within(ours[:2], theirs[:2], truths[:2], tolerance)
    # Sums over the rows, in float32 whatever the types.
    assert_within(ours[2:], theirs[2:], truths[2:], TOLERANCES[FP32] * num_rows**0.5)


def torchs(leaves: list[Tensor], grad_TD: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """What torch's layer norm makes of them in a type."""
    x_TD, weight_D, bias_D = (leaf.detach().to(dtype).requires_grad_() for leaf in leaves)
    y_TD = F.layer_norm(x_TD, weight_D.shape, weight_D, bias_D)
    return results(y_TD, [x_TD, weight_D, bias_D], grad_TD)


@pytest.mark.usefixtures("backend")
def test_a_row_far_from_zero_keeps_its_digits(device: torch.device) -> None:
    """The variance is not a difference of squares."""
    x_TD = (1e3 + random(0, 5, 64)).float().to(device)
    ones_D, zeros_D = torch.ones(64, device=device), torch.zeros(64, device=device)
    truth_TD = F.layer_norm(x_TD.double(), (64,))
    # Half a unit of 1000 in float32, for the mean.
    torch.testing.assert_close(
        layer_norm(x_TD, ones_D, zeros_D).double(), truth_TD, atol=2e-4, rtol=0
    )


@pytest.mark.usefixtures("backend")
def test_epsilon_is_added_to_the_variance(device: torch.device) -> None:
    x_TD = torch.tensor([[0.0, 2.0], [5.0, 5.0]], device=device)
    ones_D, halves_D = torch.ones(2, device=device), torch.full((2,), 0.5, device=device)
    y_TD = layer_norm(x_TD, ones_D, halves_D, eps=3.0)
    torch.testing.assert_close(y_TD.cpu(), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("width", [8, 100])
def test_no_rows_have_gradients_of_zero(width: int, device: torch.device) -> None:
    leaves, grad_TD = inputs(0, width, FP32, device)
    y_TD, grad_x_TD, *sums = results(layer_norm(*leaves), leaves, grad_TD)
    assert y_TD.shape == grad_x_TD.shape == (0, width)
    assert all(torch.equal(grad_D, torch.zeros(width, device=device)) for grad_D in sums)


@pytest.mark.usefixtures("backend")
def test_gradients_have_the_same_bits_every_time(device: torch.device) -> None:
    leaves, grad_TD = inputs(300, 100, FP32, device)
    runs = [results(layer_norm(*leaves, out_dtype=BF16), leaves, grad_TD) for _ in range(3)]
    for first, *others in zip(*runs, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.usefixtures("backend")
def test_layout_changes_nothing(device: torch.device) -> None:
    (x_TD, *affine), grad_TD = inputs(20, 24, FP32, device)
    expected = results(layer_norm(x_TD, *affine), [x_TD, *affine], grad_TD)
    turned_DT = x_TD.detach().T.contiguous().requires_grad_()
    y_TD = layer_norm(turned_DT.T, *affine)
    y, grad_x_DT, *sums = results(y_TD, [turned_DT, *affine], grad_TD.T.contiguous().T)
    for got, wanted in zip([y, grad_x_DT.T, *sums], expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=0, rtol=0)
    # A gradient that is one number seen everywhere.
    (grad_x_TD,) = torch.autograd.grad(layer_norm(x_TD, *affine).sum(), x_TD)
    (dense_TD,) = torch.autograd.grad(layer_norm(x_TD, *affine), x_TD, torch.ones_like(x_TD))
    assert torch.equal(grad_x_TD, dense_TD)


@pytest.mark.usefixtures("backend")
def test_only_what_is_asked_for_has_a_gradient(device: torch.device) -> None:
    leaves, grad_TD = inputs(5, 8, FP32, device)
    expected = results(layer_norm(*leaves), leaves, grad_TD)[1:]
    for place, leaf in enumerate(leaves):
        alone = [each if each is leaf else each.detach() for each in leaves]
        (grad,) = results(layer_norm(*alone), [leaf], grad_TD)[1:]
        assert torch.equal(grad, expected[place])
    with torch.no_grad():
        assert not layer_norm(*leaves).requires_grad


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_under_autocast_the_output_has_its_type(
    dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    leaves, grad_TD = inputs(9, 8, FP32, device)
    expected = results(layer_norm(*leaves, out_dtype=dtype), leaves, grad_TD)
    with torch.autocast(device.type, dtype=dtype):
        ours = results(layer_norm(*leaves), leaves, grad_TD)
        assert layer_norm(*leaves, out_dtype=FP32).dtype == FP32
        if backend == "eager":
            double = [leaf.detach().double() for leaf in leaves]
            assert layer_norm(*double).dtype == FP64
    assert ours[0].dtype == dtype
    assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))
    assert layer_norm(*leaves).dtype == FP32


def test_the_eager_gradients_are_the_numerical_ones() -> None:
    leaves = [
        leaf.detach().double().requires_grad_()
        for leaf in inputs(3, 5, FP32, torch.device("cpu"))[0]
    ]
    torch.autograd.gradcheck(layer_norm, leaves)


@pytest.mark.usefixtures("triton_backend")
def test_a_second_derivative_is_refused(device: torch.device) -> None:
    leaves, grad_TD = inputs(3, 8, FP32, device)
    plain = results(layer_norm(*leaves), leaves, grad_TD)[1:]
    grads = torch.autograd.grad(layer_norm(*leaves), leaves, grad_TD.float(), create_graph=True)
    assert all(torch.equal(*pair) for pair in zip(grads, plain, strict=True))
    for grad in grads:
        with pytest.raises(
            RuntimeError, match=r"^the gradient of layer_norm cannot be differentiated twice"
        ):
            torch.autograd.grad(grad.square().sum(), leaves[0])


@pytest.mark.usefixtures("backend")
def test_a_compiled_model_keeps_it_whole(device: torch.device) -> None:
    def model(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
        return layer_norm(x_TD * 2, weight_D, bias_D, out_dtype=BF16).float() * 3

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_rows in (5, 37):
        leaves, grad_TD = inputs(num_rows, 8, FP32, device)
        with torch._dynamo.config.patch(error_on_recompile=True):
            got, wanted = (results(each(*leaves), leaves, grad_TD) for each in (compiled, model))
        for pair in zip(got, wanted, strict=True):
            torch.testing.assert_close(*pair)


@pytest.mark.parametrize("name", ["layer_norm", "layer_norm_gradients"])
@pytest.mark.usefixtures("triton_backend")
def test_fake_tensors_are_as_the_real_ones(name: str, device: torch.device) -> None:
    (x_TD, weight_D, bias_D), grad_TD = inputs(37, 8, FP32, device)
    arguments: tuple[Any, ...] = (x_TD, weight_D, bias_D, 1e-5, BF16)
    if name == "layer_norm_gradients":
        statistics = torch.ops.paretocut.layer_norm(*arguments)[1:]
        arguments = (grad_TD.bfloat16(), x_TD.detach(), weight_D.detach(), *statistics)
    torch.library.opcheck(
        getattr(torch.ops.paretocut, name).default,
        arguments,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize(("width", "dtype"), [(1025, FP32), (8, FP64)])
def test_what_triton_cannot_hold_is_torchs(
    width: int, dtype: torch.dtype, device: torch.device
) -> None:
    leaves, grad_TD = inputs(3, width, dtype, device)
    ours = results(layer_norm(*leaves), leaves, grad_TD)
    theirs = torchs(leaves, grad_TD, dtype)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("width", [8, 1024, 1025])
def test_fake_tensors_on_cuda_need_no_gpu(width: int) -> None:
    pytest.importorskip("triton")
    with FakeTensorMode():
        x_TD, weight_D, bias_D = (
            torch.empty(shape, device="cuda") for shape in ((5, width), (width,), (width,))
        )
        y_TD = layer_norm(x_TD, weight_D, bias_D, out_dtype=BF16)
    assert (y_TD.shape, y_TD.dtype, y_TD.device.type) == ((5, width), BF16, "cuda")


@pytest.mark.parametrize(
    ("place", "bad", "message"),
    [
        (0, torch.ones(8), "x_TD must be a float matrix"),
        (0, torch.ones(2, 8).long(), "x_TD must be a float matrix"),
        (1, torch.ones(7), r"weight_D must be float of shape \[8\]"),
        (2, torch.ones(8).long(), r"bias_D must be float of shape \[8\]"),
        (2, torch.ones(8, device="meta"), "bias_D is on meta, but x_TD is on cpu"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(place: int, bad: Tensor, message: str) -> None:
    arguments = [torch.ones(2, 8), torch.ones(8), torch.ones(8)]
    arguments[place] = bad
    with pytest.raises(ValueError, match=f"^{message}"):
        layer_norm(*arguments)
