"""The optimizers of touched rows, on each backend.

Shapes: V items, D width, N rows.
"""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import RowWiseAdagrad, RowWiseAdam, Uniform, row_adam, sampled_cross_entropy

# torch 2.11 warns of them whatever is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

BF16 = torch.bfloat16
NUM_ITEMS = 7


def random(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


OPTIMIZERS: tuple[Callable[[Any], RowWiseAdagrad | RowWiseAdam], ...] = (
    lambda params: RowWiseAdagrad(params, lr=0.1, seed=5),
    lambda params: RowWiseAdam(params, lr=0.01, weight_decay=0.01, exp_avg_dtype=BF16, seed=5),
    lambda params: RowWiseAdam(params, lr=0.01, second_moment="element"),
)


def sparse_gradient(table_VD: Tensor, step: int) -> Tensor:
    """Of three rows."""
    items_U = torch.tensor([step % 3, 3 + step % 2, 6], device=table_VD.device)
    rows_UD = random(step, 3, table_VD.shape[1]).to(table_VD)
    return torch.sparse_coo_tensor(
        items_U[None], rows_UD, table_VD.shape, is_coalesced=True, check_invariants=True
    )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_training_goes_on_from_a_state_dict(
    optimizer_of: Callable[[Any], RowWiseAdagrad | RowWiseAdam],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    def steps(
        table_VD: torch.nn.Parameter, optimizer: torch.optim.Optimizer, *numbers: int
    ) -> None:
        for number in numbers:
            table_VD.grad = sparse_gradient(table_VD, number)
            optimizer.step()

    first = torch.nn.Parameter(random(0, NUM_ITEMS, 8).to(dtype).to(device))
    optimizer = optimizer_of([first])
    steps(first, optimizer, 1, 2, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = torch.nn.Parameter(first.detach().clone())
    resumed = optimizer_of([second])
    state_dict = torch.load(file, weights_only=True)
    kept = copy.deepcopy(state_dict)
    resumed.load_state_dict(state_dict)
    assert resumed.state[second].keys() == optimizer.state[first].keys()
    for name, value in optimizer.state[first].items():
        if isinstance(value, Tensor):
            assert resumed.state[second][name].dtype == value.dtype
            assert torch.equal(resumed.state[second][name], value)
        else:
            assert resumed.state[second][name] == value
    steps(first, optimizer, 4, 5)
    steps(second, resumed, 4, 5)
    assert torch.equal(first, second)
    # What was loaded from is not shared.
    for name, value in kept["state"][0].items():
        if isinstance(value, Tensor):
            assert torch.equal(state_dict["state"][0][name], value)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
def test_every_group_has_its_own_learning_rate(
    optimizer_of: Callable[[Any], RowWiseAdagrad | RowWiseAdam], device: torch.device
) -> None:
    tables = [torch.nn.Parameter(torch.ones(NUM_ITEMS, 8, device=device)) for _ in range(4)]
    optimizer = optimizer_of(
        [{"params": tables[:2]}, {"params": tables[2:3], "lr": 0.0}, {"params": tables[3:]}]
    )
    for table_VD in tables[:3]:
        table_VD.grad = sparse_gradient(table_VD, 1)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert torch.equal(tables[0], tables[1])
    assert float((tables[0] - 1).abs().max().detach()) > 0.1
    assert (tables[2] == 1).all()
    # Without a gradient there is no step.
    assert (tables[3] == 1).all()
    assert tables[3] not in optimizer.state


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("method", [RowWiseAdagrad, RowWiseAdam])
def test_a_rate_on_the_device_may_change_between_steps(
    method: type[RowWiseAdagrad | RowWiseAdam], device: torch.device
) -> None:
    theirs, ours = (
        torch.nn.Parameter(random(0, NUM_ITEMS, 8).float().to(device)) for _ in range(2)
    )
    rate_1 = torch.tensor([0.1], device=device)
    usual, on_device = method([theirs], lr=0.1), method([ours], lr=rate_1)
    for step in range(4):
        for table_VD, optimizer in ((theirs, usual), (ours, on_device)):
            table_VD.grad = sparse_gradient(table_VD, step)
            optimizer.step()
        usual.param_groups[0]["lr"] *= 0.5
        rate_1 *= 0.5
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert on_device.state[ours]["step"].tolist() == [4]
    resumed = method([torch.nn.Parameter(ours.detach().clone())], lr=rate_1)
    resumed.load_state_dict(on_device.state_dict())
    (state,) = resumed.state.values()
    assert state["step"].tolist() == [4]
    assert state["step"] is not on_device.state[ours]["step"]


@pytest.mark.usefixtures("backend")
def test_gradients_of_an_embedding_are_coalesced(device: torch.device) -> None:
    tables = [torch.nn.Parameter(torch.ones(NUM_ITEMS, 8, device=device)) for _ in range(2)]
    ids = torch.tensor([2, 5, 2, 2, 0], device=device)
    weights_ND = random(0, 5, 8).float().to(device)
    loss = (torch.nn.functional.embedding(ids, tables[0], sparse=True) * weights_ND).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert tables[0].grad is not None
    assert not tables[0].grad.is_coalesced()
    RowWiseAdam(tables[:1]).step()
    rows_UD = torch.stack([weights_ND[4], weights_ND[[0, 2, 3]].sum(0), weights_ND[1]])
    items_U = torch.tensor([0, 2, 5], device=device)
    state = [
        torch.zeros(NUM_ITEMS, 8, device=device),
        torch.zeros(NUM_ITEMS, device=device),
        torch.zeros(NUM_ITEMS, dtype=torch.int32, device=device),
    ]
    row_adam(tables[1], items_U, rows_UD, *state, step=1, lr=1e-3)
    torch.testing.assert_close(*tables)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_a_table_learns_from_touched_rows(
    optimizer_of: Callable[[Any], RowWiseAdagrad | RowWiseAdam],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    table_VD = torch.nn.Parameter(random(0, 13, 8).mul(0.1).to(dtype).to(device))
    start_VD = table_VD.detach().clone()
    states_ND = random(1, 6, 8).to(dtype).to(device)
    targets_N = torch.tensor([0, 1, 2, 0, 1, 2], device=device)
    optimizer = optimizer_of([table_VD])

    def loss() -> Tensor:
        return sampled_cross_entropy(
            states_ND, table_VD, targets_N, Uniform(4, 1), group_size=6, table_gradient="touched"
        )

    def closure() -> float:
        value = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()

    curve = [optimizer.step(closure) for _ in range(5)]
    assert curve[-1] < curve[0]
    assert table_VD.grad is not None
    touched = table_VD.grad.coalesce().indices()[0]
    others_V = torch.ones(13, dtype=torch.bool, device=device).index_fill(0, touched, False)
    assert others_V.any()
    assert torch.equal(table_VD[others_V], start_VD[others_V])


@pytest.mark.parametrize("optimizer_of", OPTIMIZERS)
def test_a_gradient_of_another_form_is_refused(
    optimizer_of: Callable[[Any], RowWiseAdagrad | RowWiseAdam],
) -> None:
    table_VD = torch.nn.Parameter(torch.ones(5, 2))
    optimizer = optimizer_of([table_VD])
    for gradient in (torch.ones(5, 2), torch.ones(5, 2).to_sparse(2)):
        table_VD.grad = gradient
        with pytest.raises(ValueError, match=r"^the gradient must be a sparse COO tensor"):
            optimizer.step()
        assert not optimizer.state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: RowWiseAdagrad(p, lr=-1), "lr must be"),
        (lambda p: RowWiseAdagrad(p, eps=0), "eps must be"),
        (lambda p: RowWiseAdam(p, betas=(1, 0)), "betas must be"),
        (
            lambda p: RowWiseAdam(p, second_moment="all"),
            "second_moment must be 'row' or 'element'",
        ),
        (
            lambda p: RowWiseAdam(p, exp_avg_dtype=torch.float16),
            "exp_avg_dtype must be float32 or bfloat16",
        ),
    ],
)
def test_settings_out_of_range_are_refused_at_once(
    make: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make([torch.nn.Parameter(torch.ones(5, 2))])
