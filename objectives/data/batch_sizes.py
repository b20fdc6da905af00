"""How large batches are, from the lengths of sequences alone.

Shapes: S sequences, B sequences of a part, P these and fillers, T tokens, N rows of the loss.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FILLED_SHARE = 0.02
"""About this share of the tokens are fillers where sizes are fixed."""


class Shape(NamedTuple):
    """The sizes of a part of a batch.

    Attributes:
        num_sequences: B; where sizes are fixed, some may be empty.
        num_tokens: T.
        num_rows: N.
        longest: Tokens of a sequence at most.
        num_fillers: P - B.
    """

    num_sequences: int
    num_tokens: int
    num_rows: int
    longest: int
    num_fillers: int = 0


class FixedSizes(NamedTuple):
    """What the sizes of a part of a batch are rounded up to, so that few occur.

    Attributes:
        num_sequences: B, of every part.
        multiple_T: What its tokens are a multiple of.
        multiple_N: What its rows are a multiple of.
        num_fillers: P - B.
    """

    num_sequences: int
    multiple_T: int
    multiple_N: int
    num_fillers: int

    @staticmethod
    def of(
        num_sequences: int,
        mean_length: float,
        *,
        max_length: int,
        mask_share: float | None,
        in_parts: bool,
    ) -> "FixedSizes":
        """Those of parts of so many sequences of this mean number of tokens."""
        mean_tokens = mean_length * num_sequences
        multiple_T = multiple_N = _multiple_of(mean_tokens)
        if mask_share is not None:
            # The masks of as many tokens spread wider than a filled share of them.
            mean_rows = mean_tokens * mask_share
            multiple_N = _multiple_of(max(mean_rows, 4 * mean_rows**0.5 / _FILLED_SHARE))
        # Parts differ by one sequence, or less than that.
        most_filled = multiple_T + (max_length if in_parts else 0)
        return FixedSizes(num_sequences, multiple_T, multiple_N, -(-most_filled // max_length))

    def shape(self, num_tokens: int, num_rows: int, max_length: int) -> Shape:
        """That of a part of so many tokens and rows at most."""
        return Shape(
            self.num_sequences,
            _rounded_up(num_tokens, self.multiple_T),
            _rounded_up(num_rows, self.multiple_N),
            max_length,
            self.num_fillers,
        )


class Lengths:
    """The lengths of a data set's sequences, sorted."""

    def __init__(self, lengths_S: NDArray[np.int64]) -> None:
        self._ascending_S = np.sort(lengths_S)
        self._totals_S1 = np.concatenate([[0], self._ascending_S.cumsum()])

    def __len__(self) -> int:
        return len(self._ascending_S)

    @property
    def longest(self) -> int:
        """That of the longest sequence."""
        return int(self._ascending_S[-1])

    def mean(self, ahead: int, most: int) -> float:
        """Mean number of tokens, of which a sequence has its items but `ahead`, at most `most`."""
        none, all_ = np.searchsorted(self._ascending_S, [ahead + 1, ahead + most])
        between = self._totals_S1[all_] - self._totals_S1[none] - ahead * (all_ - none)
        return float(between + most * (len(self) - all_)) / len(self)

    def largest_shape(
        self, *, batch_size: int, parts: int, max_length: int, mask_share: float | None
    ) -> Shape:
        """The shape of the largest part of a batch that `TrainingBatches` makes with fixed sizes.

        Masks are random: in one batch of 30,000 they make more rows.

        Args:
            batch_size: As there, like what follows.
            parts: See above.
            max_length: See above.
            mask_share: See above.
        """
        ahead = 1 if mask_share is None else 0
        num_batches = -(-len(self) // batch_size)
        # Each is the longest of its stratum. Dealt out by length: the first part has most.
        longest_B = (self._ascending_S[::-num_batches] - ahead).clip(0, max_length)
        tokens_B = longest_B[::parts]
        num_tokens = num_rows = int(tokens_B.sum())
        if mask_share is not None:
            # A sequence without a mask gets one.
            mean_rows = float((tokens_B * mask_share + (1 - mask_share) ** tokens_B).sum())
            num_rows = min(num_tokens, int(mean_rows + 4 * mean_rows**0.5))
        fixed = FixedSizes.of(
            -(-len(longest_B) // parts),
            self.mean(ahead, max_length),
            max_length=max_length,
            mask_share=mask_share,
            in_parts=parts > 1,
        )
        return fixed.shape(num_tokens, num_rows, max_length)


def _multiple_of(mean: float) -> int:
    """Sizes of this mean are rounded up to multiples of this; half of one is filled on average.

    Not below 16: Triton's kernels are compiled anew for sizes that are no multiples of that.
    """
    return 1 << max(16, int(2 * _FILLED_SHARE * mean)).bit_length() - 1


def _rounded_up(size: int, multiple: int) -> int:
    """At least one multiple, unless every size is one."""
    return size if multiple == 1 else max(1, -(-size // multiple)) * multiple
