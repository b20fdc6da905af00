"""What both losses share, on the eager backend."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kernels import Uniform, full_cross_entropy, reference, sampled_cross_entropy
from kernels.candidates import Draws, draw
from objectives.memory import measured_memory

CPU = torch.device("cpu")
Loss = Callable[..., Tensor]


def sampled(group_size: int, num_candidates: int = 6) -> Loss:
    def loss(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, **options: Any) -> Any:
        candidates = Uniform(num_candidates, seed=3)
        return sampled_cross_entropy(
            states_ND, table_VD, targets_N, candidates, group_size=group_size, **options
        )

    return loss


LOSSES = [
    pytest.param(full_cross_entropy, id="full"),
    pytest.param(sampled(1), id="sampled-1"),
    pytest.param(sampled(4), id="sampled-4"),
    pytest.param(sampled(100), id="sampled-pool"),
]
every_loss = pytest.mark.parametrize("loss", LOSSES)


def inputs(
    num_rows: int, num_items: int = 9, width: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    states_ND, table_VD = (
        torch.randn(size, width, dtype=torch.float64, generator=generator).to(dtype)
        for size in (num_rows, num_items)
    )
    targets_N = torch.randint(0, num_items, (num_rows,), generator=generator)
    return states_ND.requires_grad_(), table_VD.requires_grad_(), targets_N


def values(
    loss: Loss, states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    """Losses of the rows and both gradients under uneven weights of the rows."""
    states_ND, table_VD = (given.detach().requires_grad_() for given in (states_ND, table_VD))
    loss_N = loss(states_ND, table_VD, targets_N, reduction="none", **options)
    weights_N = torch.linspace(-1, 2, len(loss_N), dtype=loss_N.dtype)
    return loss_N.detach(), *torch.autograd.grad(loss_N, (states_ND, table_VD), weights_N)


def assert_close(ours: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for our, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(our, true, atol=tolerance, rtol=tolerance)


def extras(targets_N: Tensor, num_items: int = 9) -> tuple[Tensor, Tensor]:
    """A bias and a logit scale; half of the targets become ignored ones."""
    targets_N[1::2] = -100
    generator = torch.Generator().manual_seed(num_items)
    bias_V = torch.randn(num_items, dtype=torch.float64, generator=generator)
    return bias_V.requires_grad_(), torch.tensor(1.3, dtype=torch.float64).requires_grad_()


@every_loss
def test_gradients_pass_gradcheck(loss: Loss) -> None:
    states_ND, table_VD, targets_N = inputs(6)
    leaves = (states_ND, table_VD, *extras(targets_N))

    def both(states_ND: Tensor, table_VD: Tensor, bias_V: Tensor, scale: Tensor) -> Any:
        options = {"bias_V": bias_V, "logit_scale": scale, "return_lse": True}
        return loss(states_ND, table_VD, targets_N, reduction="none", **options)

    assert torch.autograd.gradcheck(both, leaves)


def eager(loss: Loss, num_candidates: int, group_size: int) -> Loss:
    """Loss and log-sum-exp as an everyday PyTorch program in the dtype of its inputs."""

    def logits_of(
        states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, bias_V: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        if loss is full_cross_entropy:
            return scale * states_ND @ table_VD.T + bias_V, targets_N
        num_groups = -(-len(targets_N) // group_size)
        draws = Draws(num_candidates, seed=3)
        ids_GK = draw(draws, 0, num_groups, len(table_VD), CPU)
        ids_NK = ids_GK.repeat_interleave(group_size, dim=0)[: len(targets_N)]
        items_N = targets_N.clamp(min=0)
        positive_N1 = (states_ND * table_VD[items_N]).sum(-1, keepdim=True)
        positive_N1 = scale * positive_N1 + bias_V[items_N, None]
        logits_NK = torch.einsum("nd,nkd->nk", states_ND, table_VD[ids_NK])
        logits_NK = scale * logits_NK + bias_V[ids_NK]
        hit_NK = ids_NK == targets_N[:, None]
        misses_N1 = (~hit_NK).sum(-1, keepdim=True).clamp(min=1).double()
        logits_NK = logits_NK + torch.log((len(table_VD) - 1) / misses_N1).to(logits_NK.dtype)
        logits_NK = logits_NK.masked_fill(hit_NK, -torch.inf)
        return torch.cat([positive_N1, logits_NK], 1), targets_N.clamp(max=0)

    def cross_entropy(
        states_ND: Tensor,
        table_VD: Tensor,
        targets_N: Tensor,
        *,
        reduction: str = "mean",
        bias_V: Tensor | None = None,
        logit_scale: Tensor | None = None,
        return_lse: bool = False,
    ) -> Any:
        bias_V = table_VD.new_zeros(len(table_VD)) if bias_V is None else bias_V
        scale = table_VD.new_ones(()) if logit_scale is None else logit_scale
        logits, classes_N = logits_of(states_ND, table_VD, targets_N, bias_V, scale)
        value = F.cross_entropy(logits, classes_N, reduction=reduction)
        return (value, logits.logsumexp(1).where(targets_N >= 0, 0)) if return_lse else value

    return cross_entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("group_size", [None, 1, 4, 100])
def test_equals_an_everyday_program(group_size: int | None, reduction: str) -> None:
    loss: Loss = full_cross_entropy if group_size is None else sampled(group_size)
    states_ND, table_VD, targets_N = inputs(11)
    bias_V, scale = extras(targets_N)
    leaves = (states_ND, table_VD, bias_V, scale)
    options: dict[str, Any] = {"bias_V": bias_V, "logit_scale": scale, "return_lse": True}
    options["reduction"] = reduction
    results = []
    for each in (loss, eager(loss, 6, group_size or 1)):
        value, lse_N = each(states_ND, table_VD, targets_N, **options)
        weights = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view(value.shape)
        weights_N = torch.linspace(3, 1, 11, dtype=torch.float64)
        total = (value * weights).sum() + (lse_N * weights_N).sum()
        results.append((value, lse_N, *torch.autograd.grad(total, leaves)))
    ours, theirs = results
    assert_close(ours, theirs, 1e-12)


@every_loss
def test_a_scale_may_be_a_number(loss: Loss) -> None:
    arguments = inputs(7)
    ours = values(loss, *arguments, logit_scale=0.5)
    assert_close(ours, values(loss, *arguments, logit_scale=torch.tensor(0.5)), 1e-14)
    assert not torch.allclose(ours[0], loss(*arguments, reduction="none"))


@every_loss
def test_any_number_may_mark_the_rows_to_ignore(loss: Loss) -> None:
    states_ND, table_VD, targets_N = inputs(7)
    item = int(targets_N[2])
    others_N = targets_N != item
    loss_N = loss(states_ND, table_VD, targets_N, ignore_index=item, reduction="none")
    assert torch.equal(loss_N == 0, ~others_N)
    mean = loss(states_ND, table_VD, targets_N, ignore_index=item)
    torch.testing.assert_close(mean, loss_N[others_N].mean())
    marked_N = targets_N.where(others_N, -1)
    assert torch.equal(loss(states_ND, table_VD, marked_N, ignore_index=-1), mean)


@every_loss
def test_a_mean_over_no_row_is_zero(loss: Loss) -> None:
    states_ND, table_VD, targets_N = inputs(5)
    result = loss(states_ND, table_VD, targets_N.fill_(-100))
    assert result == 0
    for grad in torch.autograd.grad(result, (states_ND, table_VD)):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize(
    ("dtype", "forward_tolerance", "backward_tolerance"),
    [
        (torch.float32, 1e-5, 5e-4),
        (torch.float16, 1e-3, 1e-3),
        (torch.bfloat16, 1e-2, 1e-2),
    ],
)
@pytest.mark.parametrize("group_size", [None, 1, 16])
def test_an_error_is_at_most_that_of_pytorch_in_the_same_dtype(
    group_size: int | None,
    dtype: torch.dtype,
    forward_tolerance: float,
    backward_tolerance: float,
) -> None:
    loss = full_cross_entropy if group_size is None else sampled(group_size, 40)
    peer = eager(loss, 40, group_size or 1)
    states_ND, table_VD, targets_N = inputs(50, 61, 24, dtype)
    truths = values(peer, states_ND.double(), table_VD.double(), targets_N)
    ours = values(loss, states_ND, table_VD, targets_N)
    theirs = values(peer, states_ND, table_VD, targets_N)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == ours[2].dtype == dtype
    tolerances = (forward_tolerance, backward_tolerance, backward_tolerance)
    for our, their, true, tolerance in zip(ours, theirs, truths, tolerances, strict=True):
        allowed = (their.double() - true).abs() + tolerance * (1 + true.abs())
        assert ((our.double() - true).abs() <= allowed).all()


@every_loss
def test_states_and_table_may_differ_in_dtype(loss: Loss) -> None:
    states_ND, table_VD, targets_N = inputs(8)
    states_half, table_single = states_ND.bfloat16(), table_VD.float()
    ours = values(loss, states_half, table_single, targets_N)
    assert [tensor.dtype for tensor in ours] == [torch.float32, torch.bfloat16, torch.float32]
    truth = values(loss, states_half.double(), table_single.double(), targets_N)
    for our, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(our.double(), true, atol=2e-2, rtol=1e-2)


@every_loss
def test_reductions(loss: Loss) -> None:
    arguments = inputs(10)
    loss_N = loss(*arguments, reduction="none")
    assert loss_N.shape == (10,)
    torch.testing.assert_close(loss(*arguments, reduction="sum"), loss_N.sum())
    torch.testing.assert_close(loss(*arguments, reduction="mean"), loss_N.mean())
    assert torch.equal(loss(*arguments), loss(*arguments, reduction="mean"))


@every_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows_have_no_loss_and_zero_gradients(loss: Loss, reduction: str) -> None:
    states_ND, table_VD, targets_N = inputs(0)
    result = loss(states_ND, table_VD, targets_N, reduction=reduction)
    assert result.shape == ((0,) if reduction == "none" else ())
    assert result.detach().sum() == 0
    result.sum().backward()  # type: ignore[no-untyped-call]
    assert states_ND.grad is not None
    assert states_ND.grad.shape == (0, 5)
    assert table_VD.grad is not None
    assert torch.equal(table_VD.grad, torch.zeros_like(table_VD))


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between the elements."""
    wide = torch.zeros(*(2 * size for size in tensor.shape), dtype=tensor.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
    view.copy_(tensor.detach())
    return view


def transposed(tensor: Tensor) -> Tensor:
    """The same values, the first dimension running fastest."""
    return tensor.detach().T.contiguous().T


@every_loss
@pytest.mark.parametrize("layout", [strided, transposed])
def test_inputs_need_not_be_contiguous(loss: Loss, layout: Callable[[Tensor], Tensor]) -> None:
    states_ND, table_VD, targets_N = inputs(11)
    assert not layout(states_ND).is_contiguous()
    ours = values(loss, layout(states_ND), layout(table_VD), strided(targets_N))
    assert_close(ours, values(loss, states_ND, table_VD, targets_N), 1e-13)


@every_loss
def test_one_state_may_be_expanded_to_all_rows(loss: Loss) -> None:
    states_ND, table_VD, targets_N = inputs(8)
    row = states_ND[:1]
    ours = values(loss, row.expand(8, -1), table_VD, targets_N)
    assert_close(ours, values(loss, row.repeat(8, 1), table_VD, targets_N), 1e-13)


@pytest.mark.parametrize(
    "loss",
    [full_cross_entropy, sampled(1, 256), sampled(32, 256), sampled(10_000, 256)],
    ids=["full", "sampled-1", "sampled-32", "sampled-pool"],
)
def test_the_peak_grows_by_what_is_returned_and_two_numbers_a_row(
    loss: Loss, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 8192)

    def peak_of_a_step(num_rows: int) -> int:
        arguments = inputs(num_rows, num_items=256, width=8, dtype=torch.float32)
        with measured_memory(CPU, 1 << 40) as memory:
            loss(*arguments).backward()  # type: ignore[no-untyped-call]
        return memory.peak

    few, many = 128, 384
    peak_of_a_step(few)  # fills the caches of constants
    growth = (peak_of_a_step(many) - peak_of_a_step(few)) / (many - few)
    given = 8 * 4 + 8  # state and target, where an operator passes them on
    returned = 8 * 4 + 4  # gradient and loss
    # Beside them two numbers for the backward pass; a row of logits would take 1024 bytes.
    assert returned <= growth <= given + returned + 8


@every_loss
def test_autocast_does_not_change_the_loss(loss: Loss) -> None:
    arguments = inputs(9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_N = loss(*arguments, reduction="none")
    assert torch.equal(loss_N, loss(*arguments, reduction="none"))


@every_loss
def test_autocast_does_not_change_the_gradients(loss: Loss) -> None:
    arguments = inputs(9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = values(loss, *arguments)
    assert_close(inside, values(loss, *arguments), 0.0)


@every_loss
def test_a_second_derivative_is_refused(loss: Loss) -> None:
    states_ND, table_VD, targets_N = inputs(4)
    loss_ = loss(states_ND, table_VD, targets_N)
    (grad_ND,) = torch.autograd.grad(loss_.square(), states_ND, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad_ND.sum().backward()  # type: ignore[no-untyped-call]


FLOATS, IDS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
HUGE = torch.empty(1 << 31, 3, device="meta")


@every_loss
@pytest.mark.parametrize(
    ("states_ND", "table_VD", "targets_N", "message"),
    [
        (FLOATS[0], FLOATS, IDS, "^states_ND must be a float matrix"),
        (FLOATS.long(), FLOATS, IDS, "^states_ND must be a float matrix"),
        (FLOATS.to(torch.float8_e4m3fn), FLOATS, IDS, "^states_ND must be a float matrix"),
        (FLOATS[:, :0], FLOATS[:, :0], IDS, "^states_ND must have at least one column"),
        (HUGE, FLOATS, IDS, "^states_ND has 2147483648 rows, but the most is 2147483647"),
        (FLOATS, FLOATS[0], IDS, "^table_VD must be a float matrix"),
        (FLOATS, FLOATS.long(), IDS, "^table_VD must be a float matrix"),
        (FLOATS, FLOATS[:0], IDS, "^table_VD must have at least one item"),
        (FLOATS, HUGE, IDS, "^table_VD has 2147483648 items, but the most is 2147483647"),
        (FLOATS, torch.zeros(4, 2), IDS, "^table_VD has width 2, but states_ND has 3"),
        (FLOATS, FLOATS, IDS[:3], r"^targets_N must be int64 of shape \[4\]"),
        (FLOATS, FLOATS, IDS[:, None], r"^targets_N must be int64 of shape \[4\]"),
        (FLOATS, FLOATS, IDS.int(), "^targets_N must be int64"),
        (FLOATS, FLOATS, IDS - 1, r"^targets_N must lie in \[0, 4\), but spans -1 to -1"),
        (FLOATS, FLOATS, IDS + 4, r"^targets_N must lie in \[0, 4\), but spans 4 to 4"),
        (FLOATS, FLOATS.to("meta"), IDS, "table_VD .* on one device"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    loss: Loss, states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(states_ND, table_VD, targets_N)


@every_loss
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "median"}, "^reduction must be .*'median'"),
        ({"bias_V": FLOATS[:, 0][:3]}, r"^bias_V must be float of shape \[4\], not .* \[3\]"),
        ({"bias_V": FLOATS[:, :1]}, r"^bias_V must be float of shape \[4\]"),
        ({"bias_V": IDS}, r"^bias_V must be float of shape \[4\], not torch.int64"),
        ({"bias_V": FLOATS[:, 0].to("meta")}, "^bias_V is on meta, but table_VD is on cpu"),
        ({"logit_scale": torch.ones(1)}, r"^logit_scale must be float of shape \[\]"),
        ({"logit_scale": torch.tensor(2)}, r"^logit_scale must be float of shape \[\]"),
        ({"logit_scale": torch.ones((), device="meta")}, "^logit_scale is on meta"),
    ],
)
def test_options_that_do_not_fit_are_named(
    loss: Loss, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(FLOATS, FLOATS, IDS, **options)
