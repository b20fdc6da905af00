"""The transformer over item sequences that all models are.

Shapes: T tokens of packed sequences, D width.
"""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.blocks import Block, LayerNorm, drop, rotations
from models.config import ModelConfig
from models.item_table import ItemTable
from models.packing import Packing


class Transformer(nn.Module):
    """Blocks over looked up items and their positions.

    Attributes:
        causal: A token sees those before it, not those behind it.
        items: The table that items are looked up in.
        positions: Vectors of the positions, where these are learned.
    """

    causal: ClassVar[bool]

    def __init__(
        self,
        config: ModelConfig,
        num_items: int,
        table_dtype: torch.dtype = torch.float32,
        *,
        by_rows: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        new_table = partial(
            ItemTable,
            num_items,
            config.width,
            table_dtype,
            scale=config.table_scale,
            by_rows=by_rows,
        )
        self.items = new_table()
        self.positions = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(config.max_length, config.width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(config, causal=self.causal) for _ in range(config.num_blocks)
        )
        # Behind post-norm blocks the states are normalised already.
        self.norm = LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self._outputs = new_table() if config.output_table == "separate" else None

    @property
    def outputs(self) -> ItemTable:
        """The table that states are compared with: that of the inputs, unless it is separate."""
        return self.items if self._outputs is None else self._outputs

    @property
    def tables(self) -> list[ItemTable]:
        """The tables of items, each once."""
        return [self.items] if self._outputs is None else [self.items, self._outputs]

    def look_up(self, ids_T: Tensor) -> Tensor:
        """Vectors of the items [T, D]."""
        vectors_TD: Tensor = self.items(ids_T)
        return vectors_TD

    def forward(self, ids_T: Tensor, packing: Packing) -> Tensor:
        """States of all tokens.

        Args:
            ids_T: Item ids, int64, as `look_up` takes them.
            packing: Where their sequences lie, each at most `max_length` long.

        Returns:
            states_TD; the logit of item v behind a token is their inner product with row v of the
            table `outputs`.

        Raises:
            ValueError: A sequence exceeds `max_length`.
        """
        if packing.longest > self.config.max_length:
            raise ValueError(
                f"sequences of {packing.longest} items exceed max_length {self.config.max_length}"
            )
        states_TD = self.look_up(ids_T)
        rotation = None
        if self.positions is None:
            head_width = self.config.width // self.config.num_heads
            rotation = rotations(packing.position_T, head_width)
        else:
            states_TD = states_TD + F.embedding(packing.position_T, self.positions)
        states_TD = drop(states_TD, self.config.dropout, training=self.training)
        for block in self.blocks:
            states_TD = block(states_TD, packing, rotation)
        output: Tensor = self.norm(states_TD)
        return output
