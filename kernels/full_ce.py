"""CCE: cross-entropy over the whole catalogue, without storing the logits.

Shapes: N rows, V items, D width.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels._checks import check_inputs, reduce


def full_cross_entropy(
    states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of each row's target against all V items.

    Args:
        states_ND: Output states.
        table_VD: Item table.
        targets_N: Item ids, int64.
        reduction: "mean" over the rows (0 where there is none), "sum" or "none".

    Returns:
        The loss, at least float32: a scalar, or [N] with reduction "none".

    Raises:
        ValueError: An argument does not fit; the message names it.

    Source: CCE (arXiv 2411.09009), without its gradient filter.
    """
    check_inputs(states_ND, table_VD, targets_N)
    with torch.autocast(states_ND.device.type, enabled=False):
        loss_N: Tensor = reference.FullCrossEntropy.apply(  # type: ignore[no-untyped-call]
            states_ND, table_VD, targets_N
        )
        return reduce(loss_N, reduction)
