"""Packed batches of sequences, assembled on the device.

Shapes: M interactions, S sequences, B sequences of a batch, T tokens of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.packing import Packing
from objectives.data.prepare import Sequences, Targets


@dataclass(frozen=True)
class TrainingBatch:
    """Next-item prediction at every token.

    Attributes:
        ids_T: Item ids, int64.
        packing: Where their sequences lie.
        targets_T: The items that follow.
    """

    ids_T: Tensor
    packing: Packing
    targets_T: Tensor


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
    """Sequences on the device."""

    def __init__(self, sequences: Sequences, device: torch.device) -> None:
        self.items_M = torch.tensor(sequences.items, device=device)
        self.offsets = torch.tensor(sequences.offsets, device=device)
        # The same on the host: how many tokens a batch has must not wait for the device.
        self.lengths_S = torch.from_numpy(sequences.lengths)

    def __len__(self) -> int:
        return len(self.lengths_S)

    def windows(self, rows_B: Tensor, max_items: int, ahead: int) -> tuple[Tensor, Packing]:
        """The most recent items of the chosen sequences (host indices) but the last `ahead`.

        Returns:
            Where these items stand among all interactions [T], and how they are packed: at most
            `max_items` of a sequence.
        """
        device = self.offsets.device
        packing = Packing((self.lengths_S[rows_B] - ahead).clamp(0, max_items), device)
        ends_B = self.offsets[rows_B.to(device) + 1] - ahead
        firsts_B = ends_B - packing.offsets_B1.diff()
        return firsts_B[packing.sequence_T] + packing.position_T, packing


def training_batch(sequences: DeviceSequences, rows_B: Tensor, max_length: int) -> TrainingBatch:
    """The batch of the chosen sequences: at most `max_length` predictions each."""
    places_T, packing = sequences.windows(rows_B, max_length, ahead=1)
    items_M = sequences.items_M
    return TrainingBatch(items_M[places_T].long(), packing, items_M[places_T + 1].long())


def training_batches(
    sequences: DeviceSequences,
    batch_size: int,
    parts: int,
    max_length: int,
    generator: torch.Generator,
) -> Iterator[list[TrainingBatch]]:
    """One epoch in an order drawn from the (host) generator; the last batch may be smaller.

    A batch comes in at most so many parts, of sequences side by side.
    """
    order_S = torch.randperm(len(sequences), generator=generator)
    for rows_B in torch.split(order_S, batch_size):
        yield [training_batch(sequences, part_B, max_length) for part_B in rows_B.chunk(parts)]


def target_batches(
    targets: Targets, batch_size: int, max_length: int, device: torch.device
) -> Iterator[TargetBatch]:
    """All targets, in order."""
    inputs = DeviceSequences(targets.inputs, device)
    items_S = torch.tensor(targets.items, device=device, dtype=torch.int64)
    for rows_B in torch.split(torch.arange(len(inputs)), batch_size):
        places_T, packing = inputs.windows(rows_B, max_length, ahead=0)
        first, last = int(rows_B[0]), int(rows_B[-1]) + 1
        begin, end = (int(targets.inputs.offsets[row]) for row in (first, last))
        counts_B = torch.from_numpy(targets.inputs.lengths[first:last]).to(device)
        seen_rows = torch.repeat_interleave(
            torch.arange(len(rows_B), device=device), counts_B, output_size=end - begin
        )
        yield TargetBatch(
            inputs.items_M[places_T].long(),
            packing,
            items_S[first:last],
            (seen_rows, inputs.items_M[begin:end].long()),
        )
