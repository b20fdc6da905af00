"""The item table, input embedding and output layer in one.

Shapes: V items, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class ItemTable(nn.Module):
    """One vector per item, float32; the output layer is tied to it.

    Entries start as N(0, 1/D): a scaled lookup then has unit variance, and so do the first logits.

    Attributes:
        sparse_gradient: The gradient of a lookup has the rows that were looked up only.
    """

    def __init__(self, num_items: int, width: int) -> None:
        super().__init__()
        self.sparse_gradient = False
        self.weight = nn.Parameter(torch.randn(num_items, width) / width**0.5)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of the items, times sqrt(D), shape [*ids, D]."""
        vectors = F.embedding(ids, self.weight, sparse=self.sparse_gradient)
        scaled: Tensor = vectors * self.weight.shape[1] ** 0.5
        return scaled
