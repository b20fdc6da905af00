"""CCE-: cross-entropy of each row against the candidates of its group.

Shapes: N rows, K candidates, V items, D width.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels._checks import check_inputs, reduce
from kernels.candidates import Uniform


def sampled_cross_entropy(
    states_ND: Tensor,
    table_VD: Tensor,
    targets_N: Tensor,
    candidates: Uniform,
    *,
    group_size: int = 1,
    reduction: str = "mean",
) -> Tensor:
    """Sampled softmax with the uniform logQ correction (CCE-).

    Row n belongs to group n // group_size and shares that group's K candidates j. With r of them
    equal to the row's target t::

        loss = logsumexp(s_t, {s_j + log(V-1) - log(K-r) : j != t}) - s_t,    s_v = <state, item v>

    A row whose candidates are all its target has loss 0 and no gradient. Rows should be in random
    order where group_size > 1: neighbours of one sequence would share their negatives.

    Args:
        states_ND: Output states.
        table_VD: Item table, V at least 2.
        targets_N: Item ids, int64.
        candidates: Source of the K candidates of every group.
        group_size: R, rows that share their candidates: 1 (as published) to N or more (one pool).
        reduction: "mean" over the rows (0 where there is none), "sum" or "none".

    Returns:
        The loss, at least float32: a scalar, or [N] with reduction "none".

    Raises:
        ValueError: An argument does not fit; the message names it.

    Source: CCE- (arXiv 2509.09682), with the defects of the released kernel put right: a collision
    is no candidate, and the proposal is renormalised without the target.
    """
    check_inputs(states_ND, table_VD, targets_N)
    if table_VD.shape[0] < 2:
        raise ValueError("table_VD must have at least 2 items: one item has no negatives")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1, not {group_size}")
    with torch.autocast(states_ND.device.type, enabled=False):
        loss_N: Tensor = reference.SampledCrossEntropy.apply(  # type: ignore[no-untyped-call]
            states_ND, table_VD, targets_N, candidates, group_size
        )
        return reduce(loss_N, reduction)
