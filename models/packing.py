"""Sequences packed one behind the other, so that no token is padding.

Shapes: B sequences, T tokens of all sequences, L tokens of the longest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Packing:
    """Where sequences lie in a flat run of tokens.

    Attributes:
        offsets_B1: The first token of each sequence, and T behind the last; int32.
        sequence_T: The sequence of each token, int64.
        position_T: The place of each token in its sequence, from 0, int64.
        last_B: The last token of each sequence, int64.
        num_tokens: T.
        longest: L.
    """

    def __init__(self, lengths_B: Tensor | Sequence[int], device: torch.device) -> None:
        """Packs sequences of these lengths, which are known on the host: nothing waits."""
        lengths_B = torch.as_tensor(lengths_B, dtype=torch.int64)
        offsets_B1 = torch.nn.functional.pad(lengths_B.cumsum(0), (1, 0))
        self.longest = int(lengths_B.max()) if len(lengths_B) else 0
        self.num_tokens = int(offsets_B1[-1])
        self.offsets_B1 = offsets_B1.to(device, torch.int32, non_blocking=True)
        self.sequence_T = torch.repeat_interleave(
            torch.arange(len(lengths_B), device=device),
            self.offsets_B1.diff(),
            output_size=self.num_tokens,
        )
        first_T = self.offsets_B1[self.sequence_T]
        self.position_T = torch.arange(self.num_tokens, device=device) - first_T
        self.last_B = self.offsets_B1[1:].long() - 1
        self._places_T = self.sequence_T * self.longest + self.position_T

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.offsets_B1) - 1

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
