"""Sequences on the device, and packed batches of histories to evaluate.

Shapes: M interactions, S sequences, B sequences of a batch, T tokens of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data.prepare import Sequences, Targets


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


def target_batches(
    targets: Targets, batch_size: int, max_length: int, device: torch.device, *, masked: bool
) -> Iterator[TargetBatch]:
    """All targets, in order; masked: the last token is a mask, in the target's place."""
    inputs = DeviceSequences(targets.inputs, device)
    items_S = torch.tensor(targets.items, device=device, dtype=torch.int64)
    for rows_B in torch.split(torch.arange(len(inputs)), batch_size):
        places_T, packing = inputs.windows(rows_B, max_length, ahead=-1 if masked else 0)
        ids_T = inputs.items_M[places_T.clamp(max=len(inputs.items_M) - 1)].long()
        if masked:
            ids_T = ids_T.index_fill(0, packing.last_B, MASK)
        first, last = int(rows_B[0]), int(rows_B[-1]) + 1
        begin, end = (int(targets.inputs.offsets[row]) for row in (first, last))
        counts_B = torch.from_numpy(targets.inputs.lengths[first:last]).to(device)
        seen_rows = torch.repeat_interleave(
            torch.arange(len(rows_B), device=device), counts_B, output_size=end - begin
        )
        yield TargetBatch(
            ids_T,
            packing,
            items_S[first:last],
            (seen_rows, inputs.items_M[begin:end].long()),
        )
