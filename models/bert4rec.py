"""BERT4Rec: sequential recommendation with bidirectional encoders (Sun et al., CIKM 2019).

Shapes: T tokens of packed sequences, D width.
"""

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.transformer import Transformer

MASK = -1
"""The id of a masked item."""


class BERT4Rec(Transformer):
    """Bidirectional transformer; the state of a masked token predicts its item.

    The mask has a vector of its own, so that the table has rows of items only.
    """

    causal = False

    def __init__(
        self,
        config: ModelConfig,
        num_items: int,
        table_dtype: torch.dtype = torch.float32,
        *,
        by_rows: bool = False,
    ) -> None:
        super().__init__(config, num_items, table_dtype, by_rows=by_rows)
        self.mask_D = nn.Parameter(torch.randn(config.width))

    def look_up(self, ids_T: Tensor) -> Tensor:
        """Vectors of the items, of the mask where an id is `MASK` [T, D]."""
        # In the mask's place an item of the batch is looked up, so that no other row is touched.
        vectors_TD = super().look_up(ids_T.where(ids_T != MASK, ids_T.max().clamp(min=0)))
        return torch.where((ids_T == MASK)[:, None], self.mask_D, vectors_TD)
