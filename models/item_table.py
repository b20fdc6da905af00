"""The item table, input embedding and output layer in one.

Shapes: V items, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from kernels import RowSink, look_up


class ItemTable(nn.Module):
    """One vector per item; the output layer is tied to it.

    Entries start as N(0, scale^2 / D): with a scale of 1, a scaled lookup has unit variance, and
    so do the first logits. A smaller one ranks items that are seldom trained on less at random.

    Attributes:
        sink: Where the rows go that lookups and losses touch, in place of a gradient [V, D]; None:
            the gradient is one of the whole table.
    """

    def __init__(
        self,
        num_items: int,
        width: int,
        dtype: torch.dtype = torch.float32,
        *,
        scale: float = 1.0,
        by_rows: bool = False,
    ) -> None:
        super().__init__()
        self.sink = RowSink(num_items) if by_rows else None
        # In place: a large table is not to be there twice.
        self.weight = nn.Parameter(torch.empty(num_items, width, dtype=dtype))
        nn.init.normal_(self.weight, std=scale * width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of the items, times sqrt(D), float32 of shape [*ids, D]."""
        if self.sink is None:
            vectors = F.embedding(ids, self.weight).float()
        else:
            vectors = look_up(self.weight, ids, self.sink)
        scaled: Tensor = vectors * self.weight.shape[1] ** 0.5
        return scaled
