"""Sequences packed one behind the other, so that no token is padding.

Shapes: B sequences, T tokens of all sequences, L tokens of the longest.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Packing:
    """Where sequences lie in a flat run of tokens.

    Attributes:
        offsets_B1: The first token of each sequence, and T behind the last; int32.
        sequence_T: The sequence of each token, int64.
        position_T: The place of each token in its sequence, from 0, int64.
        num_tokens: T.
        longest: L, or more.
    """

    def __init__(self, offsets_B1: Tensor, num_tokens: int, longest: int) -> None:
        """Packs sequences that begin there; sizes are known on the host, so nothing waits."""
        self.offsets_B1 = offsets_B1.to(torch.int32)
        self.num_tokens = num_tokens
        self.longest = longest
        token_T = torch.arange(num_tokens, device=offsets_B1.device)
        self.sequence_T = torch.searchsorted(offsets_B1[1:], token_T, right=True)
        self.position_T = token_T - offsets_B1[self.sequence_T]

    @staticmethod
    def of(lengths_B: Tensor | Sequence[int], device: torch.device) -> "Packing":
        """Sequences of these lengths, which are known on the host."""
        lengths_B = torch.as_tensor(lengths_B, dtype=torch.int64)
        offsets_B1 = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0))
        longest = int(lengths_B.max()) if len(lengths_B) else 0
        return Packing(offsets_B1.to(device, non_blocking=True), int(offsets_B1[-1]), longest)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.offsets_B1) - 1

    @property
    def last_B(self) -> Tensor:  # noqa: N802
        """The last token of each sequence, int64."""
        return self.offsets_B1[1:].long() - 1

    def pad(self, values_T: Tensor) -> Tensor:
        """Values of the tokens [T, *] as [B, L, *], zero behind the end of a sequence."""
        shape = values_T.shape[1:]
        padded = values_T.new_zeros(len(self) * self.longest, *shape)
        padded = padded.index_copy(0, self._places_T, values_T)
        return padded.view(len(self), self.longest, *shape)

    @property
    def is_token_BL(self) -> Tensor:  # noqa: N802
        """Where `pad` puts tokens; a sequence without any has one, which nobody sees."""
        lengths_B1 = self.offsets_B1.diff()[:, None].clamp(min=1)
        return torch.arange(self.longest, device=lengths_B1.device) < lengths_B1

    def unpad(self, values_BL: Tensor) -> Tensor:
        """What `pad` was given."""
        return values_BL.flatten(0, 1).index_select(0, self._places_T)

    @cached_property
    def _places_T(self) -> Tensor:  # noqa: N802
        return self.sequence_T * self.longest + self.position_T
