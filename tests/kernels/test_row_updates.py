"""The updates of touched rows, on each backend, against a plain loop in float64.

Shapes: V items, U touched items, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import (
    RowWiseAdagrad,
    RowWiseAdam,
    reference_row_updates,
    row_adagrad,
    row_adam,
)

# torch 2.11 warns of them whatever is asked for.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

BF16, FP16 = torch.bfloat16, torch.float16
HALF = (BF16, FP16)
NUM_ITEMS = 7
TOUCHED = {1: [0, 2, 6], 2: [2, 5], 3: [0], 40: [6, 0, 5], 41: [5], 3000: [2, 6]}
"""Items that the steps touch; 1, 3 and 4 are never."""


def random(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Adam:
    """Settings of `row_adam`, its state, and a plain loop."""

    by_row: bool = True
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    exp_avg_dtype: torch.dtype | None = torch.float32
    lr: float = 0.03
    eps: float = 1e-6

    def state(self, table_VD: Tensor) -> list[Tensor]:
        new = table_VD.new_zeros
        squares = table_VD.shape[:1] if self.by_row else table_VD.shape
        dtype = self.exp_avg_dtype
        return [
            *([] if dtype is None else [new(table_VD.shape, dtype=dtype)]),
            new(squares, dtype=torch.float32),
            new(len(table_VD), dtype=torch.int32),
        ]

    def update(
        self, table_VD: Tensor, items_U: Tensor, rows_UD: Tensor, *state: Tensor, **options: Any
    ) -> None:
        first = (None,) if self.exp_avg_dtype is None else ()
        tensors: tuple[Any, ...] = (items_U, rows_UD, *first, *state)
        settings = {"lr": self.lr, "eps": self.eps, "betas": self.betas}
        row_adam(table_VD, *tensors, **{**settings, "weight_decay": self.weight_decay, **options})

    def loop(
        self, step: int, w: list[float], g: list[float], state: dict[str, Any]
    ) -> list[float]:
        """The row's next weights; its state is as in the docstring of `row_adam`."""
        beta1, beta2 = self.betas
        skipped = step - state.get("last", 0)
        state["last"] = step
        old_m, old_u = state.get("m", [0.0] * len(g)), state.get("u", [0.0] * len(g))
        squares = [x * x for x in g]
        if self.by_row:
            squares = [sum(squares) / len(g)] * len(g)
        state["m"] = [beta1**skipped * m + (1 - beta1) * x for m, x in zip(old_m, g, strict=True)]
        state["u"] = [
            beta2**skipped * u + (1 - beta2) * x for u, x in zip(old_u, squares, strict=True)
        ]
        shrink = (1 - self.lr * self.weight_decay) ** skipped
        return [
            shrink * x
            - self.lr * (m / (1 - beta1**step)) / (math.sqrt(u / (1 - beta2**step)) + self.eps)
            for x, m, u in zip(w, state["m"], state["u"], strict=True)
        ]


@dataclass(frozen=True)
class Adagrad:
    """Settings of `row_adagrad`, its state, and a plain loop."""

    lr: float = 0.03
    eps: float = 1e-6

    def state(self, table_VD: Tensor) -> list[Tensor]:
        return [table_VD.new_zeros(len(table_VD), dtype=torch.float32)]

    def update(self, table_VD: Tensor, *tensors: Tensor, **options: Any) -> None:
        row_adagrad(table_VD, *tensors, **{"lr": self.lr, "eps": self.eps, **options})

    def loop(
        self, step: int, w: list[float], g: list[float], state: dict[str, Any]
    ) -> list[float]:
        """The row's next weights."""
        state["a"] = state.get("a", 0.0) + sum(x * x for x in g) / len(g)
        return [
            x - self.lr * y / (math.sqrt(state["a"]) + self.eps) for x, y in zip(w, g, strict=True)
        ]


METHODS = [
    pytest.param(Adagrad(), id="adagrad"),
    pytest.param(Adam(), id="adam"),
    pytest.param(Adam(weight_decay=0.02, betas=(0.0, 0.5)), id="adam, decayed"),
    pytest.param(Adam(betas=(0.0, 0.99), exp_avg_dtype=None), id="adam, no first moment"),
    pytest.param(Adam(by_row=False), id="adam, by element"),
    pytest.param(
        Adam(by_row=False, weight_decay=0.02, betas=(0.95, 0.98)), id="adam, by element, decayed"
    ),
]
ANY = [
    pytest.param(Adagrad(), id="adagrad"),
    pytest.param(Adam(exp_avg_dtype=BF16), id="adam, half"),
    pytest.param(Adam(betas=(0.0, 0.9), exp_avg_dtype=None), id="adam, no first moment"),
    pytest.param(Adam(by_row=False), id="adam, by element"),
]


def train(
    method: Adam | Adagrad, table_VD: Tensor, rows_dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[list[float]]]:
    """The state after the steps of `TOUCHED`, whose gradients differ in size; and the truth."""
    state = method.state(table_VD)
    truth: list[list[float]] = table_VD.double().tolist()
    true_state: list[dict[str, Any]] = [{} for _ in truth]
    for step, items in TOUCHED.items():
        rows_UD = random(step, len(items), table_VD.shape[1]) * 10.0 ** -(step % 4)
        rows_UD = rows_UD.to(rows_dtype)
        items_U = torch.tensor(items, device=table_VD.device)
        method.update(table_VD, items_U, rows_UD.to(table_VD.device), *state, step=step)
        for item, row in zip(items, rows_UD.double().tolist(), strict=True):
            truth[item] = method.loop(step, truth[item], row, true_state[item])
    return state, truth


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("width", [1, 50, 192])
@pytest.mark.parametrize("method", METHODS)
def test_the_updates_are_those_of_a_plain_loop(
    method: Adam | Adagrad, width: int, device: torch.device
) -> None:
    table_VD = random(0, NUM_ITEMS, width).float().to(device)
    _, truth = train(method, table_VD, FP16 if width == 50 else torch.float32)
    expected_VD = torch.tensor(truth, dtype=torch.float64, device=device)
    torch.testing.assert_close(table_VD.double(), expected_VD, rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("method", ANY)
def test_a_wide_table_takes_several_blocks(method: Adam | Adagrad, device: torch.device) -> None:
    table_VD = random(0, 3, 1030).float().to(device)
    expected_VD = table_VD.clone().double()
    items_U, rows_UD = torch.tensor([2, 0], device=device), random(1, 2, 1030).float().to(device)
    method.update(table_VD, items_U, rows_UD, *method.state(table_VD), step=1)
    for item, row in zip([2, 0], rows_UD.double().tolist(), strict=True):
        moved = method.loop(1, expected_VD[item].tolist(), row, {})
        expected_VD[item] = torch.tensor(moved, dtype=torch.float64)
    torch.testing.assert_close(table_VD.double(), expected_VD, rtol=2e-6, atol=2e-6)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", ANY)
def test_a_half_table_is_off_by_less_than_a_unit_in_every_step(
    method: Adam | Adagrad, dtype: torch.dtype, device: torch.device
) -> None:
    table_VD = random(0, NUM_ITEMS, 20).to(dtype).to(device)
    _, truth = train(method, table_VD, dtype)
    expected_VD = torch.tensor(truth, dtype=torch.float64, device=device)
    # At most 4 steps touch a row, and the first moment is rounded too.
    bound_VD = 5 * torch.finfo(dtype).eps * expected_VD.abs().clamp(min=0.1)
    assert ((table_VD.double() - expected_VD).abs() < bound_VD).all()


def test_the_eager_backend_works_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_VD = random(0, NUM_ITEMS, 6).to(BF16)
    tiled_VD = whole_VD.clone()
    train(Adam(), whole_VD)
    monkeypatch.setattr(reference_row_updates, "TILE_ELEMENTS", 13)
    train(Adam(), tiled_VD)
    assert torch.equal(tiled_VD, whole_VD)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_where_every_step_touches_every_row_it_is_adamw(
    weight_decay: float, device: torch.device
) -> None:
    ours = torch.nn.Parameter(random(0, NUM_ITEMS, 9).float().to(device))
    theirs = torch.nn.Parameter(ours.detach().clone())
    settings = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": weight_decay}
    our = RowWiseAdam([ours], second_moment="element", **settings)  # type: ignore[arg-type]
    their = torch.optim.AdamW([theirs], **settings)  # type: ignore[arg-type]
    for step in range(6):
        theirs.grad = random(step, NUM_ITEMS, 9).float().to(device)
        ours.grad = theirs.grad.to_sparse(1)
        our.step()
        their.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(
            our.state[ours][name], their.state[theirs][name], rtol=1e-5, atol=1e-7
        )


@pytest.mark.usefixtures("backend")
def test_of_one_column_it_is_adagrad(device: torch.device) -> None:
    ours = torch.nn.Parameter(random(0, NUM_ITEMS, 1).float().to(device))
    theirs = torch.nn.Parameter(ours.detach().clone())
    our = RowWiseAdagrad([ours], lr=0.1, eps=1e-10)
    their = torch.optim.Adagrad([theirs], lr=0.1, eps=1e-10)
    for step in range(4):
        gradient_VD = random(step, NUM_ITEMS, 1).float().to(device)
        gradient_VD[step : step + 3] = 0
        theirs.grad = gradient_VD
        ours.grad = gradient_VD.to_sparse(1)
        our.step()
        their.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("backend")
def test_skipped_steps_decay_the_moments_as_gradients_of_0_would(device: torch.device) -> None:
    method = Adam(by_row=False)
    table_VD = random(0, NUM_ITEMS, 5).float().to(device)
    theirs = torch.nn.Parameter(table_VD.clone())
    their = torch.optim.Adam([theirs], betas=method.betas)
    state = method.state(table_VD)
    items_U = torch.tensor([3], device=device)
    for step in range(1, 6):
        rows_UD = random(step, 1, 5).float().to(device) * (step in (1, 5))
        theirs.grad = torch.zeros_like(table_VD).index_copy(0, items_U, rows_UD)
        their.step()
        if step in (1, 5):
            before_D = table_VD[3].clone()
            method.update(table_VD, items_U, rows_UD, *state, step=step)
    for ours, name in zip(state, ("exp_avg", "exp_avg_sq"), strict=False):
        torch.testing.assert_close(ours, their.state[theirs][name], rtol=1e-6, atol=1e-9)
    assert state[2].tolist() == [0, 0, 0, 5, 0, 0, 0]
    # Of dense Adam's moves, the last one alone.
    moments = [their.state[theirs][name][3] for name in ("exp_avg", "exp_avg_sq")]
    moved_D = moments[0] / (1 - 0.9**5) / ((moments[1] / (1 - 0.999**5)).sqrt() + method.eps)
    torch.testing.assert_close(table_VD[3], before_D - method.lr * moved_D)


@pytest.mark.usefixtures("backend")
def test_without_a_first_moment_a_gradient_moves_as_far_as_dense_adam_in_time(
    device: torch.device,
) -> None:
    method = Adam(by_row=False, betas=(0.0, 0.999), exp_avg_dtype=None, lr=1e-3, eps=1e-8)
    table_VD = random(0, NUM_ITEMS, 5).float().to(device)
    theirs = torch.nn.Parameter(table_VD.clone())
    their = torch.optim.Adam([theirs], lr=method.lr)
    items_U, rows_UD = torch.tensor([3], device=device), random(1, 1, 5).float().to(device)
    for step in range(1, 400):
        theirs.grad = torch.zeros_like(table_VD)
        if step == 300:
            before_D = table_VD[3].clone()
            theirs.grad.index_copy_(0, items_U, rows_UD)
            method.update(table_VD, items_U, rows_UD, *method.state(table_VD), step=step)
        their.step()
    torch.testing.assert_close(table_VD[3] - before_D, theirs[3] - before_D, rtol=0.02, atol=0)


@pytest.mark.usefixtures("backend")
def test_weight_decay_is_that_of_the_skipped_steps_too(device: torch.device) -> None:
    method = Adam(lr=1e-3, weight_decay=1e-3)
    table_VD = torch.ones(NUM_ITEMS, 4, device=device)
    items_U, rows_UD = torch.tensor([2], device=device), torch.zeros(1, 4, device=device)
    method.update(table_VD, items_U, rows_UD, *method.state(table_VD), step=30_000)
    # Powers of 1 - 1e-6 in float32 would be off by 2 %.
    torch.testing.assert_close(table_VD[2], torch.full_like(table_VD[2], (1 - 1e-6) ** 30_000))
    assert (table_VD[:2] == 1).all()
    assert (table_VD[3:] == 1).all()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("method", ANY)
def test_other_rows_and_their_state_stay_as_they_are(
    method: Adam | Adagrad, device: torch.device
) -> None:
    table_VD = random(0, NUM_ITEMS, 10).to(BF16).to(device)
    state, _ = train(method, table_VD)
    before = [tensor.clone() for tensor in (table_VD, *state)]
    items_U, rows_UD = torch.tensor([1, 5], device=device), random(1, 2, 10).float().to(device)
    method.update(table_VD, items_U, rows_UD, *state, step=4000)
    for tensor, old in zip((table_VD, *state), before, strict=True):
        assert torch.equal(tensor[[0, 2, 3, 4, 6]], old[[0, 2, 3, 4, 6]])
        assert not torch.equal(tensor[[1, 5]], old[[1, 5]])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("method", ANY)
@pytest.mark.parametrize("number", [0, 2, 70])
def test_what_stands_behind_the_touched_rows_is_not_read(
    method: Adam | Adagrad, number: int, device: torch.device
) -> None:
    num_items = 80
    table_VD = random(0, num_items, 30).float().to(device)
    items_U = torch.randperm(num_items, generator=torch.Generator().manual_seed(1)).to(device)
    rows_UD = random(2, num_items, 30).float().to(device)
    expected_VD, state, expected_state = (
        table_VD.clone(),
        *(method.state(table_VD) for _ in range(2)),
    )
    method.update(expected_VD, items_U[:number], rows_UD[:number], *expected_state, step=3)
    items_U[number:] = torch.tensor([1 << 60, -5] * num_items)[: num_items - number].to(device)
    rows_UD[number:] = torch.nan
    num_touched = torch.tensor([number], dtype=torch.int32, device=device)
    method.update(table_VD, items_U, rows_UD, *state, step=3, num_touched=num_touched)
    assert torch.equal(table_VD, expected_VD)
    for ours, theirs in zip(state, expected_state, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("method", ANY)
def test_step_and_rate_may_be_on_the_device(
    method: Adam | Adagrad, dtype: torch.dtype, device: torch.device
) -> None:
    expected_VD = random(0, NUM_ITEMS, 10).to(dtype).to(device)
    table_VD = expected_VD.clone()
    expected_state, state = method.state(table_VD), method.state(table_VD)
    for step, items in TOUCHED.items():
        items_U = torch.tensor(items, device=device)
        rows_UD = random(step, len(items), 10).float().to(device)
        method.update(expected_VD, items_U, rows_UD, *expected_state, step=step)
        on_device = {
            "step": torch.tensor([step], dtype=torch.int32, device=device),
            "lr": torch.tensor([method.lr], device=device),
        }
        method.update(table_VD, items_U, rows_UD, *state, **on_device)
    if dtype == torch.float32:
        torch.testing.assert_close(table_VD, expected_VD, rtol=1e-5, atol=1e-6)
    else:
        # Of two values that are rounded alike, a few lie on two sides of a bound.
        assert (table_VD != expected_VD).float().mean() < 0.1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr": 0.1}, r"lr must be float32 of shape \[1\], as the other of step and lr is on"),
        ({"step": 1}, r"step must be int32 of shape \[1\], as the other of step and lr is on"),
        ({"step": torch.ones(1)}, r"step must be int32 of shape \[1\].*not torch.float32"),
        ({"lr": torch.ones(())}, r"lr must be float32 of shape \[1\].*not torch.float32 of shape"),
    ],
)
def test_step_and_rate_are_on_the_device_together(bad: dict[str, Any], message: str) -> None:
    options = {"step": torch.ones(1, dtype=torch.int32), "lr": torch.ones(1), **bad}
    table_VD = torch.ones(3, 4)
    with pytest.raises(ValueError, match=f"^{message}"):
        Adam().update(
            table_VD, torch.tensor([0]), table_VD[:1], *Adam().state(table_VD), **options
        )


@pytest.mark.usefixtures("triton_backend")
def test_the_decay_of_weights_is_known_on_the_host(device: torch.device) -> None:
    table_VD = torch.ones(3, 4, device=device)
    options = {
        "step": torch.ones(1, dtype=torch.int32, device=device),
        "lr": torch.ones(1, device=device),
    }
    with pytest.raises(ValueError, match=r"^weight_decay must be 0 where step and lr are on the"):
        Adam(weight_decay=0.1).update(
            table_VD,
            torch.tensor([0], device=device),
            table_VD[:1],
            *Adam().state(table_VD),
            **options,
        )


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("method", ANY)
def test_no_rows_are_no_update(method: Adam | Adagrad, device: torch.device) -> None:
    table_VD = torch.ones(3, 4, device=device)
    items_U = torch.empty(0, dtype=torch.int64, device=device)
    method.update(
        table_VD, items_U, torch.empty(0, 4, device=device), *method.state(table_VD), step=1
    )
    assert (table_VD == 1).all()


@pytest.mark.usefixtures("backend")
def test_layouts_of_the_gradient(device: torch.device) -> None:
    items_U = torch.tensor([[4, 9], [1, 9]], device=device)[:, 0]
    rows_UD = random(1, 6, 2).float().to(device).T
    table_VD, expected_VD = (
        torch.ones(NUM_ITEMS, 6, device=device),
        torch.ones(7, 6, device=device),
    )
    Adam().update(table_VD, items_U, rows_UD, *Adam().state(table_VD), step=1)
    Adam().update(
        expected_VD, items_U.clone(), rows_UD.contiguous(), *Adam().state(table_VD), step=1
    )
    assert torch.equal(table_VD, expected_VD)


def move(table_VD: Tensor, distance_VD: Tensor | float, **options: Any) -> None:
    """Adds a power of two, or its negative, with no error but that of the table's type."""
    distance_VD = torch.as_tensor(distance_VD, device=table_VD.device).float()
    rows_VD = -distance_VD.sign().expand(table_VD.shape)
    items_V = torch.arange(len(table_VD), device=table_VD.device)
    method = Adagrad(lr=float(distance_VD.abs().max()), eps=1e-30)
    method.update(table_VD, items_V, rows_VD, *method.state(table_VD), **{"step": 1, **options})


def all_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every value of a half type; in the interpreter a seventh, infinity and NaN among them."""
    step = 1 if device.type == "cuda" else 7
    bits = torch.arange(-(1 << 15), 1 << 15, step, dtype=torch.int32).to(torch.int16)
    values_VD = bits[None].view(dtype).to(device)
    # The interpreter warns of signalling NaN, and takes subnormal bfloat16 for other numbers.
    values_VD = values_VD.masked_fill(values_VD.isnan(), math.nan)
    if dtype == BF16 and device.type != "cuda":
        values_VD = values_VD.masked_fill(values_VD.abs() < torch.finfo(BF16).tiny, 0)
    return values_VD


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", HALF)
def test_a_value_that_the_table_has_is_stored_as_it_is(
    dtype: torch.dtype, device: torch.device
) -> None:
    table_VD = all_values(dtype, device)
    expected_VD = table_VD.clone()
    move(table_VD, 0.0)
    torch.testing.assert_close(table_VD, expected_VD, rtol=0, atol=0, equal_nan=True)


ROUNDINGS = (
    (BF16, 1.0, 2.0**-7),
    (BF16, -3.0, 2.0**-6),
    (BF16, 2.0**-100, 2.0**-107),
    (FP16, 1.0, 2.0**-10),
    (FP16, -3.0, 2.0**-9),
    (FP16, 0.0, 2.0**-24),
    (FP16, 2.0**-20, 2.0**-24),
)
"""Type, value, and the distance to the next value of the type."""


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("dtype", "value", "unit"), ROUNDINGS)
def test_rounding_is_right_on_average(
    dtype: torch.dtype, value: float, unit: float, device: torch.device
) -> None:
    share, total, number = 0.8125, 0.0, 0
    for seed in (0, 1 << 40, (1 << 64) - 1):
        table_VD = torch.full((32, 64), value, dtype=dtype, device=device)
        move(table_VD, share * unit, seed=seed)
        steps_VD = (table_VD.double() - value) / unit
        assert ((steps_VD == 0) | (steps_VD == 1)).all()
        total, number = total + float(steps_VD.sum()), number + steps_VD.numel()
    deviation = math.sqrt(share * (1 - share) / number)
    assert abs(total / number - share) < 4 * deviation


@pytest.mark.usefixtures("backend")
def test_the_first_moment_is_rounded_on_average_too(device: torch.device) -> None:
    method = Adam(exp_avg_dtype=BF16, betas=(0.5, 0.5))
    table_VD = torch.zeros(64, 64, dtype=BF16, device=device)
    state = method.state(table_VD)
    # Half of it is 1 + 0.25 / 128.
    rows_UD = torch.full((64, 64), 2 + 2**-8, device=device)
    method.update(table_VD, torch.arange(64, device=device), rows_UD, *state, step=1)
    up_VD = (state[0].double() - 1) * 128
    assert ((up_VD == 0) | (up_VD == 1)).all()
    assert abs(float(up_VD.mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / up_VD.numel())
    # Its random bits are others than those of the table.
    moved_VD = (table_VD == table_VD.min()).double()
    both = torch.stack([up_VD.flatten(), moved_VD.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4 / math.sqrt(up_VD.numel())


@pytest.mark.usefixtures("backend")
def test_updates_below_half_a_unit_add_up(device: torch.device) -> None:
    table_VD = torch.ones(4, 64, dtype=BF16, device=device)
    for step in range(1, 65):
        move(table_VD, 2.0**-10, step=step)  # An eighth of a unit.
    deviation = 2**-7 * math.sqrt(64 * 7 / 64 / table_VD.numel())
    assert abs(float(table_VD.double().mean()) - (1 + 64 * 2**-10)) < 4 * deviation


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("seed", [0, 0x0123_4567_89AB_CDEF, (1 << 64) - 1])
def test_backends_round_alike(
    dtype: torch.dtype, seed: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    start_VD = (random(0, 40, 50) * torch.logspace(-9, 2, 50)).to(dtype).to(device)
    signs_VD = random(1, 40, 50).sign().to(device)
    tables = []
    for backend in ("eager", "triton"):
        monkeypatch.setenv("PARETOCUT_KERNELS", backend)
        tables.append(start_VD.clone())
        move(tables[-1], signs_VD * 2.0**-12, seed=seed, step=0x7000_0001)
    assert torch.equal(*tables)
    assert (tables[0] != start_VD).any()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("method", ANY)
def test_a_row_is_a_function_of_its_own_arguments(
    method: Adam | Adagrad, device: torch.device
) -> None:
    def run(order: list[int], **options: Any) -> list[Tensor]:
        table_VD = random(0, 40, 12).to(BF16).to(device)
        state = method.state(table_VD)
        items_U = torch.tensor(order, device=device)
        rows_UD = random(1, 40, 12).float().to(device)[items_U]
        method.update(table_VD, items_U, rows_UD, *state, **{"step": 5, **options})
        return [table_VD, *state]

    ascending, others = list(range(10, 40)), list(range(10))
    first = run(ascending + others)
    for left, right in zip(first, run(others[::-1] + ascending[::-1]), strict=True):
        assert torch.equal(left, right)
    for left, right in zip(first, run(ascending), strict=True):
        assert torch.equal(left[10:], right[10:])
    assert not torch.equal(first[0], run(ascending + others, seed=1)[0])


@pytest.mark.usefixtures("backend")
def test_steps_round_differently(device: torch.device) -> None:
    tables = [torch.ones(8, 64, dtype=BF16, device=device) for _ in range(2)]
    for step, table_VD in enumerate(tables, start=1):
        move(table_VD, 2.0**-8, step=step)
    assert not torch.equal(*tables)


@pytest.mark.usefixtures("backend")
def test_autograd_learns_that_the_table_has_changed(device: torch.device) -> None:
    table_VD = torch.ones(3, 4, device=device, requires_grad=True)
    loss = table_VD.square().sum()
    method = Adagrad()
    items_U, rows_UD = torch.tensor([0], device=device), torch.ones(1, 4, device=device)
    method.update(table_VD, items_U, rows_UD, *method.state(table_VD.detach()), step=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU such a row is left out")
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("item", [-1, 5])
def test_items_that_there_are_not_are_refused(item: int) -> None:
    with pytest.raises(ValueError, match=r"^items_U must lie in \[0, 5\)"):
        row_adagrad(
            torch.ones(5, 2),
            torch.tensor([1, item]),
            torch.ones(2, 2),
            torch.zeros(5),
            step=1,
            lr=1,
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("triton_backend")
def test_on_a_gpu_items_that_there_are_not_are_left_out(device: torch.device) -> None:
    table_VD = torch.ones(5, 2, device=device)
    items_U = torch.tensor([-1, 5, 3, 1 << 40], device=device)
    rows_UD = torch.ones(4, 2, device=device)
    row_adagrad(table_VD, items_U, rows_UD, torch.zeros(5, device=device), step=1, lr=1)
    assert (table_VD[[0, 1, 2, 4]] == 1).all()
    assert (table_VD[3] != 1).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("triton_backend")
def test_a_table_of_more_than_two_to_the_31_elements(device: torch.device) -> None:
    table_VD = torch.zeros((1 << 22) + 2, 512, dtype=BF16, device=device)
    last = len(table_VD) - 1
    items_U, rows_UD = torch.tensor([last], device=device), -torch.ones(1, 512, device=device)
    row_adagrad(
        table_VD, items_U, rows_UD, torch.zeros(last + 1, device=device), step=1, lr=1, eps=1e-30
    )
    assert (table_VD[last] == 1).all()
    assert not table_VD[:last].any()


BAD_UPDATES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"table_VD": torch.ones(5)}, "table_VD must be a matrix of float32, bfloat16 or float16"),
    ({"table_VD": torch.ones(5, 2).double()}, "table_VD must be a matrix of float32"),
    ({"table_VD": torch.ones(5, 0)}, "table_VD must have at least one column"),
    ({"table_VD": torch.ones(2, 5).T}, "table_VD must be contiguous"),
    ({"items_U": torch.ones(2, dtype=torch.int32)}, "items_U must be an int64 vector"),
    ({"items_U": torch.ones(2, 1, dtype=torch.int64)}, "items_U must be an int64 vector"),
    ({"rows_UD": torch.ones(2, 2).double()}, "rows_UD must be a matrix of float32"),
    ({"rows_UD": torch.ones(3, 2)}, r"rows_UD must have the shape \[2, 2\], not \[3, 2\]"),
    ({"rows_UD": torch.ones(2, 2, device="meta")}, "rows_UD is on meta, but table_VD is on cpu"),
    ({"num_touched": torch.ones(1)}, r"num_touched must be int32 of shape \[1\]"),
    ({"num_touched": torch.ones((), dtype=torch.int32)}, "num_touched must have the shape"),
    ({"step": 0}, "step must lie in"),
    ({"step": 1 << 31}, "step must lie in"),
    ({"lr": -1.0}, "lr must be finite and not negative"),
    ({"lr": math.nan}, "lr must be finite and not negative"),
    ({"eps": 0.0}, "eps must be finite and positive"),
    ({"seed": -1}, "seed must lie in"),
    ({"seed": 1 << 64}, "seed must lie in"),
)
BAD_ADAGRAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"square_sum_V": torch.zeros(4)}, r"square_sum_V must have the shape \[5\], not \[4\]"),
    ({"square_sum_V": torch.zeros(5, dtype=BF16)}, "square_sum_V must be float32, not"),
    ({"square_sum_V": torch.zeros(10)[::2]}, "square_sum_V must be contiguous"),
)
BAD_ADAM: tuple[tuple[dict[str, Any], str], ...] = (
    ({"exp_avg_VD": torch.zeros(5)}, "exp_avg_VD must have the shape"),
    ({"exp_avg_VD": torch.zeros(5, 2, dtype=FP16)}, "exp_avg_VD must be float32 or bfloat16"),
    ({"exp_avg_VD": None}, "exp_avg_VD is needed with a beta1 of 0.9"),
    ({"exp_avg_sq": torch.zeros(5, 1)}, r"exp_avg_sq must have the shape \[5, 2\]"),
    ({"exp_avg_sq": torch.zeros(4)}, r"exp_avg_sq must have the shape \[5\]"),
    ({"last_step_V": torch.zeros(5)}, "last_step_V must be int32"),
    ({"betas": (0.9, 1.0)}, "betas must be two numbers in"),
    ({"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
    ({"lr": 0.5, "weight_decay": 2.0}, "weight_decay must be below 1 / lr"),
)


@pytest.mark.parametrize(
    ("update", "bad", "message"),
    [
        *((row_adagrad, *case) for case in (*BAD_UPDATES, *BAD_ADAGRAD)),
        *((row_adam, *case) for case in (*BAD_UPDATES, *BAD_ADAM)),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    update: Callable[..., None], bad: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "table_VD": torch.ones(5, 2),
        "items_U": torch.tensor([0, 3]),
        "rows_UD": torch.ones(2, 2),
        "step": 1,
        "lr": 0.1,
    }
    if update is row_adagrad:
        arguments["square_sum_V"] = torch.zeros(5)
    else:
        names = ("exp_avg_VD", "exp_avg_sq", "last_step_V")
        arguments |= zip(names, Adam().state(arguments["table_VD"]), strict=True)
    with pytest.raises(ValueError, match=f"^{message}"):
        update(**{**arguments, **bad})
