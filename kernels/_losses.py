"""What the losses do between their arguments and the operators.

Shapes: N rows, V items, D width.
"""

import torch
from torch import Tensor

from kernels._backend import choose_backend
from kernels._checks import check_count, check_extras, check_inputs, check_reduction
from kernels._ops import row_losses
from kernels.candidates import Candidates
from kernels.reference import Problem
from kernels.row_gradient import RowSink


def checked_problem(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    bias_V: Tensor | None,
    logit_scale: float | Tensor | None,
    ignore_index: int,
    deterministic: bool | None,
) -> Problem:
    """The cross-entropy over the whole catalogue, of arguments that fit each other.

    Raises:
        ValueError: They do not; the message names the argument.
    """
    check_inputs(states_ND, table_VD, targets_N)
    dtype = torch.promote_types(states_ND.dtype, table_VD.dtype)
    if logit_scale is not None and not isinstance(logit_scale, Tensor):
        logit_scale = states_ND.new_full(
            (), logit_scale, dtype=torch.promote_types(dtype, torch.float32)
        )
    check_extras(table_VD, bias_V, logit_scale)
    device = states_ND.device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return Problem(
        states_ND,
        table_VD,
        targets_N,
        bias_V=bias_V,
        logit_scale=logit_scale,
        ignore_index=ignore_index,
        deterministic=deterministic,
        operand_dtype=dtype,
    )


def with_candidates(problem: Problem, candidates: Candidates, group_size: int) -> Problem:
    """The problem with candidates in place of the catalogue.

    Raises:
        ValueError: They do not fit; the message names the argument.
    """
    num_items = problem.table_VD.shape[0]
    if num_items < 2:
        raise ValueError("table_VD must have at least 2 items: one item has no negatives")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, not {group_size}")
    draws, group_size = candidates.draws(
        problem.targets_N, num_items, group_size, problem.ignore_index
    )
    check_count("candidates", "candidates of a group", draws.num_candidates)
    return problem._replace(draws=draws, group_size=group_size)


def sampled_loss(
    problem: Problem, reduction: str, table_gradient: str | RowSink
) -> tuple[Tensor, Tensor]:
    """`reduced_loss` of sampled candidates, whose table may have a gradient of touched rows.

    Raises:
        ValueError: There is no such gradient or reduction.
    """
    if table_gradient not in ("dense", "touched") and not isinstance(table_gradient, RowSink):
        raise ValueError(
            f"table_gradient must be 'dense', 'touched' or a RowSink, not {table_gradient!r}"
        )
    compute = reduced_loss
    if table_gradient != "dense" and torch.compiler.is_compiling():
        compute = torch.compiler.disable(compute, reason="touched rows have to be counted first")  # type: ignore[no-untyped-call]
    return compute(problem, reduction, table_gradient=table_gradient)


def reduced_loss(
    problem: Problem,
    reduction: str,
    *,
    table_gradient: str | RowSink = "dense",
    filter_eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss, and the log-sum-exp of every row.

    The mean is that of the rows that are not ignored, 0 where there is none.
    """
    check_reduction(reduction)
    backend = choose_backend(problem.states_ND, problem.table_VD)
    loss_N, lse_N = row_losses(problem, backend, table_gradient, filter_eps)
    if reduction == "none":
        return loss_N, lse_N
    loss = loss_N.sum()
    if reduction == "mean":
        num_rows = (problem.targets_N != problem.ignore_index).sum()
        loss = loss / num_rows.clamp(min=1)
    return loss, lse_N
