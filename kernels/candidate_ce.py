"""CCE-: cross-entropy of each row against the candidates of its group.

Shapes: N rows, G groups, K candidates, V items, D width.
"""

from typing import Literal, overload

from torch import Tensor

from kernels._losses import checked_problem, sampled_loss, with_candidates
from kernels.candidates import Candidates
from kernels.reference import Problem
from kernels.row_gradient import RowSink


@overload
def sampled_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    candidates: Candidates,
    *,
    group_size: int = 1,
    bias_V: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    correction: str = "logq",
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lse: Literal[False] = False,
    table_gradient: str | RowSink = "dense",
    deterministic: bool | None = None,
) -> Tensor: ...


@overload
def sampled_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    candidates: Candidates,
    *,
    group_size: int = 1,
    bias_V: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    correction: str = "logq",
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lse: Literal[True],
    table_gradient: str | RowSink = "dense",
    deterministic: bool | None = None,
) -> tuple[Tensor, Tensor]: ...


def sampled_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    candidates: Candidates,
    *,
    group_size: int = 1,
    bias_V: Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    correction: str = "logq",
    ignore_index: int = -100,
    reduction: str = "mean",
    return_lse: bool = False,
    table_gradient: str | RowSink = "dense",
    deterministic: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Sampled softmax with the logQ correction (CCE-).

    Row n belongs to group n // group_size and shares that group's K candidates j, drawn from q.
    With r of them equal to the row's target t, q'(j) = q(j) / (1 - q(t)) the proposal without the
    target and z_v = logit_scale * <state, item v> + bias_v::

        lse  = logsumexp(z_t, {z_j - log((K - r) q'(j)) : j != t})
        loss = lse - z_t

    For a uniform proposal q'(j) = 1 / (V - 1). A row whose candidates are all its target has loss
    0 and no gradient. Rows should be in random order where group_size > 1: neighbours of one
    sequence would share their negatives.

    Args:
        states_ND: Output states: float16, bfloat16, float32 or float64, in any layout.
        table_VD: Item table, V at least 2.
        targets_N: Item ids, int64.
        candidates: Source of the K candidates of every group: `Uniform`, `LogUniform`,
            `Popularity`, `InBatch` or `Explicit`.
        group_size: R, rows that share their candidates: 1 (as published) to N or more (one pool).
        bias_V: Added to the logits.
        logit_scale: Factor of the inner products, a number or a 0-dimensional tensor (1 /
            temperature).
        correction: "logq", as above; "none", the term in q' left out; or "corrected-logq", which
            has the gradient of "logq" and reports p_n (logsumexp_j(z_j - log q'(j)) - z_t), where
            p_n is the probability of all j != t. The q of `Explicit` lists, and of `InBatch`
            without probabilities, is unknown: there "logq" is "none".
        ignore_index: A row with this target has loss 0 and no gradient.
        reduction: "mean" over the rows that are not ignored (0 where there is none), "sum" or
            "none".
        return_lse: Return the log-sum-exp of every row too; both are differentiable, once.
        table_gradient: "dense", or "touched": the gradient of the table is a coalesced sparse COO
            tensor of the rows of all candidates and targets, for `torch.optim.SparseAdam` and
            the like. Its time and memory do not grow with V. It waits for the device once, to
            learn its size, and `torch.compile` breaks its graph around the loss (or raises, with
            fullgraph=True). A `RowSink` is given the same rows, the table's `.grad` stays as it
            is, and nothing waits.
        deterministic: Gradients that are equal bit by bit in every run; None: as
            `torch.use_deterministic_algorithms` has it.

    Returns:
        The loss, at least float32: a scalar, or [N] with reduction "none". With return_lse, the
        pair of it and lse_N, which is 0 in an ignored row.

    Raises:
        ValueError: An argument does not fit; the message names it. On a GPU a target outside
            [0, V) has loss NaN and no gradient, a candidate outside it is no candidate, and the
            next call of a loss raises the error.

    Source: CCE- (arXiv 2509.09682), with the defects of the released kernel put right: a collision
    is no candidate, and the proposal is renormalised without the target. Corrected logQ: arXiv
    2507.09331.
    """
    problem = checked_problem(
        states_ND, table_VD, targets_N, bias_V, logit_scale, ignore_index, deterministic
    )
    problem = _corrected(with_candidates(problem, candidates, group_size), correction)
    loss, lse_N = sampled_loss(problem, reduction, table_gradient)
    return (loss, lse_N) if return_lse else loss


def _corrected(problem: Problem, correction: str) -> Problem:
    """The problem with a correction of its candidates' logits."""
    if correction not in ("logq", "corrected-logq", "none"):
        raise ValueError(
            f"correction must be 'logq', 'corrected-logq' or 'none', not {correction!r}"
        )
    draws, is_corrected = problem.draws, correction == "corrected-logq"
    assert draws is not None
    if is_corrected and draws.ids_GK is not None and draws.log_q_V is None:
        raise ValueError(
            "correction must be 'logq' or 'none' for lists that are given without probabilities, "
            f"not {correction!r}"
        )
    return problem._replace(
        correction="none" if correction == "none" else "logq", corrected_value=is_corrected
    )
