"""Ranking over the whole catalogue without a [rows x items] tensor.

Shapes: B rows, V items, D width.
"""

import torch
from torch import Tensor

from kernels import reference


def top_k(
    states_BD: Tensor,
    table_VD: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The k items with the highest inner products, best first, ties by the lower item id.

    The catalogue is streamed in tiles. Scores are float32; NaN and -inf never enter a list.

    Args:
        states_BD: Query states.
        table_VD: Item table.
        k: Length of the lists, at least 1.
        seen: Items to leave out: (rows, item ids), two int64 tensors of one length.

    Returns:
        ids_Bk, int64; -1 where fewer than k items remain.

    Raises:
        ValueError: k is below 1 or the widths differ.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if states_BD.ndim != 2 or table_VD.ndim != 2 or states_BD.shape[1] != table_VD.shape[1]:
        raise ValueError(
            f"states_BD {list(states_BD.shape)} and table_VD {list(table_VD.shape)} "
            "must be matrices of one width"
        )
    with torch.autocast(states_BD.device.type, enabled=False):
        return reference.top_k(states_BD, table_VD, k, seen)
