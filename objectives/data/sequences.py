"""Padded batches of sequences, assembled on the device.

Shapes: M interactions, S sequences, B sequences of a batch, L positions, N non-pad positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.data.prepare import Sequences, Targets


@dataclass(frozen=True)
class TrainingBatch:
    """Next-item prediction at every position.

    Attributes:
        ids_BL: Item ids, int64; sequences start at position 0.
        valid_BL: True where a position has a next item.
        targets_N: The next items of the valid positions, in row-major order.
    """

    ids_BL: Tensor
    valid_BL: Tensor
    targets_N: Tensor


@dataclass(frozen=True)
class TargetBatch:
    """Histories and what followed them.

    Attributes:
        ids_BL: The most recent items of each history; sequences start at position 0.
        last_B: Position of each history's last item.
        targets_B: The item that followed.
        seen: Items of the whole histories: (rows, item ids).
    """

    ids_BL: Tensor
    last_B: Tensor
    targets_B: Tensor
    seen: tuple[Tensor, Tensor]


class DeviceSequences:
    """Sequences on the device, cut into windows of their most recent items."""

    def __init__(self, sequences: Sequences, device: torch.device) -> None:
        self.items_M = torch.tensor(sequences.items, device=device)
        self.offsets = torch.tensor(sequences.offsets, device=device)
        # The same on the host: how long the longest of a batch is must not wait for the device.
        self.lengths_S = torch.from_numpy(sequences.lengths)

    def __len__(self) -> int:
        return len(self.lengths_S)

    def windows(self, rows_B: Tensor, max_items: int) -> tuple[Tensor, Tensor]:
        """The last `max_items` items of the chosen sequences (host indices).

        Returns:
            ids_BL, int64, starting at position 0, with arbitrary items behind the end; and the
            lengths [B]. L is that of the longest window.
        """
        longest = min(int(self.lengths_S[rows_B].max()), max_items)
        rows_B = rows_B.to(self.offsets.device)
        ends_B = self.offsets[rows_B + 1]
        lengths_B = (ends_B - self.offsets[rows_B]).clamp(max=longest)
        position_L = torch.arange(longest, device=ends_B.device)
        source_BL = (ends_B - lengths_B)[:, None] + position_L
        ids_BL = self.items_M[source_BL.clamp_(max=len(self.items_M) - 1)].long()
        return ids_BL, lengths_B


def training_batch(sequences: DeviceSequences, rows_B: Tensor, max_length: int) -> TrainingBatch:
    """The batch of the chosen sequences: at most `max_length` predictions each."""
    ids_BL, lengths_B = sequences.windows(rows_B, max_length + 1)
    position_L = torch.arange(ids_BL.shape[1] - 1, device=ids_BL.device)
    valid_BL = position_L < lengths_B[:, None] - 1
    return TrainingBatch(ids_BL[:, :-1], valid_BL, ids_BL[:, 1:][valid_BL])


def training_batches(
    sequences: DeviceSequences, batch_size: int, max_length: int, generator: torch.Generator
) -> Iterator[TrainingBatch]:
    """One epoch in an order drawn from the (host) generator; the last batch may be smaller."""
    order_S = torch.randperm(len(sequences), generator=generator)
    for rows_B in torch.split(order_S, batch_size):
        yield training_batch(sequences, rows_B, max_length)


def target_batches(
    targets: Targets, batch_size: int, max_length: int, device: torch.device
) -> Iterator[TargetBatch]:
    """All targets, in order."""
    inputs = DeviceSequences(targets.inputs, device)
    items_S = torch.tensor(targets.items, device=device, dtype=torch.int64)
    for rows_B in torch.split(torch.arange(len(inputs)), batch_size):
        ids_BL, lengths_B = inputs.windows(rows_B, max_length)
        first, last = int(rows_B[0]), int(rows_B[-1]) + 1
        begin, end = (int(targets.inputs.offsets[row]) for row in (first, last))
        counts_B = torch.from_numpy(targets.inputs.lengths[first:last]).to(device)
        seen_rows = torch.repeat_interleave(
            torch.arange(len(rows_B), device=device), counts_B, output_size=end - begin
        )
        yield TargetBatch(
            ids_BL,
            lengths_B - 1,
            items_S[first:last],
            (seen_rows, inputs.items_M[begin:end].long()),
        )
