"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018), pre-norm.

Shapes: B sequences, L positions, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.blocks import Block
from models.config import SASRecConfig
from models.item_table import ItemTable


class SASRec(nn.Module):
    """Causal transformer over item sequences; the state at a position predicts the next item."""

    def __init__(self, config: SASRecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.items = ItemTable(num_items, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_length, config.width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads, config.dropout) for _ in range(config.num_blocks)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """States of all positions.

        Args:
            ids_BL: Item ids, int64, L at most `max_length`. Sequences start at position 0; what
                stands behind their end is arbitrary and changes no state before it.

        Returns:
            states_BLD; the logit of item v at a position is their inner product with table row v.

        Raises:
            ValueError: L exceeds `max_length`.
        """
        if ids_BL.shape[1] > self.config.max_length:
            raise ValueError(
                f"sequences of {ids_BL.shape[1]} items exceed max_length {self.config.max_length}"
            )
        states_BLD = self.items(ids_BL) + self.positions[: ids_BL.shape[1]]
        states_BLD = F.dropout(states_BLD, self.config.dropout, self.training)
        for block in self.blocks:
            states_BLD = block(states_BLD)
        output: Tensor = self.norm(states_BLD)
        return output
