from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data import Targets
from objectives.data.sequences import target_batches

CPU = torch.device("cpu")
Lists = list[list[int]]
LISTS = [[1, 2], [3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14], [2, 1], [15, 16, 17]]


def split(values_T: Tensor, packing: Packing) -> Lists:
    """The values of each sequence."""
    return [part.tolist() for part in torch.split(values_T, packing.offsets_B1.diff().tolist())]


@pytest.mark.parametrize("max_length", [1, 3, 50])
def test_a_mask_stands_in_the_place_of_the_target(
    max_length: int, targets_of: Callable[[Lists], Targets]
) -> None:
    (batch,) = target_batches(targets_of(LISTS), 100, max_length, CPU, masked=True)
    expected = [[*history[:-1], MASK][-max_length:] for history in LISTS]
    assert split(batch.ids_T, batch.packing) == expected


@pytest.mark.parametrize("max_length", [2, 50])
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_target_batches(
    batch_size: int, max_length: int, targets_of: Callable[[Lists], Targets]
) -> None:
    user = 0
    for batch in target_batches(targets_of(LISTS), batch_size, max_length, CPU, masked=False):
        rows, seen = (tensor.tolist() for tensor in batch.seen)
        histories = split(batch.ids_T, batch.packing)
        for row, (ids, target) in enumerate(zip(histories, batch.targets_B, strict=True)):
            *history, expected = LISTS[user]
            assert target == expected
            assert ids == history[-max_length:]
            # What is seen is the whole history, also what lies before the window.
            assert [item for r, item in zip(rows, seen, strict=True) if r == row] == history
            user += 1
    assert user == len(LISTS)
