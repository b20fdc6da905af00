from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data import Targets
from objectives.data.sequences import DeviceTargets

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
    targets = DeviceTargets(targets_of(LISTS), CPU)
    (batch,) = targets.batches(100, max_length, masked=True)
    expected = [[*history[:-1], MASK][-max_length:] for history in LISTS]
    assert split(batch.ids_T, batch.packing) == expected


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("max_length", [2, 50])
@pytest.mark.parametrize("batch_tokens", [1, 7, 100])
def test_target_batches(
    batch_tokens: int, max_length: int, on_host: bool, targets_of: Callable[[Lists], Targets]
) -> None:
    user = 0
    targets = DeviceTargets(targets_of(LISTS), CPU, on_host=on_host)
    assert len(targets) == len(LISTS)
    for batch in targets.batches(batch_tokens, max_length, masked=False):
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


@pytest.mark.parametrize("masked", [False, True])
def test_target_batches_are_as_large_as_they_may_be(
    masked: bool, targets_of: Callable[[Lists], Targets]
) -> None:
    targets = DeviceTargets(targets_of([[1] * 5, [1] * 9, [1, 2], [1, 2], [1] * 4]), CPU)
    tokens = [batch.packing.num_tokens for batch in targets.batches(8, 6, masked=masked)]
    # Windows of 4, 6, 1, 1 and 3 items, and with the mask of 5, 6, 2, 2 and 4.
    assert tokens == ([5, 8, 6] if masked else [4, 8, 3])


def test_a_long_history_counts_beyond_its_window(targets_of: Callable[[Lists], Targets]) -> None:
    targets = DeviceTargets(targets_of([[1] * 33] * 6), CPU)
    # A window of 2 items, and 32 that are left out: as much as 4 tokens.
    assert [len(batch.packing) for batch in targets.batches(8, 2, masked=False)] == [2, 2, 2]
