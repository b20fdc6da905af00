"""Sequences on the device, and packed batches of histories to evaluate.

Shapes: M interactions, S sequences, B sequences of a batch, T tokens of a batch, P interactions of
some sequences, V items.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data.prepare import Sequences, Targets

_SEEN_ITEMS_PER_TOKEN = 16
"""Items of a history, which the ranking leaves out, that take no more memory than a token."""
_COUNTED_TOGETHER = 1 << 18
"""Interactions whose items are counted at a time."""


@dataclass(frozen=True)
class TargetBatch:
    """Histories and what followed them.

    Attributes:
        ids_T: The most recent items of the histories.
        packing: Where the histories lie.
        targets_B: The item that followed.
        seen: Items of the whole histories: (rows, item ids).
    """

    ids_T: Tensor
    packing: Packing
    targets_B: Tensor
    seen: tuple[Tensor, Tensor]


class DeviceSequences:
    """Sequences on the device, or, where they are too many for it, on the host.

    Attributes:
        items_M: Items of all sequences, int32.
        offsets: Where the sequences begin, and M, int64.
        lengths_S: Their lengths, on the host.
        on_host: Whether all of that is.
    """

    def __init__(
        self, sequences: Sequences, device: torch.device, *, on_host: bool = False
    ) -> None:
        self.on_host = on_host
        where = torch.device("cpu") if on_host else device
        self.items_M = torch.tensor(sequences.items, device=where)
        self.offsets = torch.tensor(sequences.offsets, device=where)
        # The same on the host: how many tokens a batch has must not wait for the device.
        self.lengths_S = torch.from_numpy(sequences.lengths)

    def __len__(self) -> int:
        return len(self.lengths_S)

    def windows(self, rows_B: Tensor, max_items: int, ahead: int) -> tuple[Tensor, Packing]:
        """The most recent items of the chosen sequences (host indices) but the last `ahead`.

        With ahead = -1 there is a place behind the last item too.

        Returns:
            Where these items stand among all interactions [T], and how they are packed: at most
            `max_items` of a sequence.
        """
        device = self.offsets.device
        packing = Packing.of((self.lengths_S[rows_B] - ahead).clamp(0, max_items), device)
        ends_B = self.offsets[rows_B.to(device) + 1] - ahead
        firsts_B = ends_B - packing.offsets_B1.diff()
        return firsts_B[packing.sequence_T] + packing.position_T, packing


class DeviceTargets:
    """The targets of a split and the histories before them, on the device."""

    def __init__(self, targets: Targets, device: torch.device) -> None:
        self._inputs = DeviceSequences(targets.inputs, device)
        self._items_S = torch.tensor(targets.items, device=device)
        # Where batches begin and end is known on the host: nothing waits for the device.
        self._offsets = targets.inputs.offsets
        self._lengths = targets.inputs.lengths
        self._item_users_V: Tensor | None = None

    def __len__(self) -> int:
        return len(self._inputs)

    def batches(
        self, batch_tokens: int, max_length: int, *, masked: bool
    ) -> Iterator[TargetBatch]:
        """All targets, in order.

        Args:
            batch_tokens: What a batch may hold, in tokens; one user it always does.
            max_length: Most recent items of a history that are given, the mask included.
            masked: The last token is a mask, in the target's place.
        """
        lengths = self._lengths + masked
        costs = np.minimum(lengths, max_length) + lengths // _SEEN_ITEMS_PER_TOKEN
        items_M = self._inputs.items_M
        for users in _runs(costs, batch_tokens):
            rows_B = torch.arange(users.start, users.stop)
            places_T, packing = self._inputs.windows(rows_B, max_length, ahead=-int(masked))
            ids_T = items_M[places_T.clamp(max=len(items_M) - 1)].long()
            if masked:
                ids_T = ids_T.index_fill(0, packing.last_B, MASK)
            yield TargetBatch(ids_T, packing, self._items_S[users].long(), self._histories(users))

    def item_users(self, num_items: int) -> Tensor:
        """Users whose history has each item [V], int64; counted on the device, once."""
        if self._item_users_V is None:
            users_V = torch.zeros(num_items, dtype=torch.int64, device=self._items_S.device)
            for users in _runs(self._lengths, _COUNTED_TOGETHER):
                rows_P, ids_P = self._histories(users)
                pairs_P = (rows_P * num_items + ids_P).sort().values
                is_first_P = torch.ones_like(pairs_P)
                is_first_P[1:] = pairs_P[1:] != pairs_P[:-1]
                users_V.index_add_(0, pairs_P % num_items, is_first_P)
            self._item_users_V = users_V
        return self._item_users_V

    def _histories(self, users: slice) -> tuple[Tensor, Tensor]:
        """All items of some users' histories: (places among these users, item ids)."""
        begin, end = int(self._offsets[users.start]), int(self._offsets[users.stop])
        lengths_B = self._inputs.offsets[users.start : users.stop + 1].diff()
        places_P = torch.repeat_interleave(
            torch.arange(len(lengths_B), device=lengths_B.device),
            lengths_B,
            output_size=end - begin,
        )
        return places_P, self._inputs.items_M[begin:end].long()


def _runs(costs: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Neighbours whose costs add up to so much at most, or one that alone costs more."""
    totals = np.cumsum(costs)
    first, spent = 0, 0
    while first < len(totals):
        last = max(first + 1, int(np.searchsorted(totals, spent + most, side="right")))
        yield slice(first, last)
        first, spent = last, int(totals[last - 1])
