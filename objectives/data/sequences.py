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
from torch.nn import functional as F  # noqa: N812

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data.prepared import Sequences, Targets

_SEEN_ITEMS_PER_TOKEN = 16
"""Items of a history, which the ranking leaves out, that take no more memory than a token."""
_LARGEST_SHARE = 1 / 16
"""Data that would take more of the budget stays on the host."""
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
        self.lengths_S: NDArray[np.int64] = sequences.lengths

    def __len__(self) -> int:
        return len(self.lengths_S)


def stays_on_host(num_bytes: int, budget: int) -> bool:
    """Whether so much data is large beside what a trial may allocate, in bytes."""
    return num_bytes > _LARGEST_SHARE * budget


class DeviceTargets:
    """The targets of a split and the histories before them, for a device."""

    def __init__(self, targets: Targets, device: torch.device, *, on_host: bool = False) -> None:
        """Puts them there; on_host: the items of the histories come batch by batch."""
        self._device = device
        self._items_M = torch.from_numpy(targets.inputs.items)
        if not on_host:
            self._items_M = self._items_M.to(device)
        self._targets_S = torch.tensor(targets.items, device=device)
        # Where batches begin and end is known on the host: nothing waits for the device.
        self._offsets = targets.inputs.offsets
        self._lengths = targets.inputs.lengths
        self._item_users_V: Tensor | None = None

    def __len__(self) -> int:
        return len(self._lengths)

    def batches(
        self, batch_tokens: int, max_length: int, *, masked: bool, mine: slice = slice(None)
    ) -> Iterator[TargetBatch]:
        """All targets, in order.

        Args:
            batch_tokens: What a batch may hold, in tokens; one user it always does.
            max_length: Most recent items of a history that are given, the mask included.
            masked: The last token is a mask, in the target's place.
            mine: The batches that are wanted.
        """
        lengths = self._lengths + masked
        costs = np.minimum(lengths, max_length) + lengths // _SEEN_ITEMS_PER_TOKEN
        for users in list(_runs(costs, batch_tokens))[mine]:
            seen = self._histories(users)
            lengths_B = torch.from_numpy(self._lengths[users])
            packing = Packing.of((lengths_B + int(masked)).clamp(max=max_length), self._device)
            # Behind the last item of each window, with the place of the mask.
            ends_B = lengths_B.cumsum(0).to(self._device, non_blocking=True) + int(masked)
            firsts_B = ends_B - packing.offsets_B1.diff()
            place_T = firsts_B[packing.sequence_T] + packing.position_T
            ids_T = F.pad(seen[1], (0, 1))[place_T]
            if masked:
                ids_T = ids_T.index_fill(0, packing.last_B, MASK)
            yield TargetBatch(ids_T, packing, self._targets_S[users].long(), seen)

    def item_users(self, num_items: int) -> Tensor:
        """Users whose history has each item [V], int64; counted on the device, once."""
        if self._item_users_V is None:
            users_V = torch.zeros(num_items, dtype=torch.int64, device=self._device)
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
        lengths_B = torch.from_numpy(self._lengths[users]).to(self._device, non_blocking=True)
        places_P = torch.repeat_interleave(
            torch.arange(len(lengths_B), device=self._device),
            lengths_B,
            output_size=end - begin,
        )
        items_P = self._items_M[begin:end].to(self._device, non_blocking=True)
        return places_P, items_P.long()


def _runs(costs: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Neighbours whose costs add up to so much at most, or one that alone costs more."""
    totals = np.cumsum(costs)
    first, spent = 0, 0
    while first < len(totals):
        last = max(first + 1, int(np.searchsorted(totals, spent + most, side="right")))
        yield slice(first, last)
        first, spent = last, int(totals[last - 1])
