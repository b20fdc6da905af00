"""Training batches: planned on the host, assembled on the device.

Shapes: M interactions, S sequences, B sequences of a part, P these and fillers, T tokens, N rows
of the loss.

A batch takes one sequence of every stratum of their lengths: it has about as many tokens as any
other, so that its memory is known before it is drawn, and no epoch ends with a small one.

All that the device needs to know of a batch is one vector of integers, so that a step, which may
be a captured CUDA graph, starts with one copy of known size. Captured graphs have fixed sizes:
there, tokens are computed in multiples of a small share of a batch, and fillers, which predict
nothing, make the last multiple full.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data.batch_sizes import FixedSizes, Shape
from objectives.data.sequences import DeviceSequences

NO_TARGET = -100
"""The target of a row that predicts nothing."""

_Integers = NDArray[np.int64]


class Plan(NamedTuple):
    """A part of a batch as the host knows it.

    Attributes:
        shape: Its sizes.
        numbers: What `TrainingBatches.assemble` needs to know.
        num_items: Tokens that are no fillers.
        num_predictions: Rows that predict.
    """

    shape: Shape
    numbers: _Integers
    num_items: int
    num_predictions: int


@dataclass(frozen=True)
class TrainingBatch:
    """Items to predict, of a part of a batch.

    Attributes:
        ids_T: Item ids, int64, or the mask's.
        packing: Where their sequences lie.
        rows_N: The tokens that predict.
        targets_N: What they are to predict, or `NO_TARGET`.
        num_predictions: Predictions of the whole batch, int64 [].
    """

    ids_T: Tensor
    packing: Packing
    rows_N: Tensor
    targets_N: Tensor
    num_predictions: Tensor


class TrainingBatches:
    """Batches of all sequences, drawn by strata of their lengths.

    Of a sequence, the most recent `max_length` tokens predict the items behind them; or some of
    the most recent `max_length` items are masked and predicted.
    """

    def __init__(
        self,
        sequences: DeviceSequences,
        *,
        batch_size: int,
        parts: int,
        max_length: int,
        mask_share: float | None,
        generator: torch.Generator,
        fixed_sizes: bool,
        mine: slice = slice(None),
    ) -> None:
        """Prepares batches.

        Args:
            sequences: All sequences.
            batch_size: Sequences of a batch at most; the batches of an epoch differ by one.
            parts: A batch comes in at most so many parts.
            max_length: Tokens of a sequence at most.
            mask_share: The probability that an item is masked; where none of a sequence is, its
                last one is. None: every token predicts the item behind it.
            generator: On the host, of the batches and of the masks.
            fixed_sizes: Few shapes occur.
            mine: The parts that are wanted; of the others only the sizes are known.
        """
        self._sequences = sequences
        self._parts, self._max_length = parts, max_length
        self._mine = mine
        self._mask_share = mask_share
        self._generator = generator
        self._ahead = 1 if mask_share is None else 0
        self._lengths_S = np.clip(sequences.lengths_S - self._ahead, 0, max_length)
        self._num_batches = -(-len(sequences) // batch_size)
        self._fixed = None
        if fixed_sizes:
            self._fixed = FixedSizes.of(
                -(-self._num_strata // parts),
                float(self._lengths_S.mean()),
                max_length=max_length,
                mask_share=mask_share,
                in_parts=parts > 1,
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._num_batches

    @property
    def _num_strata(self) -> int:
        """Sequences of a batch at most."""
        return -(-len(self._sequences) // max(1, self._num_batches))

    def epoch(self) -> Iterator[list[Plan]]:
        """Every sequence once, in new batches; one is a list of its parts.

        The batch with most tokens comes first: memory that is too small is so at once.
        """
        if not self._num_batches:
            return
        order_S = torch.randperm(len(self._sequences), generator=self._generator).numpy()
        strata = self._strata(order_S)
        shuffled = torch.rand(strata.shape, generator=self._generator).argsort(1).numpy()
        batches = np.take_along_axis(strata, shuffled, 1).T
        tokens = np.where(batches < 0, 0, self._lengths_S[batches]).sum(1)
        largest = tokens.argmax()
        for rows in (batches[largest], *np.delete(batches, largest, 0)):
            yield self.plans(rows[rows >= 0])

    def largest(self) -> list[Plan]:
        """A batch of the longest sequence of every stratum: none takes more memory."""
        return self.plans(self._strata(np.arange(len(self._sequences)))[:, -1])

    def _strata(self, order_S: _Integers) -> _Integers:
        """A row for each stratum, one sequence for each batch: the shortest first.

        Sequences of one length are in the given order. The first row begins with -1 where there
        are too few of them.
        """
        by_length_S = order_S[np.argsort(self._lengths_S[order_S], kind="stable")]
        missing = self._num_strata * self._num_batches - len(order_S)
        return np.pad(by_length_S, (missing, 0), constant_values=-1).reshape(
            self._num_strata, self._num_batches
        )

    def plans(self, rows: _Integers) -> list[Plan]:
        """The batch of these sequences; where sizes are fixed, its parts are of one shape."""
        if self._parts == 1:
            parts = [rows]
        else:
            # Dealt out by length, so that the parts have about as many tokens.
            rows = rows[np.argsort(-self._lengths_S[rows], kind="stable")]
            parts = [rows[first :: self._parts] for first in range(min(self._parts, len(rows)))]
        masks: list[_Integers | None] = [None] * len(parts)
        sizes = num_predictions = [int(self._lengths_S[part].sum()) for part in parts]
        if self._mask_share is not None:
            masks = [self._draw_masks(self._lengths_S[part]) for part in parts]
            num_predictions = [0 if mask is None else len(mask) for mask in masks]
        plans = []
        whole = list(zip(parts, masks, sizes, num_predictions, strict=True))
        for part, masked_N, size, number in whole[self._mine]:
            shape = Shape(len(part), size, number, int(self._lengths_S[part].max(initial=0)))
            if self._fixed is not None:
                shape = self._fixed.shape(max(sizes), max(num_predictions), self._max_length)
            heads = np.array([sum(num_predictions), number])
            numbers = np.concatenate([heads, *self._numbers(part, masked_N, shape)])
            plans.append(Plan(shape, numbers, size, number))
        return plans

    def _numbers(
        self, rows_B: _Integers, masked_N: _Integers | None, shape: Shape
    ) -> list[_Integers]:
        lengths_B = self._lengths_S[rows_B]
        missing = shape.num_sequences - len(rows_B)
        fillers = shape.num_tokens - lengths_B.sum() - np.arange(shape.num_fillers) * shape.longest
        lengths_P = np.concatenate(
            [lengths_B, np.zeros(missing, np.int64), fillers.clip(0, shape.longest)]
        )
        numbers = [np.pad(rows_B, (0, missing)), np.zeros(1, np.int64), lengths_P.cumsum()]
        if masked_N is not None:
            # A row more of a masked token changes nothing.
            numbers.append(np.resize(masked_N, shape.num_rows))
        if self._sequences.on_host:
            numbers += self._items_of(rows_B, lengths_B, shape.num_tokens)
        return numbers

    def _draw_masks(self, lengths_B: _Integers) -> _Integers:
        """The tokens that are masked, at least one of every sequence."""
        ends_B = lengths_B.cumsum()
        random_T = torch.rand(int(ends_B[-1]), generator=self._generator).numpy()
        is_masked_T = random_T < self._mask_share
        sums_T1 = np.concatenate([[0], is_masked_T.cumsum()])
        without_B = (sums_T1[ends_B] == sums_T1[ends_B - lengths_B]) & (lengths_B > 0)
        is_masked_T[ends_B[without_B] - 1] = True
        return is_masked_T.nonzero()[0]

    def _items_of(
        self, rows_B: _Integers, lengths_B: _Integers, num_tokens: int
    ) -> list[_Integers]:
        """Items of the tokens and, where these are to predict, the items behind them."""
        firsts_B = self._sequences.offsets[rows_B + 1].numpy() - self._ahead - lengths_B
        place_T = np.repeat(firsts_B - lengths_B.cumsum() + lengths_B, lengths_B)
        place_T += np.arange(len(place_T))
        # As `_places` has it.
        place_T = np.concatenate([place_T, np.resize(firsts_B[:1], num_tokens - len(place_T))])
        items_M = self._sequences.items_M.numpy()
        items = [items_M[place_T].astype(np.int64)]
        if self._mask_share is None:
            items.append(items_M[(place_T + 1).clip(max=len(items_M) - 1)].astype(np.int64))
        return items

    def assemble(self, numbers: Tensor, shape: Shape) -> TrainingBatch:
        """The batch of a plan, where its numbers are; nothing waits."""
        num_masked = 0 if self._mask_share is None else shape.num_rows
        head, rows_B, offsets_P1, rows_N, rest = torch.split(
            numbers,
            [
                2,
                shape.num_sequences,
                shape.num_sequences + shape.num_fillers + 1,
                num_masked,
                len(numbers) - 3 - 2 * shape.num_sequences - shape.num_fillers - num_masked,
            ],
        )
        packing = Packing(offsets_P1, shape.num_tokens, shape.longest)
        if self._sequences.on_host:
            ids_T, *following = rest.view(-1, shape.num_tokens)
        else:
            place_T = self._places(rows_B, offsets_P1, packing)
            items_M = self._sequences.items_M
            ids_T = items_M[place_T].long()
            if self._mask_share is None:
                following = [items_M[(place_T + 1).clamp(max=len(items_M) - 1)].long()]
        if self._mask_share is None:
            rows_N = torch.arange(shape.num_rows, device=numbers.device)
            targets_N = following[0]
        else:
            targets_N = ids_T[rows_N]
            ids_T = ids_T.index_fill(0, rows_N, MASK)
        if self._fixed is not None:
            predicts_N = torch.arange(shape.num_rows, device=numbers.device) < head[1]
            targets_N = targets_N.where(predicts_N, NO_TARGET)
        return TrainingBatch(ids_T, packing, rows_N, targets_N, head[0])

    def _places(self, rows_B: Tensor, offsets_P1: Tensor, packing: Packing) -> Tensor:
        """Where the tokens stand among all interactions."""
        num_sequences = len(rows_B)
        ends_B = self._sequences.offsets[rows_B + 1] - self._ahead
        firsts_B = ends_B - offsets_P1[: num_sequences + 1].diff()
        if len(packing) == num_sequences:
            return firsts_B[packing.sequence_T] + packing.position_T
        # All fillers are the first token, so that no other item is looked up for them.
        is_item_T = packing.sequence_T < num_sequences
        place_T = firsts_B[packing.sequence_T.clamp(max=num_sequences - 1)] + packing.position_T
        return place_T.where(is_item_T, firsts_B[0])
