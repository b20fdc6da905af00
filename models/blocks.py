"""Transformer blocks over packed sequences.

Shapes: T tokens, D width, H heads, C width of a head, B sequences, L tokens of the longest.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from kernels import layer_norm
from kernels.gpu import on_gpu
from models.config import ModelConfig
from models.packing import Packing

Layer = Callable[[Tensor], Tensor]

_ROTARY_BASE = 10_000.0
_WIDEST_HEAD = 256
"""Of flash attention."""


def is_flash_width(head_width: int) -> bool:
    """Whether flash attention knows heads of this width."""
    return head_width % 8 == 0 and head_width <= _WIDEST_HEAD


def attend(qkv_T3HC: Tensor, packing: Packing, *, causal: bool) -> Tensor:
    """Attention of every token to its own sequence, [T, H, C].

    Flash attention over packed sequences on a GPU; elsewhere, and for types or heads that it does
    not know, its exact twin over padded ones.
    """
    half = qkv_T3HC.dtype in (torch.bfloat16, torch.float16)
    if on_gpu(qkv_T3HC.device) and half and is_flash_width(qkv_T3HC.shape[-1]):
        # Imported late: where there is no GPU, torch need not have it.
        from torch.nn.attention.varlen import varlen_attn

        query_THC, key_THC, value_THC = qkv_T3HC.unbind(1)
        attended = varlen_attn(
            query_THC,
            key_THC,
            value_THC,
            packing.offsets_B1,
            packing.offsets_B1,
            packing.longest,
            packing.longest,
            window_size=(-1, 0 if causal else -1),
        )
        assert isinstance(attended, Tensor)
        return attended
    return _attend_padded(qkv_T3HC, packing, causal=causal)


def _attend_padded(qkv_T3HC: Tensor, packing: Packing, *, causal: bool) -> Tensor:
    """Sequences start at position 0, so a causal mask alone hides the padding behind them."""
    query, key, value = packing.pad(qkv_T3HC).permute(2, 0, 3, 1, 4)
    mask_B11L = None if causal else packing.is_token_BL[:, None, None]
    attended_BHLC = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_B11L, is_causal=causal
    )
    return packing.unpad(attended_BHLC.transpose(1, 2))


def rotations(position_T: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn pairs of a head's columns by the position, [T, 1, 1, C / 2].

    Source: RoFormer (arXiv 2104.09864), section 3.2.2.
    """
    pair = torch.arange(head_width // 2, device=position_T.device, dtype=torch.float32)
    angle = position_T[:, None] * _ROTARY_BASE ** (-2 * pair / head_width)
    return angle.cos()[:, None, None], angle.sin()[:, None, None]


def rotate(qkv_T3HC: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """The same with the column pairs (c, c + C / 2) of queries and keys turned."""
    cosine, sine = rotation
    left, right = qkv_T3HC[:, :2].float().chunk(2, dim=-1)
    turned = torch.cat([left * cosine - right * sine, left * sine + right * cosine], dim=-1)
    return torch.cat([turned.to(qkv_T3HC.dtype), qkv_T3HC[:, 2:]], dim=1)


def drop(states_TD: Tensor, rate: float, *, training: bool) -> Tensor:
    """Dropout in the form that torch chooses for a GPU, its mask a byte for each element."""
    if not training or rate == 0:
        return states_TD
    return torch.native_dropout(states_TD, rate, True)[0]


class _BiasGradient(torch.autograd.Function):
    """Hands a bias its gradient, a product with ones."""

    @staticmethod
    def forward(_context: Any, output_TD: Tensor, _bias_D: Tensor) -> Tensor:
        return output_TD.view_as(output_TD)

    @staticmethod
    def backward(_context: Any, gradient_TD: Tensor) -> tuple[Tensor, Tensor]:
        ones_1T = gradient_TD.new_ones(1, len(gradient_TD))
        return gradient_TD, (ones_1T @ gradient_TD)[0]


class Linear(nn.Linear):
    """A linear layer whose bias learns without torch's sum over the tokens.

    On an H200 that sum takes up to 132 MiB, and twice to four times as long as a product does.
    """

    def forward(self, states_TD: Tensor) -> Tensor:
        """[T, D] to [T, output width]."""
        output_TD = F.linear(states_TD, self.weight, self.bias.detach())
        added: Tensor = _BiasGradient.apply(output_TD, self.bias)  # type: ignore[no-untyped-call]
        return added


class LayerNorm(nn.LayerNorm):
    """Layer norm in front of a matrix product: under autocast the output is of its type.

    Attributes:
        is_stream: The output is the stream itself, and of its type.
    """

    def __init__(self, width: int, *, is_stream: bool = False) -> None:
        super().__init__(width)
        self.is_stream = is_stream

    def forward(self, states_TD: Tensor) -> Tensor:
        """Of the same shape."""
        dtype = states_TD.dtype if self.is_stream else None
        return layer_norm(states_TD, self.weight, self.bias, eps=self.eps, out_dtype=dtype)


class SwiGLU(nn.Module):
    """A gated feed-forward layer with as many weights as one of four times the width.

    Source: GLU Variants Improve Transformer (arXiv 2002.05202).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # Matrix units work on multiples of 8.
        hidden = 8 * -(-width // 3)
        self.gate_and_up = Linear(width, 2 * hidden)
        self.down = Linear(hidden, width)

    def forward(self, states_TD: Tensor) -> Tensor:
        """Of the same shape."""
        gate, up = self.gate_and_up(states_TD).chunk(2, dim=-1)
        output: Tensor = self.down(F.silu(gate) * up)
        return output


def _in_turn(first: Layer, second: Layer, states_TD: Tensor) -> Tensor:
    return second(first(states_TD))


class Block(nn.Module):
    """Self-attention, then a feed-forward layer.

    Dropout acts on what each of the two adds to the stream, not on attention weights or inside the
    feed-forward layer: those masks cost more memory and time than all others together.

    Attributes:
        recomputes: The backward pass computes the inside of both again, which is then not kept.
    """

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.recomputes = False
        width = config.width
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.norms_first = config.norm == "pre"
        self.attention_norm = LayerNorm(width, is_stream=not self.norms_first)
        self.qkv = Linear(width, 3 * width)
        self.projection = Linear(width, width)
        self.feed_forward_norm = LayerNorm(width, is_stream=not self.norms_first)
        self.feed_forward: nn.Module
        if config.feed_forward == "swiglu":
            self.feed_forward = SwiGLU(width)
        else:
            self.feed_forward = nn.Sequential(
                Linear(width, 4 * width), nn.GELU(), Linear(4 * width, width)
            )

    def forward(
        self, states_TD: Tensor, packing: Packing, rotation: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """States of the same shape; rotation: where positions turn queries and keys."""

        def attention(states_TD: Tensor) -> Tensor:
            return self._attend(states_TD, packing, rotation)

        for norm, layer in (
            (self.attention_norm, attention),
            (self.feed_forward_norm, self.feed_forward),
        ):
            if self.norms_first:
                inside = self._inside(partial(_in_turn, norm, layer))
                states_TD = states_TD + self._drop(inside(states_TD))
            else:
                states_TD = norm(states_TD + self._drop(self._inside(layer)(states_TD)))
        return states_TD

    def _inside(self, layer: Layer) -> Layer:
        if not (self.recomputes and torch.is_grad_enabled()):
            return layer
        # Nothing inside is random.
        return partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)

    def _drop(self, states_TD: Tensor) -> Tensor:
        return drop(states_TD, self.dropout, training=self.training)

    def _attend(
        self, states_TD: Tensor, packing: Packing, rotation: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        qkv_T3HC = self.qkv(states_TD).unflatten(1, (3, self.num_heads, -1))
        if rotation is not None:
            qkv_T3HC = rotate(qkv_T3HC, rotation)
        output: Tensor = self.projection(attend(qkv_T3HC, packing, causal=self.causal).flatten(1))
        return output
