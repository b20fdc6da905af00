"""The eager reference against an everyday PyTorch program that autograd differentiates."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kernels import reference
from kernels.alias_table import AliasTable
from kernels.candidates import (
    Candidates,
    Draws,
    Explicit,
    InBatch,
    LogUniform,
    Popularity,
    Uniform,
    draw,
)
from kernels.reference import Forward, Gradients, Problem, backward, forward, touched_items
from objectives.memory import measured_memory

IGNORED = -100
ALL = (True, True, True, True)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def problem_of(
    sampler: Candidates | None,
    *,
    num_rows: int = 11,
    num_items: int = 7,
    width: int = 3,
    group_size: int = 1,
    targets: Sequence[int] | None = None,
    ignored: Sequence[int] = (),
    extras: bool = False,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Problem:
    """A problem with logits of spread 2; extras are a bias and a logit scale."""
    generator = torch.Generator().manual_seed(num_items)
    targets_N = torch.randint(0, num_items, (num_rows,), generator=generator)
    targets_N[:1], targets_N[1:2] = 0, num_items - 1
    if targets is not None:
        targets_N = torch.tensor(targets)
    targets_N[list(ignored)] = IGNORED
    draws = None
    if sampler is not None:
        draws, group_size = sampler.draws(targets_N, num_items, group_size, IGNORED)
    return Problem(
        random(len(targets_N), width, seed=1, dtype=dtype),
        random(num_items, width, seed=2, dtype=dtype),
        targets_N,
        draws,
        group_size,
        bias_V=random(num_items, seed=3, dtype=dtype) if extras else None,
        logit_scale=torch.tensor(1.3, dtype=dtype) if extras else None,
        ignore_index=IGNORED,
        **options,
    )


def slots_of(problem: Problem) -> Tensor:
    """The candidates of every row."""
    num_rows, num_items = len(problem.targets_N), len(problem.table_VD)
    if problem.draws is None:
        return torch.arange(num_items).expand(num_rows, -1)
    num_groups = -(-num_rows // problem.group_size)
    ids_GK = draw(problem.draws, 0, num_groups, num_items, "cpu")
    return ids_GK.repeat_interleave(problem.group_size, dim=0)[:num_rows]


def everyday(problem: Problem) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of every row, all logits in memory."""
    states_ND, table_VD, draws = problem.states_ND, problem.table_VD, problem.draws
    num_items = len(table_VD)
    valid_N = problem.targets_N != IGNORED
    targets_N = problem.targets_N.masked_fill(~valid_N, 0)
    ids_NK = slots_of(problem)
    absent_NK = (ids_NK == -1) | (ids_NK == targets_N[:, None])
    slots_NK = torch.cat([targets_N[:, None], ids_NK.clamp(min=0)], dim=1)
    logits_NK = torch.einsum("nd,nkd->nk", states_ND, table_VD[slots_NK])
    if problem.logit_scale is not None:
        logits_NK = problem.logit_scale * logits_NK
    if problem.bias_V is not None:
        logits_NK = logits_NK + problem.bias_V[slots_NK]
    positive_N, logits_NK = logits_NK[:, 0], logits_NK[:, 1:]
    left_N = (~absent_NK).sum(1).clamp(min=1).to(problem.dtype)
    if problem.correction == "logq" and draws is not None:
        log_q_V = draws.log_q_V
        if log_q_V is None and draws.ids_GK is None:
            log_q_V = torch.full((num_items,), 1 / num_items, dtype=torch.float64).log()
        if log_q_V is not None:
            q_V = log_q_V.double().exp()
            proposal_NK = q_V[ids_NK.clamp(min=0)] / (1 - q_V[targets_N])[:, None]
            logits_NK = logits_NK - torch.log(left_N[:, None] * proposal_NK)
    if draws is not None and draws.log_weight_GK is not None:
        weights_NK = draws.log_weight_GK.repeat_interleave(problem.group_size, dim=0)
        logits_NK = logits_NK + weights_NK[: len(targets_N)]
    logits_NK = logits_NK.masked_fill(absent_NK, -torch.inf)
    all_NK = torch.cat([positive_N[:, None], logits_NK], dim=1)
    lse_N = all_NK.logsumexp(1)
    loss_N = F.cross_entropy(all_NK, torch.zeros_like(targets_N), reduction="none")
    if problem.corrected_value:
        weight_N = 1 - all_NK.softmax(1)[:, 0].detach()
        # Without a candidate the sum is empty, and its derivative not a number.
        some_N = ~absent_NK.all(1)
        negative_N = logits_NK.where(some_N[:, None], 0).logsumexp(1)
        loss_N = (weight_N * (negative_N + left_N.log() - positive_N)).where(some_N, 0)
    return loss_N.where(valid_N, 0), lse_N.where(valid_N, 0)


def leaves_of(problem: Problem) -> tuple[Problem, list[Tensor]]:
    """The problem with inputs that autograd follows; a missing bias or scale is not among them."""
    names = ("states_ND", "table_VD", "bias_V", "logit_scale")
    leaves = {
        name: getattr(problem, name).detach().clone().requires_grad_()
        for name in names
        if getattr(problem, name) is not None
    }
    return problem._replace(**leaves), list(leaves.values())


def upstream(problem: Problem, *, lse: bool) -> tuple[Tensor, Tensor]:
    """Uneven incoming gradients of the losses and of the log-sum-exps."""
    num_rows = len(problem.targets_N)
    grad_loss_N = torch.linspace(-1, 2, num_rows, dtype=problem.dtype)
    return grad_loss_N, (grad_loss_N.flip(0) + 0.3 if lse else torch.zeros_like(grad_loss_N))


def gradients(
    problem: Problem,
    *,
    lse: bool = True,
    needs: Sequence[bool] = ALL,
    touched_U: Tensor | None = None,
) -> tuple[Forward, Gradients]:
    result = forward(problem)
    grads = backward(
        problem,
        result.shift_N,
        result.target_error_N,
        *upstream(problem, lse=lse),
        needs,
        touched_U,
    )
    return result, grads


def close(ours: Tensor | None, theirs: Tensor, tolerance: float = 1e-12) -> None:
    assert ours is not None
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def assert_equals_autograd(problem: Problem, *, lse: bool = True) -> None:
    """Losses, log-sum-exps and the four gradients; there is one of bias and scale if asked for."""
    # The everyday program spells out a bias of 0 and a scale of 1: their gradients exist as well.
    spelled = problem
    if problem.bias_V is None:
        spelled = spelled._replace(bias_V=torch.zeros(len(problem.table_VD), dtype=problem.dtype))
    if problem.logit_scale is None:
        spelled = spelled._replace(logit_scale=torch.ones((), dtype=problem.dtype))
    followed, leaves = leaves_of(spelled)
    loss_N, lse_N = everyday(followed)
    grad_loss_N, grad_lse_N = upstream(problem, lse=lse)
    total = (loss_N * grad_loss_N).sum() + (lse_N * grad_lse_N).sum()
    result, grads = gradients(problem, lse=lse)
    close(result.loss_N, loss_N.detach())
    close(result.lse_N, lse_N.detach())
    for ours, theirs in zip(grads, torch.autograd.grad(total, leaves), strict=True):
        close(ours, theirs)


TABLE = AliasTable.from_weights(torch.tensor([5, 0, 1, 9, 3, 0, 30]))
SAMPLERS: dict[str, Candidates | None] = {
    "uniform": Uniform(9, seed=5),
    "log-uniform": LogUniform(9, 5, AliasTable.log_uniform(7)),
    "popularity": Popularity(9, 5, TABLE),
    "in-batch": InBatch(),
    "in-batch q": InBatch(torch.tensor([5, 1, 1, 9, 3, 1, 30])),
    "explicit": None,  # needs as many lists as there are groups
    "full": None,
}


def sampler_of(name: str, num_groups: int) -> Candidates | None:
    if name == "explicit":
        generator = torch.Generator().manual_seed(8)
        ids_GK = torch.randint(-1, 7, (num_groups, 9), generator=generator)
        ids_GK[:1, :4] = torch.tensor([-1, 3, 3, 3])
        return Explicit(ids_GK, random(num_groups, 9, seed=9, dtype=torch.float32))
    return SAMPLERS[name]


def every_problem(name: str, group_size: int, **options: Any) -> Problem:
    sampler = sampler_of(name, -(-11 // group_size))
    return problem_of(sampler, group_size=group_size, **options)


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias and scale"])
@pytest.mark.parametrize("ignored", [(), (0, 4, 5, 10)], ids=["all rows", "ignored rows"])
@pytest.mark.parametrize("correction", ["none", "logq"])
@pytest.mark.parametrize("group_size", [1, 3, 100])
@pytest.mark.parametrize("name", SAMPLERS)
def test_values_and_gradients_equal_autograd(
    name: str, group_size: int, correction: str, ignored: tuple[int, ...], extras: bool
) -> None:
    problem = every_problem(
        name, group_size, correction=correction, ignored=ignored, extras=extras
    )
    assert_equals_autograd(problem)
    assert_equals_autograd(problem, lse=False)


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias and scale"])
@pytest.mark.parametrize("group_size", [1, 3, 100])
@pytest.mark.parametrize("name", ["uniform", "log-uniform", "popularity", "in-batch q"])
def test_the_value_of_corrected_logq_has_the_same_gradient(
    name: str, group_size: int, extras: bool
) -> None:
    plain = every_problem(name, group_size, correction="logq", ignored=[2], extras=extras)
    corrected = plain._replace(corrected_value=True)
    assert_equals_autograd(corrected)
    result, grads = gradients(corrected)
    plain_result, plain_grads = gradients(plain)
    assert (result.loss_N - plain_result.loss_N).abs().max() > 0.1
    assert torch.equal(result.lse_N, plain_result.lse_N)
    for ours, theirs in zip(grads, plain_grads, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("correction", "corrected_value"), [("none", False), ("logq", False), ("logq", True)]
)
@pytest.mark.parametrize("group_size", [1, 3, 100])
@pytest.mark.parametrize("num_candidates", [1, 5])
@pytest.mark.parametrize("num_items", [2, 3])
def test_forced_collisions(
    num_items: int, num_candidates: int, group_size: int, correction: str, corrected_value: bool
) -> None:
    table = AliasTable.from_weights(torch.arange(num_items) + 1)
    for sampler in (Uniform(num_candidates, 1), Popularity(num_candidates, 1, table)):
        problem = problem_of(
            sampler,
            num_items=num_items,
            group_size=group_size,
            correction=correction,
            corrected_value=corrected_value,
        )
        hits_NK = slots_of(problem) == problem.targets_N[:, None]
        assert hits_NK.any()
        assert not hits_NK.all()
        assert num_candidates > 1 or hits_NK.all(1).any()
        assert_equals_autograd(problem)


def test_a_proposal_of_one_item_is_the_pair_loss_without_its_log_weight() -> None:
    sampler = Popularity(3, 1, AliasTable.from_weights(torch.tensor([0, 4])))
    problem = problem_of(sampler, num_items=2, targets=[0, 1, 0, 1], correction="logq")
    result, grads = gradients(problem)
    plain = problem._replace(draws=Draws(1, ids_GK=torch.ones(4, 1).long()), correction="none")
    plain_result, plain_grads = gradients(plain)
    assert result.loss_N[[1, 3]].tolist() == [0, 0]
    assert result.shift_N.isfinite().all()
    close(result.loss_N, plain_result.loss_N)
    for ours, theirs in zip(grads, plain_grads, strict=True):
        assert theirs is not None
        close(ours, theirs)


@pytest.mark.parametrize("correction", ["none", "logq"])
@pytest.mark.parametrize("corrected_value", [False, True])
@pytest.mark.parametrize("extras", [False, True])
def test_a_row_without_candidates_has_no_loss_and_no_gradient(
    extras: bool, corrected_value: bool, correction: str
) -> None:
    candidates = Explicit(torch.tensor([[0, 0, 0], [-1, -1, -1], [2, -1, 2]]))
    problem = problem_of(
        candidates,
        num_items=3,
        targets=[0, 1, 2],
        extras=extras,
        correction=correction,
        corrected_value=corrected_value,
    )
    draws = problem.draws
    assert draws is not None
    # The same lists, with a proposal that is known.
    for log_q_V in (None, torch.tensor([0.2, 0.0, 0.8]).log(), torch.tensor([1.0, 0, 0]).log()):
        result, grads = gradients(
            problem._replace(draws=draws._replace(log_q_V=log_q_V)), lse=False
        )
        for tensor in (result.loss_N, result.target_error_N, *grads):
            assert tensor is not None
            assert not tensor.any()


def test_the_target_of_an_item_that_is_never_drawn() -> None:
    problem = problem_of(SAMPLERS["popularity"], targets=[1, 5, 1], correction="logq")
    assert_equals_autograd(problem)
    assert not torch.isin(slots_of(problem), torch.tensor([1, 5])).any()


def test_repeated_candidates_count_as_often_as_they_were_drawn() -> None:
    once = Explicit(torch.tensor([[3, 1, -1, -1]]), torch.tensor([[2.0, 1.0, 0.0, 0.0]]).log())
    twice = Explicit(torch.tensor([[3, 1, 3, 0]]))
    ours, theirs = (problem_of(sampler, targets=[0]) for sampler in (twice, once))
    assert_equals_autograd(ours)
    close(forward(ours).loss_N, forward(theirs).loss_N, 1e-7)


def test_the_order_of_the_candidates_changes_nothing() -> None:
    ids_GK = torch.tensor([[6, 0, 3, 3, -1, 5, 1]])
    first, second = (
        gradients(problem_of(Explicit(ids), group_size=50, extras=True))
        for ids in (ids_GK, ids_GK.sort().values)
    )
    for ours, theirs in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        assert theirs is not None
        close(ours, theirs, 1e-13)


def assert_equals_full(problem: Problem) -> None:
    ours, grads = gradients(problem)
    full, full_grads = gradients(problem._replace(draws=None))
    close(ours.loss_N, full.loss_N)
    close(ours.lse_N, full.lse_N)
    for our_grad, their_grad in zip(grads, full_grads, strict=True):
        assert their_grad is not None
        close(our_grad, their_grad)


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias and scale"])
@pytest.mark.parametrize("collisions", [0, 1, 6])
def test_enumerating_the_other_items_gives_the_full_softmax(collisions: int, extras: bool) -> None:
    targets = [0, 6, 3, 3, 5]
    others_GK = torch.tensor(
        [[v for v in range(7) if v != target] + [target] * collisions for target in targets]
    )
    problem = problem_of(Explicit(others_GK), targets=targets, extras=extras, correction="logq")
    assert_equals_full(problem)
    assert problem.draws is not None
    uniform = torch.full((7,), 1 / 7, dtype=torch.float64).log()
    assert_equals_full(problem._replace(draws=problem.draws._replace(log_q_V=uniform)))


@pytest.mark.parametrize("extras", [False, True], ids=["plain", "bias and scale"])
@pytest.mark.parametrize("group_size", [1, 4, 100])
def test_multiplicities_in_proportion_to_q_give_the_full_softmax(
    group_size: int, extras: bool
) -> None:
    multiplicity_V = torch.tensor([1, 5, 2, 1, 7, 3, 1])
    ids_K = torch.arange(7).repeat_interleave(multiplicity_V)
    problem = problem_of(
        Explicit(ids_K.expand(-(-11 // group_size), -1)),
        group_size=group_size,
        extras=extras,
        correction="logq",
    )
    assert problem.draws is not None
    log_q_V = (multiplicity_V.double() / multiplicity_V.sum()).log()
    assert_equals_full(problem._replace(draws=problem.draws._replace(log_q_V=log_q_V)))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4))[:-1])
def test_what_needs_no_gradient_gets_none(name: str, needs: Sequence[bool]) -> None:
    problem = every_problem(name, 3, correction="logq", extras=True)
    _, every = gradients(problem)
    _, some = gradients(problem, needs=needs)
    for needed, ours, theirs in zip(needs, some, every, strict=True):
        assert (ours is not None) == needed
        if ours is not None and theirs is not None:
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("ignored", [(), (1, 2)])
@pytest.mark.parametrize("group_size", [1, 3, 100])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_of_touched_rows_is_theirs_of_the_dense_one(
    name: str, group_size: int, ignored: tuple[int, ...]
) -> None:
    sampler = sampler_of(name, -(-4 // group_size))
    if isinstance(sampler, Uniform | Popularity):
        sampler = dataclasses.replace(sampler, num_candidates=1)
    # Row 1 is the only one of target 6, and row 2 of target 2.
    problem = problem_of(
        sampler,
        targets=[3, 6, 2, 3],
        group_size=group_size,
        ignored=ignored,
        extras=True,
        correction="logq",
    )
    touched_U = touched_items(problem)
    expected = {*slots_of(problem).flatten().tolist(), *problem.targets_N.tolist()}
    assert touched_U.tolist() == sorted(expected - {-1, IGNORED})
    _, dense = gradients(problem)
    _, rows = gradients(problem, touched_U=touched_U)
    assert dense.table_VD is not None
    assert rows.table_VD is not None
    assert torch.equal(rows.table_VD, dense.table_VD[touched_U])
    others_V = torch.ones(7, dtype=torch.bool)
    others_V[touched_U] = False
    assert not dense.table_VD[others_V].any()
    for ours, theirs in zip(rows[2:], dense[2:], strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("num_rows", [0, 3])
def test_where_nothing_is_touched_nothing_gets_a_gradient(num_rows: int) -> None:
    problem = problem_of(InBatch(), num_rows=num_rows, ignored=range(num_rows), extras=True)
    touched_U = touched_items(problem)
    assert touched_U.tolist() == []
    result, grads = gradients(problem, touched_U=touched_U)
    for tensor in (*result, *grads):
        assert tensor is not None
        assert not tensor.any()
    assert grads.table_VD is not None
    assert grads.table_VD.shape == (0, 3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_rows_have_no_gradient(name: str) -> None:
    result, grads = gradients(problem_of(sampler_of(name, 0), num_rows=0, extras=True))
    assert all(value.shape == (0,) for value in result)
    assert [None if grad is None else tuple(grad.shape) for grad in grads] == [
        (0, 3),
        (7, 3),
        (7,),
        (),
    ]
    assert not any(grad.any() for grad in grads if grad is not None)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_an_ignored_row_holds_reaches_nothing(name: str) -> None:
    problem = every_problem(name, 3, ignored=[0, 7], extras=True, correction="logq")
    # With a state of 0, the exponential of the bias alone would overflow.
    problem = problem._replace(bias_V=torch.full((7,), 1000.0, dtype=torch.float64))
    result, grads = gradients(problem)
    poisoned = [
        tensor.index_fill(0, torch.tensor([0, 7]), torch.nan)
        for tensor in (problem.states_ND, *upstream(problem, lse=True))
    ]
    problem = problem._replace(states_ND=poisoned[0])
    poisoned_result = forward(problem)
    poisoned_grads = backward(
        problem, result.shift_N, result.target_error_N, poisoned[1], poisoned[2], ALL
    )
    for ours, theirs in zip((*poisoned_result, *poisoned_grads), (*result, *grads), strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()
    for tensor in (*result, grads.states_ND):
        assert tensor is not None
        assert not tensor[[0, 7]].any()


@pytest.mark.parametrize("other", [3, 5])
def test_an_item_may_be_the_target_that_is_ignored(other: int) -> None:
    # Item 5 is among the candidates, item 3 is not.
    lists = Explicit(torch.tensor([[5, 1, 1], [6, 5, 0]]))
    usual = problem_of(lists, targets=[0, 1, 1, 6], group_size=2, ignored=[1, 2], extras=True)
    item = usual._replace(
        targets_N=usual.targets_N.where(usual.targets_N != IGNORED, other), ignore_index=other
    )
    for ours, theirs in zip(
        itertools.chain(*gradients(item)), itertools.chain(*gradients(usual)), strict=True
    ):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    assert touched_items(item).tolist() == touched_items(usual).tolist() == [0, 1, 5, 6]


@pytest.mark.parametrize("tile_elements", [1, 17, 64])
@pytest.mark.parametrize("group_size", [1, 4, 100])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_size_of_the_tiles_changes_nothing(
    name: str, group_size: int, tile_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = every_problem(name, group_size, ignored=[3], extras=True, correction="logq")
    whole = gradients(problem)
    touched_U = touched_items(problem)
    monkeypatch.setattr(reference, "TILE_ELEMENTS", tile_elements)
    for ours, theirs in zip(
        itertools.chain(*gradients(problem)), itertools.chain(*whole), strict=True
    ):
        assert theirs is not None
        close(ours, theirs, 1e-13)
    assert torch.equal(touched_items(problem), touched_U)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    half = every_problem(name, 3, extras=True, correction="logq", dtype=dtype)
    single = half._replace(
        states_ND=half.states_ND.float(),
        table_VD=half.table_VD.float(),
        bias_V=None if half.bias_V is None else half.bias_V.float(),
        logit_scale=None if half.logit_scale is None else half.logit_scale.float(),
    )
    result, grads = gradients(half)
    single_result, single_grads = gradients(single)
    for ours, theirs in zip(result, single_result, strict=True):
        assert torch.equal(ours, theirs)
    for ours_, theirs_, dtype_ in zip(
        grads, single_grads, (dtype, torch.float32, dtype, dtype), strict=True
    ):
        assert ours_ is not None
        assert theirs_ is not None
        assert torch.equal(ours_, theirs_.to(dtype_))


def test_a_likely_target_keeps_its_small_error() -> None:
    problem = problem_of(None, num_items=2, targets=[0], dtype=torch.float32)._replace(
        states_ND=torch.tensor([[30.0]]), table_VD=torch.tensor([[1.0], [0.0]])
    )
    result = forward(problem)
    torch.testing.assert_close(result.loss_N, torch.tensor([-30.0]).exp(), atol=0, rtol=1e-5)
    torch.testing.assert_close(-result.target_error_N, result.loss_N, atol=0, rtol=1e-5)


def test_a_second_backward_gives_the_same() -> None:
    problem = every_problem("uniform", 3, extras=True, correction="logq")
    result = forward(problem)
    first, second = (
        backward(problem, result.shift_N, result.target_error_N, *upstream(problem, lse=True), ALL)
        for _ in range(2)
    )
    for ours, theirs in zip(first, second, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_fixed_order_of_addition_changes_no_gradient(deterministic: bool) -> None:
    assert_equals_autograd(every_problem("uniform", 3, deterministic=deterministic))


@pytest.mark.parametrize("name", ["full", "in-batch"])
def test_no_tile_holds_the_items_of_all_candidates(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 8192)

    def peak_of_a_pass(num_items: int) -> int:
        problem = problem_of(
            InBatch() if name == "in-batch" else None,
            num_rows=num_items if name == "in-batch" else 8,
            num_items=num_items,
            width=64,
            dtype=torch.bfloat16,
        )
        with measured_memory(torch.device("cpu"), 1 << 40) as memory:
            gradients(problem, needs=(False, False, True, True))
        return memory.peak

    few, many = 256, 2048
    growth = (peak_of_a_pass(many) - peak_of_a_pass(few)) / (many - few)
    # In-batch, a row more comes with a state of 128 bytes. The rest is ids, outputs, incoming
    # gradients and the gradient of the bias; in float32 an item would take 256 bytes.
    assert growth <= (128 if name == "in-batch" else 0) + 64
