"""The Triton backend against float64 truth, by the relative rule.

Its error is at most that of an everyday PyTorch program in the same type plus a tolerance, element
by element. Without a GPU the kernels run in Triton's interpreter, at small shapes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from kernels import (
    AliasTable,
    Explicit,
    InBatch,
    LogUniform,
    Met,
    Mixed,
    Popularity,
    Uniform,
    full_cross_entropy,
    sampled_binary_cross_entropy,
    sampled_cross_entropy,
)
from kernels.candidates import Candidates, Draws, draw
from models.config import ModelConfig
from models.packing import Packing

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("triton_backend")

IGNORED = -100
BF16, FP16 = torch.bfloat16, torch.float16
TOLERANCES = {
    torch.float32: (1e-5, 5e-4),
    torch.float16: (1e-3, 1e-3),
    torch.bfloat16: (1e-2, 1e-2),
}
"""Of values and of gradients."""


class Inputs(NamedTuple):
    """What a loss is computed of."""

    states_ND: Tensor
    table_VD: Tensor
    bias_V: Tensor | None
    logit_scale: Tensor | None
    targets_N: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        """States, table, and bias and scale where there are some."""
        return [tensor for tensor in self[:4] if tensor is not None]

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Copies in another type that have no history."""
        bias_V, scale = (
            None if tensor is None else tensor.detach().to(dtype) for tensor in self[2:4]
        )
        states_ND, table_VD = (tensor.detach().to(dtype) for tensor in self[:2])
        return Inputs(states_ND, table_VD, bias_V, scale, self.targets_N)


@dataclass(frozen=True)
class Case:
    """One problem; sampler "full" is the whole catalogue."""

    sampler: str = "uniform"
    group_size: int = 4
    num_rows: int = 11
    num_items: int = 13
    num_candidates: int = 7
    width: int = 20
    dtype: torch.dtype = torch.float32
    correction: str = "logq"
    positive_weight: float | None = None
    """Of binary cross-entropies."""
    extras: bool = False
    """With bias and logit scale."""
    ignored: bool = False
    """With rows that are ignored."""
    reduction: str = "none"
    lse: bool = True
    """With a gradient of the log-sum-exps."""
    table_gradient: str = "dense"
    deterministic: bool = False
    needs: tuple[bool, ...] = (True, True, True, True)
    seed: int = 7
    seed_offset: int = 0
    """Added to the seed, by the device."""
    autocast: bool = False
    """Float32 inputs, under autocast to the type."""

    def candidates(self, targets_N: Tensor) -> Candidates:
        generator = torch.Generator().manual_seed(1)
        weights_V = torch.rand(self.num_items, generator=generator).square() + 1e-3
        device = targets_N.device
        offset = torch.tensor([self.seed_offset], device=device) if self.seed_offset else None
        match self.sampler:
            case "uniform":
                return Uniform(self.num_candidates, self.seed, offset)
            case "log-uniform":
                table = AliasTable.log_uniform(self.num_items, device)
                return LogUniform(self.num_candidates, self.seed, table, offset)
            case "popularity":
                table = AliasTable.from_weights(weights_V).to(device)
                return Popularity(self.num_candidates, self.seed, table, offset)
            case "in-batch":
                return InBatch()
            case "in-batch q":
                return InBatch(weights_V.to(device))
            case "mixed":
                in_batch = InBatch(weights_V.to(device))
                return Mixed(self.num_candidates, self.seed, in_batch, offset)
        num_groups = -(-len(targets_N) // self.group_size)
        shape = num_groups, self.num_candidates
        ids_GK = torch.randint(-1, self.num_items, shape, generator=generator).to(device)
        log_weight_GK = torch.randn(shape, generator=generator).to(device)
        met = None
        if self.sampler == "met lists":
            rows_QN = torch.randint(9, (2, len(targets_N)), generator=generator)
            items_QV = torch.randint(9, (2, self.num_items), generator=generator)
            met = Met(rows_QN.int().to(device), items_QV.int().to(device), reach=1)
        return Explicit(ids_GK, log_weight_GK if self.sampler == "weighted lists" else None, met)

    def inputs(self, device: torch.device) -> Inputs:
        """Logits have a spread of 2, and some targets are the first and the last item."""
        generator = torch.Generator().manual_seed(self.num_rows)

        def random(*shape: int) -> Tensor:
            values = torch.randn(shape, dtype=torch.float64, generator=generator)
            return values.to(self.dtype).to(device)

        targets_N = torch.randint(0, self.num_items, (self.num_rows,), generator=generator)
        targets_N[:1], targets_N[1:2] = 0, self.num_items - 1
        if self.ignored:
            targets_N[2::3] = IGNORED
        return Inputs(
            random(self.num_rows, self.width),
            random(self.num_items, self.width) * (2 / self.width**0.5),
            random(self.num_items) if self.extras else None,
            torch.tensor(1.5, dtype=torch.float32, device=device) if self.extras else None,
            targets_N.to(device),
        )

    def loss(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """Ours."""
        options: dict[str, Any] = {
            "bias_V": given.bias_V,
            "logit_scale": given.logit_scale,
            "reduction": self.reduction,
            "deterministic": self.deterministic,
        }
        data = given.states_ND, given.table_VD, given.targets_N
        if self.positive_weight is not None:
            loss = sampled_binary_cross_entropy(
                *data,
                self.candidates(given.targets_N),
                **options,
                group_size=self.group_size,
                positive_weight=self.positive_weight,
                table_gradient=self.table_gradient,
            )
            return loss, loss.new_zeros(self.num_rows)
        if self.sampler == "full":
            return full_cross_entropy(*data, **options, return_lse=True)
        return sampled_cross_entropy(
            *data,
            self.candidates(given.targets_N),
            **options,
            group_size=self.group_size,
            correction=self.correction,
            table_gradient=self.table_gradient,
            return_lse=True,
        )

    def everyday_loss(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """An everyday program in the type of the inputs, all logits in memory."""
        valid_N = given.targets_N != IGNORED
        targets_N = given.targets_N.masked_fill(~valid_N, 0)
        states_ND, table_VD = given.states_ND, given.table_VD
        dtype, num_items = states_ND.dtype, len(table_VD)
        scale = 1 if given.logit_scale is None else given.logit_scale.to(dtype)
        bias_V = table_VD.new_zeros(num_items) if given.bias_V is None else given.bias_V
        positive_N = scale * (states_ND * table_VD[targets_N]).sum(1) + bias_V[targets_N]
        if self.sampler == "full":
            logits_NK = scale * (states_ND @ table_VD.T) + bias_V
            lse_N = logits_NK.logsumexp(1)
            loss_N = lse_N - positive_N
        else:
            draws, group_size = self.candidates(given.targets_N).draws(
                given.targets_N, num_items, self.group_size, IGNORED
            )
            num_groups = -(-len(states_ND) // group_size)
            ids_GK = draw(draws, 0, num_groups, num_items, states_ND.device)
            group_N = torch.arange(len(states_ND), device=states_ND.device) // group_size
            ids_NK = ids_GK[group_N]
            absent_NK = (ids_NK == -1) | (ids_NK == targets_N[:, None])
            ids_NK = ids_NK.clamp(min=0)
            if draws.met is not None:
                rows_QN, items_QV, reach = draws.met
                apart_QNK = (rows_QN[:, :, None] - items_QV[:, ids_NK]).abs()
                absent_NK = absent_NK | (apart_QNK <= reach).any(0)
            logits_NK = scale * torch.einsum("nd,nkd->nk", states_ND, table_VD[ids_NK])
            logits_NK = logits_NK + bias_V[ids_NK]
            left_N = (~absent_NK).sum(1).clamp(min=1).double()
            log_q_V = draws.log_q_V
            if log_q_V is None and draws.ids_GK is None:
                log_q_V = torch.full((num_items,), 1 / num_items, device=states_ND.device).log()
            constant_N = torch.zeros_like(positive_N)
            is_corrected = self.correction != "none" and self.positive_weight is None
            if is_corrected and log_q_V is not None:
                q_V = log_q_V.double().exp()
                logits_NK = logits_NK - log_q_V[ids_NK].to(dtype)
                constant_N = ((1 - q_V[targets_N]) / left_N).log().to(dtype)
            if draws.log_weight_GK is not None:
                logits_NK = logits_NK + draws.log_weight_GK[group_N].to(dtype)
            logits_NK = (logits_NK + constant_N[:, None]).masked_fill(absent_NK, -torch.inf)
            lse_N = torch.cat([positive_N[:, None], logits_NK], dim=1).logsumexp(1)
            loss_N = lse_N - positive_N
            if self.positive_weight is not None:
                lse_N = torch.zeros_like(lse_N)
                loss_N = self.positive_weight * softplus(-positive_N) + softplus(logits_NK).sum(1)
            if self.correction == "corrected-logq":
                some_N = ~absent_NK.all(1)
                negative_N = logits_NK.where(some_N[:, None], 0).logsumexp(1)
                value_N = negative_N + left_N.log().to(dtype) - positive_N
                # The value of the one, the gradient of the other.
                change_N = (1 - (positive_N - lse_N).exp()) * value_N - loss_N
                loss_N = loss_N + change_N.where(some_N, 0).detach()
        loss_N, lse_N = loss_N.where(valid_N, 0), lse_N.where(valid_N, 0)
        match self.reduction:
            case "mean":
                return loss_N.sum() / valid_N.sum().clamp(min=1), lse_N
            case "sum":
                return loss_N.sum(), lse_N
        return loss_N, lse_N


Loss = Callable[[Inputs], tuple[Tensor, Tensor]]
Values = list[Tensor | None]


def values(case: Case, loss: Loss, given: Inputs) -> Values:
    """Loss, log-sum-exps, and the gradients of their sum under uneven weights."""
    leaves = []
    for tensor, needed in zip(given[:4], case.needs, strict=True):
        if tensor is not None:
            leaves.append(tensor.requires_grad_(needed))
    value, lse_N = loss(given)
    sample = torch.linspace(-1, 2, max(case.num_rows, 1), dtype=torch.float64)
    weights_N = sample.to(value.device, value.dtype)[: case.num_rows]
    total = (value * weights_N).sum() if value.ndim else value * 3
    if case.lse:
        total = total + (lse_N * weights_N.flip(0)).sum()
    grads = iter(torch.autograd.grad(total, [leaf for leaf in leaves if leaf.requires_grad]))
    return [value, lse_N, *(next(grads) if leaf.requires_grad else None for leaf in leaves)]


def assert_within(
    ours: Values, peers: Values, truths: Values, dtype: torch.dtype, rounding: float = 0.0
) -> None:
    """The relative rule; rounding: How far a value may be off beside it."""
    forward, backward = TOLERANCES[dtype]
    if dtype == BF16 and not torch.cuda.is_available():
        # The interpreter rounds to bfloat16 towards zero.
        forward, backward = 2 * forward, 2 * backward
    for number, (our, peer, truth) in enumerate(zip(ours, peers, truths, strict=True)):
        assert (our is None) == (truth is None)
        if our is not None and peer is not None and truth is not None:
            assert our.shape == truth.shape
            our = our.detach().to_dense().double()
            truth = truth.to_dense()
            size = truth.abs()
            if number > 1:
                # Elements that are small because large terms cancel have the error of the terms,
                # which are those of one row of a matrix.
                mean = truth.square().mean(-1, keepdim=True) if truth.ndim else truth.square()
                size = size + mean.nan_to_num().sqrt()
            tolerance = forward if number < 2 else backward
            allowed = (peer.double() - truth).abs() + tolerance * (1 + size)
            if number == 0:
                allowed = allowed + rounding
            excess = ((our - truth).abs() - allowed).nan_to_num(nan=torch.inf)
            assert (excess <= 0).all(), f"output {number} is off by {excess.max():.2g} too much"


@contextmanager
def eager() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARETOCUT_KERNELS", "eager")
        yield


def truth_of(case: Case, given: Inputs) -> Values:
    with eager():
        return values(case, case.loss, given.to(torch.float64))


def check(case: Case, device: torch.device) -> None:
    given = case.inputs(device)
    with torch.autocast(device.type, case.dtype, enabled=case.autocast):
        ours = values(case, case.loss, given.to(torch.float32 if case.autocast else case.dtype))
    peers = values(case, case.everyday_loss, given.to(case.dtype))
    # A sum of K softplus, each of which is the logarithm of a number near 1.
    rounding = 0.0 if case.positive_weight is None else case.num_candidates * 2**-23
    assert_within(ours, peers, truth_of(case, given), case.dtype, rounding)


ROWS_BY_GROUP_SIZE = {1: 4, 3: 5, 1000: 19}
"""With more rows than a program holds in the last, which is one pool."""
GROUP_SIZES = tuple(ROWS_BY_GROUP_SIZE)
SAMPLERS = (
    "uniform",
    "log-uniform",
    "popularity",
    "in-batch",
    "in-batch q",
    "lists",
    "weighted lists",
    "met lists",
    "mixed",
    "full",
)
WITHOUT_GROUPS = ("in-batch", "in-batch q", "mixed", "full")


def cases(*variants: dict[str, Any]) -> list[Any]:
    """Each variant in every group size, where its source of candidates has groups."""
    found = [
        Case(**{"group_size": group_size, "num_rows": num_rows, **variant})
        for variant in variants
        for group_size, num_rows in ROWS_BY_GROUP_SIZE.items()
        if group_size == 1000 or variant.get("sampler") not in WITHOUT_GROUPS
    ]
    return [
        pytest.param(case, id=f"{number}-{case.sampler}-{case.group_size}")
        for number, case in enumerate(found)
    ]


def every_case(*variants: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases(*variants))


BINARY: list[dict[str, Any]] = [
    *(
        {"sampler": sampler, "extras": True, "ignored": True}
        for sampler in ("uniform", "popularity", "in-batch", "weighted lists", "met lists")
    ),
    {"width": 300, "num_candidates": 70},
    {"dtype": BF16, "extras": True},
    {"dtype": FP16, "extras": True, "ignored": True},
    {"dtype": FP16, "reduction": "mean"},
    {"dtype": BF16, "autocast": True, "reduction": "mean"},
    {"table_gradient": "touched", "num_items": 100, "ignored": True},
    {"deterministic": True, "extras": True, "reduction": "sum"},
    {"num_items": 2},
]
"""Cases of binary cross-entropies."""


@every_case(
    {},
    *({"sampler": sampler, "extras": True, "ignored": True} for sampler in SAMPLERS),
    {"num_items": 50, "num_candidates": 40, "ignored": True},
    {"width": 300, "extras": True},
    {"width": 1024, "num_candidates": 3},
    {"dtype": BF16, "extras": True},
    {"dtype": FP16, "extras": True, "ignored": True},
    {"dtype": BF16, "sampler": "weighted lists"},
    {"dtype": BF16, "autocast": True, "extras": True},
    {"dtype": BF16, "autocast": True, "sampler": "full", "width": 300},
    {"dtype": BF16, "sampler": "full", "extras": True, "width": 300, "lse": False},
    {"dtype": FP16, "sampler": "full", "ignored": True},
    {"reduction": "mean", "lse": False, "ignored": True},
    {"reduction": "sum", "lse": False, "sampler": "popularity", "dtype": FP16},
    {"reduction": "mean", "lse": False, "sampler": "full", "dtype": FP16},
    {"reduction": "mean", "sampler": "in-batch q", "extras": True},
    {"correction": "none", "sampler": "popularity"},
    {"correction": "corrected-logq", "ignored": True},
    {"correction": "corrected-logq", "sampler": "popularity", "extras": True},
    {"table_gradient": "touched", "num_items": 100, "extras": True},
    {"table_gradient": "touched", "extras": True, "ignored": True, "deterministic": True},
    {"table_gradient": "touched", "sampler": "weighted lists", "num_items": 100},
    {"table_gradient": "touched", "sampler": "in-batch", "num_items": 100},
    {"deterministic": True, "extras": True, "ignored": True},
    {"deterministic": True, "sampler": "lists", "dtype": BF16, "reduction": "sum"},
    {"deterministic": True, "sampler": "full", "extras": True},
    *({"positive_weight": 0.3, "lse": False, **variant} for variant in BINARY),
    {"sampler": "met lists", "num_candidates": 70, "deterministic": True},
    {"sampler": "met lists", "dtype": BF16, "table_gradient": "touched", "reduction": "mean"},
    {"num_candidates": 1},
    {"num_candidates": 70},
    {"num_rows": 1},
    {"seed": (1 << 63) + 12345, "sampler": "log-uniform"},
    {"seed": (1 << 64) - 1},
)
def test_errors_are_within_those_of_pytorch(case: Case, device: torch.device) -> None:
    check(case, device)


@pytest.mark.parametrize(
    ("sampler", "dtype", "reduction"),
    [
        ("uniform", BF16, "sum"),
        ("uniform", FP16, "none"),
        ("lists", BF16, "none"),
        ("lists", FP16, "sum"),
    ],
)
def test_a_pool_of_half_precision(
    sampler: str, dtype: torch.dtype, reduction: str, device: torch.device
) -> None:
    case = Case(sampler, 70, 70, 40, 3, dtype=dtype, extras=True, reduction=reduction, lse=False)
    check(case, device)


@every_case(
    {"num_items": 2},
    {"num_items": 2, "sampler": "popularity", "correction": "corrected-logq"},
    {"num_items": 2, "sampler": "in-batch q"},
    {"num_items": 2, "sampler": "full"},
    {"num_items": 3, "correction": "corrected-logq", "deterministic": True},
    {"num_items": 3, "sampler": "popularity", "correction": "none"},
    {"num_items": 3, "sampler": "log-uniform", "table_gradient": "touched"},
)
def test_forced_collisions(case: Case, device: torch.device) -> None:
    check(case, device)


NEEDS = [needs for needs in itertools.product([False, True], repeat=4) if any(needs)]


@every_case(*({"sampler": sampler, "extras": True} for sampler in ("uniform", "lists", "full")))
def test_any_input_may_need_no_gradient(case: Case, device: torch.device) -> None:
    for needs in NEEDS[::4]:
        check(dataclasses.replace(case, needs=needs, num_rows=5), device)


DROPPED: dict[str, Callable[[Case, Inputs], tuple[Case, Inputs]]] = {
    "bias": lambda case, given: (case, given._replace(bias_V=None)),
    "scale": lambda case, given: (case, given._replace(logit_scale=None)),
    "correction": lambda case, given: (
        dataclasses.replace(case, correction="none"),
        given,
    ),
    "ignored rows": lambda case, given: (
        case,
        given._replace(targets_N=given.targets_N.clamp(min=0)),
    ),
    "state": lambda case, given: (case, given._replace(states_ND=given.states_ND * 0.9)),
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("term", DROPPED)
@pytest.mark.parametrize("sampler", ["uniform", "popularity", "full"])
def test_the_rule_finds_a_term_that_is_dropped(
    sampler: str, term: str, dtype: torch.dtype, device: torch.device
) -> None:
    if sampler == "full" and term == "correction":
        pytest.skip("there is none")
    case = Case(sampler, dtype=dtype, extras=True, ignored=True, num_items=31)
    given = case.inputs(device)
    truths = truth_of(case, given)[:2]
    peers = values(case, case.everyday_loss, given.to(dtype))[:2]
    wrong = truth_of(*DROPPED[term](case, given))[:2]
    with pytest.raises(AssertionError, match="output 0 is off"):
        assert_within(wrong, peers, truths, dtype)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_a_row_whose_candidates_are_all_its_target_has_no_loss_and_no_gradient(
    group_size: int, deterministic: bool, device: torch.device
) -> None:
    given = Case(num_rows=4, num_items=3).inputs(device)
    targets_N = torch.tensor([0, 0, 2, 2], device=device)
    if group_size == 4:
        targets_N = torch.full_like(targets_N, 2)
    ids_GK = targets_N[::group_size, None].repeat(1, 3)
    ids_GK[:, 1] = -1
    leaves = states_ND, table_VD = given.states_ND, given.table_VD
    for leaf in leaves:
        leaf.requires_grad_()
    loss_N, lse_N = sampled_cross_entropy(
        states_ND,
        table_VD,
        targets_N,
        Explicit(ids_GK),
        group_size=group_size,
        deterministic=deterministic,
        reduction="none",
        return_lse=True,
    )
    assert not loss_N.any()
    torch.testing.assert_close(lse_N, (states_ND * table_VD[targets_N]).sum(1))
    for grad in torch.autograd.grad(loss_N.sum(), leaves):
        assert not grad.any()


def strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between the elements."""
    wide = tensor.new_zeros([2 * size for size in tensor.shape])
    view = wide[tuple(slice(None, None, 2) for _ in tensor.shape)]
    view.copy_(tensor)
    return view


def transposed(tensor: Tensor) -> Tensor:
    """The same values, the first dimension running fastest."""
    return tensor.T.contiguous().T


def row_strided(tensor: Tensor) -> Tensor:
    """The same values with gaps between the rows of a matrix."""
    return torch.cat([tensor, tensor], -1)[..., : tensor.shape[-1]]


@every_case(*({"sampler": sampler, "extras": True} for sampler in ("uniform", "full")))
def test_inputs_need_not_be_contiguous(case: Case, device: torch.device) -> None:
    given = case.inputs(device)
    expected = values(case, case.loss, given)
    assert given.bias_V is not None
    for layout in (strided, transposed, row_strided):
        laid = Inputs(
            layout(given.states_ND.detach()),
            layout(given.table_VD.detach()),
            strided(given.bias_V.detach()),
            given.logit_scale,
            strided(given.targets_N),
        )
        for ours, theirs in zip(values(case, case.loss, laid), expected, strict=True):
            assert ours is not None
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@every_case({"sampler": "uniform"}, {"sampler": "full"})
def test_one_state_may_be_expanded_to_all_rows(case: Case, device: torch.device) -> None:
    given = case.inputs(device)
    row, num_rows = given.states_ND[:1], case.num_rows
    ours, theirs = (
        values(case, case.loss, given._replace(states_ND=states_ND))
        for states_ND in (row.expand(num_rows, -1), row.repeat(num_rows, 1))
    )
    for our, their in zip(ours, theirs, strict=True):
        assert our is not None
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("table_gradient", ["dense", "touched"])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_rows_have_no_loss_and_no_gradient(
    sampler: str, deterministic: bool, table_gradient: str, device: torch.device
) -> None:
    for group_size, reduction in itertools.product((1, 3), ("mean", "sum", "none")):
        case = Case(
            sampler,
            group_size,
            num_rows=0,
            extras=True,
            reduction=reduction,
            deterministic=deterministic,
            table_gradient=table_gradient,
        )
        value, lse_N, *grads = values(case, case.loss, case.inputs(device))
        assert value is not None
        assert value.shape == ((0,) if reduction == "none" else ())
        assert not value.any()
        assert lse_N is not None
        assert lse_N.shape == (0,)
        assert not any(grad.to_dense().any() for grad in grads if grad is not None)


@every_case(
    *({"sampler": sampler, "reduction": "mean"} for sampler in ("uniform", "in-batch", "full")),
    *({"sampler": sampler, "table_gradient": "touched"} for sampler in ("uniform", "in-batch")),
)
def test_where_all_rows_are_ignored_nothing_gets_a_gradient(
    case: Case, device: torch.device
) -> None:
    case = dataclasses.replace(case, extras=True)
    given = case.inputs(device)
    given.targets_N.fill_(IGNORED)
    for value in values(case, case.loss, given):
        assert value is not None
        assert not value.to_dense().any()


@every_case(*({"sampler": sampler, "extras": True} for sampler in ("uniform", "full")))
def test_what_an_ignored_row_holds_reaches_nothing(case: Case, device: torch.device) -> None:
    case = dataclasses.replace(case, ignored=True)
    given = case.inputs(device)
    expected = values(case, case.loss, given)
    states_ND = given.states_ND.detach().clone()
    states_ND[given.targets_N == IGNORED] = 1e4
    poisoned = values(case, case.loss, given._replace(states_ND=states_ND))
    for ours, theirs in zip(poisoned, expected, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs)


@every_case({}, {"sampler": "lists"}, {"sampler": "full"}, {"table_gradient": "touched"})
def test_a_deterministic_gradient_repeats_bit_by_bit(case: Case, device: torch.device) -> None:
    usual = dataclasses.replace(case, extras=True)
    if device.type == "cuda":
        # Enough for an order of additions that changes.
        usual = dataclasses.replace(usual, num_rows=500, num_items=50, num_candidates=200)
    case = dataclasses.replace(usual, deterministic=True)
    given = case.inputs(device)
    first, second, free = (
        values(each, each.loss, given.to(case.dtype)) for each in (case, case, usual)
    )
    for ours, again, theirs in zip(first, second, free, strict=True):
        assert ours is not None
        assert again is not None
        assert theirs is not None
        assert torch.equal(ours.to_dense(), again.to_dense())
        torch.testing.assert_close(ours.to_dense(), theirs.to_dense(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("sampler", "deterministic"), [("uniform", False), ("popularity", True)])
@every_case({}, {"table_gradient": "touched"})
def test_an_offset_on_the_device_is_added_to_the_seed(
    case: Case, sampler: str, deterministic: bool, device: torch.device
) -> None:
    case = dataclasses.replace(case, sampler=sampler, deterministic=deterministic)
    given = case.inputs(device)
    apart = dataclasses.replace(case, seed=case.seed - 10, seed_offset=10)
    apart = dataclasses.replace(apart, seed=apart.seed % (1 << 64))
    expected, found = (values(each, each.loss, given) for each in (case, apart))
    for theirs, ours in zip(expected, found, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours.to_dense(), theirs.to_dense())


@every_case({}, {"sampler": "popularity"}, {"sampler": "in-batch"}, {"sampler": "lists"})
def test_touched_rows_are_those_of_candidates_and_targets(
    case: Case, device: torch.device
) -> None:
    case = dataclasses.replace(
        case, num_items=100, num_candidates=3, ignored=True, table_gradient="touched"
    )
    given = case.inputs(device)
    grad = values(case, case.loss, given)[3]
    assert grad is not None
    assert grad.is_coalesced()
    draws, size = case.candidates(given.targets_N).draws(
        given.targets_N, 100, case.group_size, IGNORED
    )
    ids_GK = draw(draws, 0, -(-case.num_rows // size), 100, device)
    touched = {*ids_GK.flatten().tolist(), *given.targets_N.tolist()} - {-1, IGNORED}
    assert grad.indices()[0].tolist() == sorted(touched)


@pytest.mark.parametrize(
    ("sampler", "group_size", "num_candidates"),
    [
        ("uniform", 3, 13),
        ("uniform", 3, 270),
        ("uniform", 1000, 270),
        ("weighted lists", 3, 270),
        ("weighted lists", 1000, 13),
        ("full", 1000, 270),
    ],
)
def test_few_rows_share_their_candidates_among_programs(
    sampler: str,
    group_size: int,
    num_candidates: int,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kernels import launch

    def launch_config(*arguments: Any) -> launch.LaunchConfig:
        return launch.launch_config(*arguments)._replace(programs=1 << 20)

    monkeypatch.setattr("kernels.triton_plan.launch_config", launch_config)
    case = Case(sampler, group_size, 5, 270, num_candidates, extras=True, ignored=True)
    check(case, device)


@pytest.mark.parametrize(
    ("sampler", "deterministic", "table_gradient"),
    [
        ("uniform", False, "dense"),
        ("uniform", True, "touched"),
        ("popularity", True, "dense"),
        ("popularity", False, "touched"),
        ("lists", False, "dense"),
        ("lists", True, "touched"),
    ],
)
def test_rows_are_sorted_in_several_passes_and_items_summed_in_several_segments(
    sampler: str,
    deterministic: bool,
    table_gradient: str,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kernels import triton_by_item

    monkeypatch.setattr(triton_by_item, "_SEGMENT", 8)
    monkeypatch.setattr(triton_by_item, "_LEAST_ENTRIES", 30)
    case = Case(
        sampler,
        1,
        num_items=5,
        extras=True,
        ignored=True,
        table_gradient=table_gradient,
        deterministic=deterministic,
    )
    check(case, device)


@pytest.mark.parametrize("group_size", [3, 1000])
@pytest.mark.parametrize("table_gradient", ["dense", "touched"])
def test_a_deterministic_gradient_may_be_summed_in_several_passes(
    table_gradient: str, group_size: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import triton_table

    monkeypatch.setattr(triton_table, "_PARTIAL_BYTES", 2 * 4 * 7 * 20)
    case = Case(
        "uniform",
        group_size,
        extras=True,
        ignored=True,
        table_gradient=table_gradient,
        deterministic=True,
    )
    check(case, device)


def filtered(
    given: Inputs, filter_eps: float | None, reduction: str = "none"
) -> tuple[Tensor, ...]:
    states_ND, table_VD = (
        leaf.detach().requires_grad_() for leaf in (given.states_ND, given.table_VD)
    )
    loss = full_cross_entropy(
        states_ND, table_VD, given.targets_N, reduction=reduction, filter_eps=filter_eps
    )
    weights = torch.linspace(1, 2, loss.numel(), device=loss.device).view(loss.shape)
    return loss.detach(), *torch.autograd.grad(loss, (states_ND, table_VD), weights)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_filter_leaves_out_tiles_of_small_errors_only(
    reduction: str, device: torch.device
) -> None:
    given = Case("full", num_items=200).inputs(device)
    exact = filtered(given, None, reduction)
    for ours, theirs in zip(filtered(given, 0.0, reduction), exact, strict=True):
        torch.testing.assert_close(ours, theirs)
    filter_eps = 1e-3
    loss, *grads = filtered(given, filter_eps, reduction)
    assert torch.equal(loss, exact[0])
    num_rows, num_items = len(given.states_ND), len(given.table_VD)
    sizes = given.table_VD.abs().max() * num_items, given.states_ND.abs().max() * num_rows
    for ours, theirs, size in zip(grads, exact[1:], sizes, strict=True):
        assert ((ours - theirs).abs() <= 2 * filter_eps * size + 1e-5).all()


def test_a_filter_above_a_flat_softmax_leaves_the_targets(device: torch.device) -> None:
    given = Case("full", num_items=200).inputs(device)
    given = given._replace(states_ND=given.states_ND * 1e-3)
    _, states_ND, _ = filtered(given, 0.5)
    weights_N1 = torch.linspace(1, 2, len(given.states_ND), device=device)[:, None]
    torch.testing.assert_close(states_ND, -weights_N1 * given.table_VD[given.targets_N])


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize(
    ("seed", "first_group", "num_groups", "num_candidates", "num_items"),
    [
        (0, 0, 2, 5, 2),
        ((1 << 64) - 1, 3, 3, 4, 10_000_000),
        (0x0123_4567_89AB_CDEF, (1 << 31) - 3, 2, 7, (1 << 31) - 1),
        (1 << 63, 5, 2, 1500, 997),
        (42 << 32 | 17, 1000, 1, 33, 997),
    ],
)
def test_candidates_are_those_of_the_reference_bit_by_bit(
    seed: int,
    first_group: int,
    num_groups: int,
    num_candidates: int,
    num_items: int,
    alias: bool,
    device: torch.device,
) -> None:
    from kernels import triton_lists

    if alias and num_items > 1000:
        num_items = 1000
    alias_V2 = AliasTable.log_uniform(num_items, device).alias_V2 if alias else None
    lists_GK = torch.empty(num_groups, num_candidates, dtype=torch.int32, device=device)
    triton_lists.write_lists[(num_groups,)](
        lists_GK,
        None,
        None,
        alias_V2,
        seed - (1 << 64) if seed >> 63 else seed,
        None,
        first_group,
        num_items,
        num_candidates,
        BLOCK=1024,
    )
    draws = Draws(num_candidates, seed, alias_V2=alias_V2)
    assert torch.equal(lists_GK.long(), draw(draws, first_group, num_groups, num_items, device))


@pytest.mark.parametrize("loss", ["sampled-1", "sampled-4", "full"])
def test_a_model_learns_as_with_the_eager_backend(loss: str, device: torch.device) -> None:
    num_items, num_steps = 12, 3
    torch.manual_seed(0)
    ids_BL = torch.randint(0, num_items, (3, 4), device=device)
    curves = []
    for name in ("triton", "eager"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PARETOCUT_KERNELS", name)
            torch.manual_seed(1)
            config = ModelConfig(max_length=3, width=16, num_blocks=1, dropout=0.0)
            model = config.build(num_items).to(device)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.04)
            curve = []
            for step in range(num_steps):
                states_ND = model(ids_BL[:, :-1].flatten(), Packing.of([3] * 3, device))
                data = states_ND, model.items.weight, ids_BL[:, 1:].flatten()
                if loss == "full":
                    value = full_cross_entropy(*data)
                else:
                    value = sampled_cross_entropy(
                        *data, Uniform(9, seed=step), group_size=int(loss[-1])
                    )
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                curve.append(value.item())
            curves.append(curve)
    ours, theirs = curves
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours[-1] < 0.9 * ours[0]


GRID_GROUP_SIZES = (1, 16, 32, 64, 128, 1000)
GRID_SIZES = tuple(itertools.product((1, 123, 507), (2, 997), (1, 300, 1200)))
"""N, V and K."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("group_size", GRID_GROUP_SIZES)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_grid(dtype: torch.dtype, group_size: int, sampler: str, device: torch.device) -> None:
    if group_size > 1 and sampler in WITHOUT_GROUPS:
        pytest.skip("it has no groups")
    # What the kernels are compiled for is one thing in a test, and another in the next.
    place = list(TOLERANCES).index(dtype) + GRID_GROUP_SIZES.index(group_size)
    place += SAMPLERS.index(sampler)
    width, extras = (50, 100, 192, 512)[place % 4], place // 4 % 2 == 0
    needs = itertools.cycle(NEEDS if extras else [(True, True), (True, False), (False, True)])
    forms = ("dense",) if sampler == "full" else ("dense", "touched")
    sizes = itertools.islice(itertools.cycle(GRID_SIZES), place, None, 5)
    options = itertools.product(("mean", "sum", "none"), forms, (False, True), range(2))
    for number, (reduction, form, deterministic, _) in enumerate(options):
        num_rows, num_items, num_candidates = next(sizes)
        case = Case(
            sampler,
            group_size,
            num_rows,
            num_items,
            num_candidates,
            width,
            dtype,
            extras=extras,
            ignored=number % 3 == 0,
            reduction=reduction,
            lse=number % 4 == 0,
            table_gradient=form,
            deterministic=deterministic,
            positive_weight=0.5 if number % 4 == 3 and sampler != "full" else None,
            needs=(*next(needs), False, False)[:4],
            autocast=number % 2 == 1 and dtype != torch.float32,
        )
        try:
            check(case, device)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error
