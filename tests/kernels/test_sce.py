"""SCE, in both backends: the choice of buckets, and the losses of given ones."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from kernels import RowSink, full_cross_entropy, reference, scalable_cross_entropy
from kernels.gpu import Gpu, simulated_gpu
from kernels.sce import bucket_centres, bucket_contents, highest_losses
from objectives.memory_trace import Recorder

IGNORED = -100
BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
# torch 2.11 warns of the first whatever is asked for, and the second is a prototype.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]
Leaves = tuple[Tensor, Tensor, Tensor]
SIZES: dict[str, Any] = {"num_buckets": 5, "bucket_rows": 6, "bucket_items": 7}


class Inputs(NamedTuple):
    """What the loss of given buckets is computed of."""

    states_ND: Tensor
    table_VD: Tensor
    logit_scale: Tensor
    targets_N: Tensor
    rows_GR: Tensor
    items_GK: Tensor

    @property
    def leaves(self) -> Leaves:
        return self.states_ND, self.table_VD, self.logit_scale

    def loss(self, **options: Any) -> tuple[Tensor, Tensor]:
        """Ours of the rows, and which ones buckets hold."""
        states_ND, table_VD, logit_scale, *rest = self
        return highest_losses(states_ND, table_VD, *rest, logit_scale=logit_scale, **options)

    def of(self, leaves: Iterable[Tensor]) -> "Inputs":
        """The same with other leaves."""
        states_ND, table_VD, logit_scale = leaves
        return self._replace(states_ND=states_ND, table_VD=table_VD, logit_scale=logit_scale)

    def on(self, device: torch.device | str) -> "Inputs":
        """The same numbers, without a history."""
        lists = (tensor.to(device) for tensor in self[3:])
        leaves = (leaf.detach().to(device).requires_grad_() for leaf in self.leaves)
        return Inputs(*leaves, *lists)


def random(seed: int, *shape: int, dtype: torch.dtype = FP64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FP64).to(dtype)


def subsets(seed: int, number: int, size: int, end: int) -> Tensor:
    """Rows of distinct numbers below an end."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(end, generator=generator)[:size] for _ in range(number)])


def inputs(
    num_buckets: int = 5,
    bucket_rows: int = 6,
    bucket_items: int = 7,
    *,
    width: int = 9,
    dtype: torch.dtype = FP64,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Of 12 rows and 11 items: rows in no bucket and in several, ignored ones and empty places.

    Row 0 is in none. Items 0 and 10 are targets, and some targets are among the items of a bucket
    of their row.
    """
    targets_N = torch.randint(0, 11, (12,), generator=torch.Generator().manual_seed(1))
    targets_N[:2] = torch.tensor([0, 10])
    targets_N[4::5] = IGNORED
    rows_GR = 1 + subsets(2, num_buckets, bucket_rows, 11)
    items_GK = subsets(3, num_buckets, bucket_items, 11)
    # The first bucket is full.
    rows_GR[1:, 3::4] = -1
    items_GK[1:, 4::5] = -1
    given = Inputs(
        random(4, 12, width, dtype=dtype),
        random(5, 11, width, dtype=dtype) * (2 / width**0.5),
        torch.tensor(1.3, dtype=dtype),
        targets_N,
        rows_GR,
        items_GK,
    )
    return given.on(device)


def formula(given: Inputs) -> tuple[Tensor, list[list[float]]]:
    """The loss of every row, a row and a bucket at a time; and all that it is the highest of."""
    states_ND, table_VD, logit_scale, targets_N, rows_GR, items_GK = given
    highest, of_rows = [], []
    for row, target in enumerate(targets_N.tolist()):
        losses = [torch.zeros((), dtype=states_ND.dtype)]
        if target != IGNORED:
            logits_V = logit_scale * (table_VD @ states_ND[row])
            for rows, items in zip(rows_GR.tolist(), items_GK.tolist(), strict=True):
                if row in rows:
                    others = [item for item in items if item not in (-1, target)]
                    logits_k = logits_V[[target, *others]]
                    losses.append(logits_k.logsumexp(0) - logits_k[0])
        # Of a row in no bucket it is 0, and no loss is less.
        highest.append(torch.stack(losses).max(0).values)
        of_rows.append(torch.stack(losses[1:]).tolist() if losses[1:] else [])
    return torch.stack(highest), of_rows


def gradients(loss_N: Tensor, leaves: Leaves, left_out: Sequence[int] = ()) -> tuple[Tensor, ...]:
    """Of a sum of the rows with uneven weights, some left out, as dense tensors."""
    weights_N = torch.linspace(-1, 2, len(loss_N), dtype=FP64)
    weights_N[list(left_out)] = 0
    grads = torch.autograd.grad(loss_N, leaves, weights_N.to(loss_N))
    return tuple(grad.to_dense() for grad in grads)


def close(ours: tuple[Tensor, ...], truth: tuple[Tensor, ...], tolerance: float) -> None:
    for our, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(our.cpu().double(), true, atol=tolerance, rtol=tolerance)


SHAPES = [(5, 6, 7), (9, 1, 7), (3, 11, 11), (1, 11, 5), (4, 5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_those_of_the_formula(shape: tuple[int, int, int]) -> None:
    given = inputs(*shape)
    loss_N, is_covered_N = given.loss()
    expected_N, of_rows = formula(given)
    assert is_covered_N.tolist() == [len(losses) > 0 for losses in of_rows]
    ours, truth = ((value, *gradients(value, given.leaves)) for value in (loss_N, expected_N))
    close(ours, truth, 1e-12)


def test_the_inputs_have_what_they_are_for() -> None:
    given = inputs()
    _, of_rows = formula(given)
    assert {0, 1, 2, 3} <= {len(losses) for losses in of_rows}
    held = (given.targets_N[given.rows_GR] == IGNORED) & (given.rows_GR >= 0)
    assert held.any()
    collisions = given.targets_N[given.rows_GR][:, :, None] == given.items_GK[:, None]
    assert collisions.any()


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize(
    ("dtype", "deterministic", "tolerance"), [(FP32, False, 1e-5), (BF16, True, 5e-2)]
)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_triton_computes_the_formula(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    deterministic: bool,
    tolerance: float,
    device: torch.device,
) -> None:
    given = inputs(*shape, width=20, dtype=dtype, device=device)
    truth = given.of(leaf.double() for leaf in given.leaves).on("cpu")
    expected_N, of_rows = formula(truth)
    loss_N, is_covered_N = given.loss(deterministic=deterministic)
    assert loss_N.dtype == FP32
    assert is_covered_N.tolist() == [len(losses) > 0 for losses in of_rows]
    # Rounded, another bucket may have the highest loss.
    close_calls = [row for row, losses in enumerate(of_rows) if lead(losses) < 0.01]
    assert len(close_calls) < 4
    ours = loss_N, *gradients(loss_N, given.leaves, close_calls)
    close(ours, (expected_N, *gradients(expected_N, truth.leaves, close_calls)), tolerance)


def lead(losses: list[float]) -> float:
    """How much higher the highest is than the next."""
    highest, second, *_ = *sorted(losses, reverse=True), -math.inf, -math.inf
    return highest - second


def test_gradients_pass_gradcheck() -> None:
    given = inputs()
    assert torch.autograd.gradcheck(lambda *leaves: given.of(leaves).loss()[0], given.leaves)


@pytest.mark.parametrize("needed", range(3))
def test_only_what_needs_a_gradient_gets_one(needed: int) -> None:
    given = inputs()
    truth = torch.autograd.grad(given.loss()[0].sum(), given.leaves)
    for number, leaf in enumerate(given.leaves):
        leaf.requires_grad_(number == needed)
    given.loss()[0].sum().backward()  # type: ignore[no-untyped-call]
    for number, leaf in enumerate(given.leaves):
        if number == needed:
            torch.testing.assert_close(leaf.grad, truth[number])
        else:
            assert leaf.grad is None


@pytest.mark.usefixtures("backend")
def test_the_gradient_is_that_of_the_worst_bucket(device: torch.device) -> None:
    """Of the others' items and pairs there is none."""
    states_ND = torch.ones(1, 2, device=device, requires_grad=True)
    table_VD = torch.tensor([[0.0, 0], [1, 1], [2, 2]], device=device, requires_grad=True)
    zero_N = torch.zeros(1, dtype=torch.int64, device=device)
    rows_GR, items_GK = zero_N.expand(2, 1), torch.tensor([[2], [1]], device=device)
    loss_N, _ = highest_losses(states_ND, table_VD, zero_N, rows_GR, items_GK)
    assert loss_N.item() == pytest.approx(math.log1p(math.exp(4)))
    loss_N.sum().backward()  # type: ignore[no-untyped-call]
    p = 1 / (1 + math.exp(-4))
    assert table_VD.grad is not None
    assert states_ND.grad is not None
    expected = torch.tensor([[-p, -p], [0, 0], [p, p]], device=device)
    torch.testing.assert_close(table_VD.grad, expected)
    torch.testing.assert_close(states_ND.grad, torch.full_like(states_ND, 2 * p))


@pytest.mark.usefixtures("backend")
def test_buckets_that_are_equal_share_nothing(device: torch.device) -> None:
    given = inputs(3, dtype=FP32, device=device)
    twice = given._replace(
        rows_GR=given.rows_GR.repeat(2, 1), items_GK=given.items_GK.repeat(2, 1)
    )
    (once_N, _), (twice_N, _) = given.loss(), twice.loss()
    torch.testing.assert_close(twice_N, once_N)
    for ours, theirs in zip(
        gradients(twice_N, given.leaves), gradients(once_N, given.leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("form", ["touched", "sink"])
def test_the_tables_gradient_may_be_rows(form: str, device: torch.device) -> None:
    given = inputs(dtype=FP32, device=device)
    _, expected_VD, _ = gradients(given.loss()[0], given.leaves)
    if form == "touched":
        _, rows_VD, _ = gradients(given.loss(table_gradient="touched")[0], given.leaves)
    else:
        sink = RowSink(len(given.table_VD))
        loss_N, _ = given.loss(table_gradient=sink)
        loss_N.backward(torch.linspace(-1, 2, len(loss_N), device=device))  # type: ignore[no-untyped-call]
        assert given.table_VD.grad is None
        gradient = sink.take()
        assert gradient is not None
        assert gradient.num_touched is not None
        end = int(gradient.num_touched)
        rows_VD = torch.zeros_like(expected_VD)
        rows_VD[gradient.items_U[:end]] = gradient.rows_UD[:end]
    torch.testing.assert_close(rows_VD, expected_VD)


def test_a_graph_may_be_gone_through_again() -> None:
    given = inputs()
    loss_N, _ = given.loss()
    inputs(3).loss()
    first = torch.autograd.grad(loss_N.sum(), given.leaves, retain_graph=True)
    again = torch.autograd.grad(loss_N.sum(), given.leaves)
    for ours, theirs in zip(first, again, strict=True):
        assert torch.equal(ours, theirs)


def test_a_second_derivative_is_refused() -> None:
    given = inputs()
    loss_N, _ = given.loss()
    (grad_ND,) = torch.autograd.grad(loss_N.sum(), given.states_ND, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad_ND.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("mix", [False, True])
def test_one_bucket_of_everything_is_the_cross_entropy(mix: bool, device: torch.device) -> None:
    states_ND, table_VD, logit_scale, targets_N, *_ = inputs(dtype=FP32, device=device)
    sizes: dict[str, Any] = {"num_buckets": 1, "bucket_rows": 12, "bucket_items": 11}
    for reduction in ("mean", "none"):
        options: dict[str, Any] = {"logit_scale": logit_scale, "reduction": reduction}
        ours = scalable_cross_entropy(states_ND, table_VD, targets_N, mix=mix, **sizes, **options)
        theirs = full_cross_entropy(states_ND, table_VD, targets_N, **options)
        torch.testing.assert_close(ours, theirs)
    leaves = states_ND, table_VD, logit_scale
    for our, their in zip(gradients(ours, leaves), gradients(theirs, leaves), strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-5)


def chosen(scores_GM: Tensor, size: int) -> list[set[int]]:
    """The best of a plain sort, without -inf."""
    return [
        {
            place
            for place in row.argsort(descending=True)[:size].tolist()
            if row[place] > -torch.inf
        }
        for row in scores_GM
    ]


def held(lists: Tensor) -> list[set[int]]:
    """What buckets hold, without empty places."""
    return [{number for number in numbers if number >= 0} for numbers in lists.tolist()]


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("size", [3, 100])
def test_a_bucket_holds_the_best(
    backend: str,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("PARETOCUT_KERNELS", backend)
    centres_GD, vectors_MD = random(0, 4, 8, dtype=dtype), random(1, 300, 8, dtype=dtype)
    valid_M = torch.arange(300) % 4 > 0
    scores_GM = centres_GD.double() @ vectors_MD.double().T
    given = centres_GD.to(device), vectors_MD.to(device), size
    contents = bucket_contents(*given)
    assert contents.dtype == torch.int32
    assert held(contents) == chosen(scores_GM, size)
    contents = bucket_contents(*given, valid_M.to(device))
    assert held(contents) == chosen(scores_GM.masked_fill(~valid_M, -torch.inf), size)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("junk", [0.0, -1e9, math.nan, math.inf])
def test_an_ignored_row_takes_no_place(junk: float, device: torch.device) -> None:
    """Not even where all others have negative scores, and there are too few of them."""
    centres_GD, states_ND = -torch.ones(2, 3), torch.rand(8, 3) + 0.1
    valid_N = torch.tensor([0, 1, 1, 0, 0, 1, 0, 0]).bool()
    states_ND[~valid_N] = junk
    for size, expected in ((3, {1, 2, 5}), (8, {1, 2, 5})):
        rows_GR = bucket_contents(
            centres_GD.to(device), states_ND.to(device), size, valid_N.to(device)
        )
        assert held(rows_GR) == [expected] * 2


@pytest.mark.usefixtures("backend")
def test_what_an_ignored_row_holds_changes_nothing(device: torch.device) -> None:
    states_ND, table_VD, _, targets_N, *_ = inputs(dtype=FP32, device=device)
    results = []
    for junk in (0.0, math.nan):
        states = states_ND.detach().masked_fill((targets_N == IGNORED)[:, None], junk)
        states.requires_grad_()
        torch.manual_seed(3)
        # More places than rows that are left.
        sizes = SIZES | {"bucket_rows": 12}
        loss = scalable_cross_entropy(states, table_VD, targets_N, **sizes)
        results.append((loss, *torch.autograd.grad(loss, (states, table_VD))))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()
    assert not results[0][1][targets_N == IGNORED].any()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_a_row_the_loss_is_zero(reduction: str, device: torch.device) -> None:
    states_ND, table_VD, _, targets_N, *_ = inputs(dtype=FP32, device=device)
    loss = scalable_cross_entropy(
        states_ND, table_VD, targets_N.fill_(7), ignore_index=7, reduction=reduction, **SIZES
    )
    assert torch.equal(loss, torch.zeros_like(targets_N if reduction == "none" else loss).float())
    for grad in torch.autograd.grad(loss.sum(), (states_ND, table_VD)):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_a_mean_is_that_of_the_rows_in_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs()
    contents: list[Tensor] = []
    monkeypatch.setattr("kernels.sce.bucket_contents", lambda *_: contents.pop(0))
    expected_N, of_rows = formula(given)
    num_covered = sum(len(losses) > 0 for losses in of_rows)
    assert num_covered < (given.targets_N != IGNORED).sum()
    for reduction, expected in (
        ("none", expected_N),
        ("sum", expected_N.sum()),
        ("mean", expected_N.sum() / num_covered),
    ):
        contents[:] = given.rows_GR, given.items_GK
        loss = scalable_cross_entropy(
            given.states_ND,
            given.table_VD,
            given.targets_N,
            logit_scale=1.3,
            reduction=reduction,
            **SIZES,
        )
        torch.testing.assert_close(loss, expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("mix", [False, True])
def test_it_is_the_formula_of_the_buckets_of_its_centres(
    mix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs()
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 100)
    torch.manual_seed(11)
    ignored_N = given.targets_N == IGNORED
    centres_GD = bucket_centres(given.states_ND, ~ignored_N, 3, mix)
    scores_GN = centres_GD @ given.states_ND.detach().T
    rows_GR = scores_GN.masked_fill(ignored_N, -torch.inf).topk(5).indices
    items_GK = (centres_GD @ given.table_VD.detach().T).topk(6).indices
    expected_N, _ = formula(given._replace(rows_GR=rows_GR, items_GK=items_GK))
    torch.manual_seed(11)
    loss_N = scalable_cross_entropy(
        given.states_ND,
        given.table_VD,
        given.targets_N,
        num_buckets=3,
        bucket_rows=5,
        bucket_items=6,
        mix=mix,
        logit_scale=given.logit_scale,
        reduction="none",
    )
    ours, truth = ((value, *gradients(value, given.leaves)) for value in (loss_N, expected_N))
    close(ours, truth, 1e-12)


def test_torchs_seed_decides() -> None:
    states_ND, table_VD, _, targets_N, *_ = inputs()

    def loss(seed: int, mix: bool) -> Tensor:
        torch.manual_seed(seed)
        return scalable_cross_entropy(states_ND, table_VD, targets_N, mix=mix, **SIZES)

    for mix in (False, True):
        first, other, again = (loss(seed, mix) for seed in (1, 2, 1))
        assert first == again != other


@pytest.mark.parametrize("tile_elements", [1, 12, 40, 1000])
@pytest.mark.parametrize("dtype", [FP64, BF16])
def test_a_mixture_is_made_in_tiles(
    dtype: torch.dtype, tile_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    omega_NG, states_ND = random(0, 23, 4), random(1, 23, 6, dtype=dtype)
    valid_N = torch.arange(23) % 5 > 0
    expected_GD = omega_NG.T @ states_ND.double().masked_fill(~valid_N[:, None], 0) / 6**0.25
    rows = iter(torch.split(omega_NG, max(1, tile_elements // 6)))

    def randn(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        omega_nG: Tensor = next(rows).to(device, dtype)
        assert omega_nG.shape == shape
        return omega_nG

    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(reference, "TILE_ELEMENTS", tile_elements)
    centres_GD = bucket_centres(
        states_ND.masked_fill(~valid_N[:, None], torch.nan), valid_N, 4, True
    )
    assert centres_GD.dtype == dtype
    tolerance = 1e-14 if dtype == FP64 else 5e-2
    torch.testing.assert_close(centres_GD.double(), expected_GD, atol=tolerance, rtol=tolerance)
    assert next(rows, None) is None


def test_centres_have_the_published_size() -> None:
    torch.manual_seed(0)
    states_ND, valid_N = torch.randn(500, 16), torch.ones(500, dtype=torch.bool)
    plain_GD = bucket_centres(states_ND, valid_N, 2000, False)
    assert plain_GD.std().item() == pytest.approx(16**-0.25, rel=0.02)
    mixed_GD = bucket_centres(states_ND, valid_N, 2000, True)
    assert mixed_GD.std().item() == pytest.approx(500**0.5 * 16**-0.25, rel=0.05)
    # In the span of the states, which is a plane here.
    states_ND[:, 2:] = 0
    assert not bucket_centres(states_ND, valid_N, 2000, True)[:, 2:].any()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("mix", [False, True])
def test_a_state_that_is_not_finite_is_heard_of(mix: bool, device: torch.device) -> None:
    states_ND, table_VD, _, targets_N, *_ = inputs(dtype=FP32, device=device)
    bad = 3
    states_ND.data[bad, 0] = math.nan
    targets_N[bad] = 2

    def loss(reduction: str) -> Tensor:
        torch.manual_seed(0)
        return scalable_cross_entropy(
            states_ND, table_VD, targets_N, mix=mix, reduction=reduction, **SIZES
        )

    assert loss("mean").isnan()
    is_bad_N = torch.arange(12, device=device) == bad
    assert torch.equal(loss("none").isnan(), is_bad_N)


def test_autocast_changes_nothing_in_the_eager_backend() -> None:
    states_ND, table_VD, _, targets_N, *_ = inputs(dtype=FP32)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=BF16, enabled=enabled):
            loss = scalable_cross_entropy(states_ND, table_VD, targets_N, **SIZES)
            torch.manual_seed(0)
            centres_GD = bucket_centres(states_ND, targets_N >= 0, 3, True)
        results.append((loss, centres_GD, *torch.autograd.grad(loss, (states_ND, table_VD))))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_a_recomputed_loss_has_the_same_buckets() -> None:
    states_ND, table_VD, _, targets_N, *_ = inputs()
    leaves = states_ND, table_VD

    def loss(states_ND: Tensor, table_VD: Tensor) -> Tensor:
        return scalable_cross_entropy(2 * states_ND, table_VD, targets_N, **SIZES)

    torch.manual_seed(0)
    expected = torch.autograd.grad(loss(*leaves), leaves)
    torch.manual_seed(0)
    value = checkpoint(loss, *leaves, use_reentrant=False)
    torch.manual_seed(1)
    for ours, theirs in zip(torch.autograd.grad(value, leaves), expected, strict=True):
        assert torch.equal(ours, theirs)


# What torch does of its own to compile it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_loss_has_the_same_gradients() -> None:
    """Though its backward pass reads what is written after its forward pass."""
    given = inputs()

    def loss(*leaves: Tensor) -> Tensor:
        loss_N, _ = given.of(leaves).loss()
        return (loss_N * torch.arange(12)).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = (torch.autograd.grad(each(*given.leaves), given.leaves) for each in (compiled, loss))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mix", [False, True])
@pytest.mark.parametrize(
    ("sizes", "num_items"),
    [((509, 521, 499), 1_000_003), ((127, 4093, 4091), 1_000_003), ((61, 7, 11), 5003)],
)
def test_nothing_is_larger_than_the_states_of_the_pairs(
    sizes: tuple[int, int, int], num_items: int, mix: bool
) -> None:
    """On a GPU, whose host waits for nothing: there are no numbers to wait for here."""
    pytest.importorskip("triton")
    num_buckets, bucket_rows, bucket_items = sizes
    num_rows, width = 65_537, 64
    recorder = Recorder()
    with simulated_gpu(Gpu(9, 132)), FakeTensorMode(), recorder:
        table_VD = torch.empty(num_items, width, requires_grad=True)
        states_ND = torch.empty(num_rows, width, dtype=BF16, requires_grad=True)
        targets_N = torch.empty(num_rows, dtype=torch.int64)
        recorder.part, sink = "loss", RowSink(num_items)
        with torch.autocast("cpu", dtype=BF16):
            loss = scalable_cross_entropy(
                states_ND,
                table_VD,
                targets_N,
                num_buckets=num_buckets,
                bucket_rows=bucket_rows,
                bucket_items=bucket_items,
                mix=mix,
                table_gradient=sink,
            )
        recorder.part = "gradients"
        loss.backward()  # type: ignore[no-untyped-call]
        assert states_ND.grad is not None
        taken = sink.take()
    # A target for each row, though it is in several buckets.
    assert taken is not None
    num_targets = min(num_rows, num_buckets * bucket_rows)
    assert len(taken.rows_UD) == min(num_items, num_buckets * bucket_items + num_targets)
    of_pairs = 2 * num_buckets * bucket_rows * width
    of_states = 2 * num_rows * width
    of_keys = 8 * 2 * reference.TILE_ELEMENTS
    largest = max(math.prod(event.shape) for event in recorder.events if event.part == "loss")
    assert largest <= max(of_pairs, of_states, of_keys)


FLOATS, IDS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_buckets": 0}, "^num_buckets must be at least 1, not 0$"),
        ({"bucket_rows": 0}, "^bucket_rows must be at least 1, not 0$"),
        ({"bucket_items": -1}, "^bucket_items must be at least 1, not -1$"),
        ({"bucket_rows": 5}, "^bucket_rows must be at most 4, the rows of states_ND, not 5$"),
        ({"bucket_items": 5}, "^bucket_items must be at most 4, the items of table_VD, not 5$"),
        ({"num_buckets": 1 << 30}, r"^num_buckets \* bucket_rows has 4294967296 pairs, but"),
        ({"reduction": "median"}, "^reduction must be .*'median'"),
        ({"table_gradient": "rows"}, "^table_gradient must be 'dense', 'touched' or a RowSink"),
        ({"logit_scale": torch.ones(1)}, r"^logit_scale must be float of shape \[\]"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    sizes = {"num_buckets": 2, "bucket_rows": 4, "bucket_items": 3}
    with pytest.raises(ValueError, match=message):
        scalable_cross_entropy(FLOATS, FLOATS, IDS, **(sizes | options))


@pytest.mark.parametrize(
    ("states_ND", "table_VD", "targets_N", "message"),
    [
        (FLOATS[0], FLOATS, IDS, "^states_ND must be a float matrix"),
        (FLOATS, torch.zeros(4, 2), IDS, "^table_VD has width 2, but states_ND has 3"),
        (FLOATS, FLOATS, IDS.int(), "^targets_N must be int64"),
        (FLOATS, FLOATS, IDS + 4, r"^targets_N must lie in \[0, 4\), but spans 4 to 4"),
        (FLOATS, FLOATS[:1], IDS, "^table_VD must have at least 2 items"),
    ],
)
def test_arguments_that_do_not_fit_are_named(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scalable_cross_entropy(
            states_ND, table_VD, targets_N, num_buckets=2, bucket_rows=1, bucket_items=1
        )


def test_a_target_is_checked_where_no_bucket_holds_its_row() -> None:
    targets_N = torch.tensor([0, 9])
    states_ND = torch.tensor([[1.0], [1.0]])
    with pytest.raises(ValueError, match=r"^targets_N must lie in \[0, 4\)"):
        scalable_cross_entropy(
            states_ND, FLOATS[:, :1], targets_N, num_buckets=1, bucket_rows=1, bucket_items=1
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnACard:
    """Two passes over the rows and over the items."""

    @pytest.fixture
    def step(self, device: torch.device) -> Callable[[], tuple[Tensor, ...]]:
        """Loss and gradients, with buckets of the generator's."""
        num_rows, num_items = 20_000, 50_000
        states_ND = random(0, num_rows, 64, dtype=BF16).to(device).requires_grad_()
        table_VD = random(1, num_items, 64, dtype=FP32).to(device).requires_grad_()
        targets_N = torch.arange(num_rows, device=device)
        targets_N[::7] = IGNORED

        def run() -> tuple[Tensor, ...]:
            loss = scalable_cross_entropy(
                states_ND, table_VD, targets_N, num_buckets=200, bucket_rows=150, bucket_items=256
            )
            return loss.detach(), *torch.autograd.grad(loss, (states_ND, table_VD))

        return run

    @pytest.mark.parametrize("deterministic", [False, True])
    def test_the_host_waits_for_nothing(
        self, deterministic: bool, step: Callable[[], tuple[Tensor, ...]]
    ) -> None:
        torch.use_deterministic_algorithms(deterministic)
        try:
            step()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.use_deterministic_algorithms(False)

    def test_a_fixed_order_makes_equal_bits(self, step: Callable[[], tuple[Tensor, ...]]) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            runs = []
            for _ in range(3):
                torch.manual_seed(5)
                runs.append(step())
        finally:
            torch.use_deterministic_algorithms(False)
        for first, *others in zip(*runs, strict=True):
            assert all(torch.equal(other, first) for other in others)

    def test_a_captured_step_draws_anew(self, step: Callable[[], tuple[Tensor, ...]]) -> None:
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        values = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            graph.replay()
            values.append([tensor.clone() for tensor in captured])
        assert values[0][0] != values[1][0]
        assert torch.equal(values[0][0], values[2][0])
        torch.manual_seed(1)
        for ours, theirs in zip(values[0], step(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-2)
