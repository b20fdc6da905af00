"""Transformer blocks.

Shapes: B sequences, L positions, D width.
"""

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Block(nn.Module):
    """Pre-norm causal self-attention, then a feed-forward layer of four times the width.

    Dropout acts on what each of the two adds to the stream, not on attention weights or inside the
    feed-forward layer: those masks cost more memory and time than all others together.
    Sequences start at position 0, so the causal mask alone keeps padding at the end out of sight.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, states_BLD: Tensor) -> Tensor:
        """States of the same shape."""
        attended_BLD = self._attend(self.attention_norm(states_BLD))
        states_BLD = states_BLD + F.dropout(attended_BLD, self.dropout, self.training)
        return states_BLD + F.dropout(self.feed_forward(states_BLD), self.dropout, self.training)

    def _attend(self, states_BLD: Tensor) -> Tensor:
        batch, length, width = states_BLD.shape
        query, key, value = (
            self.qkv(states_BLD)
            .view(batch, length, 3, self.num_heads, width // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.projection(attended.transpose(1, 2).reshape(batch, length, width))
        return output
