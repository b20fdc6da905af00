"""A `Problem` as the flat arguments of an operator, and back."""

from collections.abc import Sequence
from typing import Any

from kernels.candidates import Draws, Met
from kernels.reference import Problem

SCHEMA = (
    "Tensor states_ND, Tensor table_VD, Tensor targets_N, Tensor? bias_V, Tensor? logit_scale, "
    "Tensor? ids_GK, Tensor? alias_V2, Tensor? log_q_V, Tensor? log_weight_GK, "
    "Tensor? seed_offset, Tensor? row_numbers_QN, Tensor? item_numbers_QV, "
    "SymInt? num_candidates, SymInt seed, SymInt reach, SymInt? most_targets, "
    "SymInt group_size, str correction, bool corrected_value, float? positive_weight, "
    "SymInt ignore_index, bool deterministic, ScalarType operand_dtype"
)
NUM_TENSORS = 12
NUM_ARGUMENTS = 23
LEAVES = (0, 1, 3, 4)
"""Arguments that may need a gradient: states, table, bias and logit scale."""
Flat = tuple[Any, ...]


def flatten(problem: Problem) -> Flat:
    """The arguments; the seed is signed, for an operator has no other integers."""
    draws = problem.draws
    lists: Flat = (None,) * 7
    num_candidates, seed, reach, most_targets = None, 0, 0, None
    if draws is not None:
        *numbers, reach = (None, None, 0) if draws.met is None else draws.met
        lists = (
            draws.ids_GK,
            draws.alias_V2,
            draws.log_q_V,
            draws.log_weight_GK,
            draws.seed_offset,
            *numbers,
        )
        num_candidates, seed, most_targets = draws.num_candidates, draws.seed, draws.most_targets
        # The same bits as a signed integer.
        if seed >= 1 << 63:
            seed -= 1 << 64
    return (
        problem.states_ND,
        problem.table_VD,
        problem.targets_N,
        problem.bias_V,
        problem.logit_scale,
        *lists,
        num_candidates,
        seed,
        reach,
        most_targets,
        problem.group_size,
        problem.correction,
        problem.corrected_value,
        problem.positive_weight,
        problem.ignore_index,
        problem.deterministic,
        problem.operand_dtype,
    )


def problem_of(flat: Flat) -> Problem:
    """The problem of flat arguments; its seed is signed, which both backends understand."""
    states_ND, table_VD, targets_N, bias_V, logit_scale = flat[:5]
    *lists, row_numbers_QN, item_numbers_QV, num_candidates, seed, reach, most_targets = flat[5:16]
    draws = met = None
    if row_numbers_QN is not None:
        met = Met(row_numbers_QN, item_numbers_QV, reach)
    if num_candidates is not None:
        draws = Draws(num_candidates, seed, *lists)._replace(met=met, most_targets=most_targets)
    group_size, correction, corrected_value, positive_weight, *options = flat[16:]
    return Problem(
        states_ND,
        table_VD,
        targets_N,
        draws,
        group_size,
        correction,
        corrected_value,
        positive_weight,
        bias_V,
        logit_scale,
        *options,
    )


def split(arguments: Sequence[Any]) -> tuple[Flat, Flat]:
    """A problem's arguments, and those that follow."""
    return tuple(arguments[:NUM_ARGUMENTS]), tuple(arguments[NUM_ARGUMENTS:])
