"""How a problem is cut into kernels, and what the passes leave for each other.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width, U touched items,
W = ceil(V / 32).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.launch import LaunchConfig, cdiv, launch_config
from kernels.reference import Problem

UNCLAIMED = 0x7FFF_FFFF
"""The owner of an item that nobody drew."""

Weights = tuple[Tensor | None, Tensor | None]
"""Upstream gradients of the rows' losses and log-sum-exps."""


class Saved(NamedTuple):
    """What the forward pass leaves for the backward pass; empty tensors where it is not used.

    Attributes:
        loss_N: Loss of every row.
        lse_N: Log-sum-exp of every row's logits.
        shift_N: What a candidate's logit is compared with, in base 2.
        target_error_N: Softmax of the target minus 1.
        lists_GK: Drawn candidates, int32, those of `num_first_G` in front.
        num_first_G: Candidates of each group that no other group or slot has in front, int32.
        touched_W: Set of the items in the fronts, int32.
        mixtures_ND: Mixture of each row's candidates by their softmax, in the states' type.
    """

    loss_N: Tensor
    lse_N: Tensor
    shift_N: Tensor
    target_error_N: Tensor
    lists_GK: Tensor
    num_first_G: Tensor
    touched_W: Tensor
    mixtures_ND: Tensor


class Plan(NamedTuple):
    """How a problem is cut."""

    num_rows: int
    num_items: int
    width: int
    num_candidates: int
    group_size: int
    num_groups: int
    by_row: bool
    """Every row has candidates of its own."""
    drawn_lists: bool
    """The candidates are drawn and written out, once for each group."""
    is_pool: bool
    """A group is too large for a program to hold: it holds candidates instead."""
    claims: bool
    """The lists are ordered so that most rows of the table gradient can be stored, not added."""
    config: LaunchConfig

    @property
    def blocks_of_width(self) -> int:
        """Blocks that the width is cut into."""
        return cdiv(self.width, self.config.block_d)


def plan(problem: Problem, table_gradient: str) -> Plan:
    """Chooses the kernels for a problem, from shapes alone."""
    num_rows, width = problem.states_ND.shape
    num_items = problem.table_VD.shape[0]
    draws = problem.draws
    num_candidates = num_items if draws is None else draws.num_candidates
    group_size = max(1, num_rows if draws is None else min(problem.group_size, num_rows))
    num_groups = cdiv(num_rows, group_size)
    by_row = (
        draws is not None and group_size == 1 and draws.log_weight_GK is None and draws.met is None
    )
    drawn_lists = draws is not None and draws.ids_GK is None and not by_row
    config = launch_config(problem, by_row)
    is_pool = draws is None or group_size > config.group.block_r
    num_drawn = num_groups * num_candidates
    return Plan(
        num_rows=num_rows,
        num_items=num_items,
        width=width,
        num_candidates=num_candidates,
        group_size=group_size,
        num_groups=num_groups,
        by_row=by_row,
        drawn_lists=drawn_lists,
        is_pool=is_pool,
        claims=(
            drawn_lists
            and table_gradient == "dense"
            and not problem.deterministic
            and not is_pool
            # Beyond, most draws meet an item that has been drawn before.
            and num_drawn <= min(4 * num_items, UNCLAIMED)
        ),
        config=config,
    )


def saved_like(problem: Problem, table_gradient: str, with_mixtures: bool) -> Saved:
    """Uninitialised outputs of `forward`: shapes alone, whatever the device."""
    cut = plan(problem, table_gradient)
    empty = problem.states_ND.new_empty
    loss_N, lse_N, shift_N, target_error_N = (
        empty(cut.num_rows, dtype=torch.float32) for _ in range(4)
    )
    lists = (cut.num_groups, cut.num_candidates) if cut.drawn_lists else (0, 0)
    return Saved(
        loss_N=loss_N,
        lse_N=lse_N,
        shift_N=shift_N,
        target_error_N=target_error_N,
        lists_GK=empty(lists, dtype=torch.int32),
        num_first_G=empty(cut.num_groups if cut.claims else 0, dtype=torch.int32),
        touched_W=empty(cdiv(cut.num_items, 32) if cut.claims else 0, dtype=torch.int32),
        mixtures_ND=empty(cut.num_rows if with_mixtures else 0, cut.width),
    )


class Touched(NamedTuple):
    """The items that have a gradient, where rows of others are left out.

    Attributes:
        set_W: A bit an item, int32.
        rank_W: Items of the set before each word, int32.
        items_U: Their ids in ascending order, int64, U = min(V, G * K + N) or fewer.
        num_touched: How many of them there are, int32 [1]; what follows in `items_U` is undefined.
    """

    set_W: Tensor
    rank_W: Tensor
    items_U: Tensor
    num_touched: Tensor


class TableGradients(NamedTuple):
    """Gradients of the table and the bias; empty tensors where they are not used.

    Attributes:
        rows: float32 [V, D] or, of touched items only, [U, D]; over the catalogue in the table's
            type.
        bias_V: Gradient of the bias, float32.
    """

    rows: Tensor
    bias_V: Tensor


class Backward(NamedTuple):
    """What every part of the backward pass works on.

    Attributes:
        lists_GK: The lists as int32; None for the whole catalogue, and where rows draw again.
    """

    problem: Problem
    cut: Plan
    saved: Saved
    weights: Weights
    lists_GK: Tensor | None
    touched: Touched | None

    @property
    def places(self) -> tuple[Tensor | None, Tensor | None]:
        """What the kernels find an item's row by."""
        return (None, None) if self.touched is None else self.touched[:2]


def touched_like(problem: Problem) -> Touched:
    """Uninitialised outputs of `touched_items`: shapes alone."""
    cut = plan(problem, "touched")
    empty = problem.states_ND.new_empty
    words = cdiv(cut.num_items, 32)
    draws, most_targets = problem.draws, cut.num_rows
    if draws is not None and draws.most_targets is not None:
        most_targets = min(most_targets, draws.most_targets)
    most = min(cut.num_items, cut.num_groups * cut.num_candidates + most_targets)
    return Touched(
        set_W=empty(words, dtype=torch.int32),
        rank_W=empty(words, dtype=torch.int32),
        items_U=empty(most, dtype=torch.int64),
        num_touched=empty(1, dtype=torch.int32),
    )


def gradients_like(
    problem: Problem, table_gradient: str, touched: Touched | None
) -> TableGradients:
    """Uninitialised outputs of `table_gradients`: shapes alone."""
    cut = plan(problem, table_gradient)
    empty = problem.states_ND.new_empty
    height = 0
    if touched is not None:
        height = touched.items_U.shape[0]
    elif table_gradient == "dense":
        height = cut.num_items
    dtype = problem.table_VD.dtype if problem.draws is None else torch.float32
    return TableGradients(
        rows=empty(height, cut.width, dtype=dtype),
        bias_V=empty(cut.num_items if problem.bias_V is not None else 0, dtype=torch.float32),
    )


def lists_of(problem: Problem, lists_GK: Tensor) -> Tensor | None:
    """Given lists as int32, or those that were drawn; None where neither is written out."""
    if problem.draws is not None and problem.draws.ids_GK is not None:
        return problem.draws.ids_GK.to(torch.int32).contiguous()
    return lists_GK if lists_GK.numel() else None


def log_q_of(problem: Problem) -> Tensor | None:
    """The log-probabilities that the correction takes from the logits."""
    if problem.draws is None or problem.correction == "none":
        return None
    return problem.draws.log_q_V


def corrects(problem: Problem) -> bool:
    """Whether the logQ correction has a part that all candidates of a row share."""
    draws = problem.draws
    return (
        draws is not None
        and problem.correction == "logq"
        and (draws.ids_GK is None or draws.log_q_V is not None)
    )


def log_weight_of(problem: Problem) -> Tensor | None:
    """What is added to the logits of given lists."""
    return None if problem.draws is None else problem.draws.log_weight_GK


def met_of(problem: Problem) -> tuple[tuple[Tensor | None, Tensor | None], tuple[int, int]]:
    """Numbers of rows and items in earlier rounds; how many there are, and how far they reach."""
    if problem.draws is None or problem.draws.met is None:
        return (None, None), (0, 0)
    rows_QN, items_QV, reach = problem.draws.met
    return (rows_QN, items_QV), (len(rows_QN), reach)


def is_given(problem: Problem) -> bool:
    """Whether the lists come from outside, where a slot may be empty."""
    return problem.draws is not None and problem.draws.ids_GK is not None


def strides(problem: Problem) -> tuple[int, int]:
    """Strides of the rows of the states and of the table."""
    return problem.states_ND.stride(0), problem.table_VD.stride(0)


def weight_strides(loss_weight_N: Tensor | None, lse_weight_N: Tensor | None) -> tuple[int, int]:
    """Strides of the upstream gradients; that of a mean is one number, expanded."""
    return tuple(  # type: ignore[return-value]
        0 if weight_N is None else weight_N.stride(0) for weight_N in (loss_weight_N, lse_weight_N)
    )


def is_uniform(
    problem: Problem, loss_weight_N: Tensor | None, lse_weight_N: Tensor | None
) -> bool:
    """Whether all rows have one weight, as under a mean or a sum, that can wait until the end.

    In float16 a softmax is scaled by its shift meanwhile, which a sigmoid cannot be.
    """
    is_one = loss_weight_N is not None and loss_weight_N.stride(0) == 0 and lse_weight_N is None
    is_scaled = problem.positive_weight is None or problem.operand_dtype != torch.float16
    return is_one and is_scaled
