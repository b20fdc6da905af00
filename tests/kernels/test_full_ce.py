import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from kernels import full_cross_entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("num_rows", "num_items"), [(1, 1), (1, 2), (13, 2), (13, 37)])
def test_equals_torch(num_rows: int, num_items: int, reduction: str) -> None:
    generator = torch.Generator().manual_seed(num_items)
    states_ND, table_VD = (
        torch.randn(size, 5, dtype=torch.float64, generator=generator).requires_grad_()
        for size in (num_rows, num_items)
    )
    targets_N = torch.randint(0, num_items, (num_rows,), generator=generator)
    targets_N[0] = num_items - 1
    ours = full_cross_entropy(states_ND, table_VD, targets_N, reduction=reduction)
    theirs = F.cross_entropy(states_ND @ table_VD.T, targets_N, reduction=reduction)
    torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-13)
    weights = torch.randn(theirs.shape, dtype=torch.float64, generator=generator)
    for our_grad, their_grad in zip(
        torch.autograd.grad(ours, (states_ND, table_VD), weights),
        torch.autograd.grad(theirs, (states_ND, table_VD), weights),
        strict=True,
    ):
        torch.testing.assert_close(our_grad, their_grad, atol=1e-13, rtol=1e-13)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    states_ND = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    table_VD = torch.tensor([[1.0], [-1.0], [0.0]])
    loss_N = full_cross_entropy(states_ND, table_VD, torch.tensor([0, 0]), reduction="none")
    assert loss_N.tolist() == [0.0, 2e4]
    (grad_ND,) = torch.autograd.grad(loss_N.sum(), states_ND)
    assert grad_ND.tolist() == [[0.0], [-2.0]]


def test_the_eager_backend_leaves_out_no_gradient() -> None:
    states_ND, table_VD = torch.randn(5, 3, requires_grad=True), torch.randn(9, 3)
    grads = [
        torch.autograd.grad(
            full_cross_entropy(states_ND, table_VD, torch.arange(5), filter_eps=filter_eps),
            states_ND,
        )
        for filter_eps in (None, 0.5)
    ]
    assert torch.equal(grads[0][0], grads[1][0])


@pytest.mark.parametrize("filter_eps", [-0.1, float("inf"), float("nan")])
def test_a_threshold_is_a_finite_number(filter_eps: float) -> None:
    with pytest.raises(ValueError, match=r"^filter_eps must be finite and not negative, not "):
        full_cross_entropy(
            torch.zeros(2, 3), torch.zeros(4, 3), torch.arange(2), filter_eps=filter_eps
        )
