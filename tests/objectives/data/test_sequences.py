import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.packing import Packing
from objectives.data import Sequences, Targets
from objectives.data.sequences import (
    DeviceSequences,
    TrainingBatch,
    target_batches,
    training_batch,
    training_batches,
)

CPU = torch.device("cpu")
Lists = list[list[int]]
LISTS = [[1, 2], [3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14], [2, 1], [15, 16, 17]]


def split(values_T: Tensor, packing: Packing) -> Lists:
    """The values of each sequence."""
    return [part.tolist() for part in torch.split(values_T, packing.offsets_B1.diff().tolist())]


def pairs(batch: TrainingBatch) -> list[list[tuple[int, int]]]:
    """(item, next item) at the tokens of each sequence."""
    ids, targets = (split(values, batch.packing) for values in (batch.ids_T, batch.targets_T))
    return [list(zip(*each, strict=True)) for each in zip(ids, targets, strict=True)]


def successions(ids: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(ids))


def epoch(
    sequences: Sequences, batch_size: int, max_length: int, seed: int = 0
) -> list[TrainingBatch]:
    generator = torch.Generator().manual_seed(seed)
    device = DeviceSequences(sequences, CPU)
    return [batch for (batch,) in training_batches(device, batch_size, 1, max_length, generator)]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_an_epoch_has_every_sequence_once_and_every_next_item(
    batch_size: int, sequences_of: Callable[[Lists], Sequences]
) -> None:
    batches = epoch(sequences_of(LISTS), batch_size, max_length=10)
    assert [len(batch.packing) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    found = [sequence for batch in batches for sequence in pairs(batch)]
    assert sorted(found) == sorted(successions(ids) for ids in LISTS)


@pytest.mark.parametrize("max_length", [1, 2, 3])
def test_the_most_recent_predictions_are_kept(
    max_length: int, sequences_of: Callable[[Lists], Sequences]
) -> None:
    (batch,) = epoch(sequences_of(LISTS), 100, max_length)
    assert batch.packing.longest == max_length
    assert batch.ids_T.dtype == batch.targets_T.dtype == torch.int64
    expected = sorted(successions(ids)[-max_length:] for ids in LISTS)
    assert sorted(pairs(batch)) == expected


def test_no_token_of_a_batch_is_padding(sequences_of: Callable[[Lists], Sequences]) -> None:
    sequences = DeviceSequences(sequences_of([*LISTS, [7]]), CPU)
    batch = training_batch(sequences, torch.tensor([1, 6, 0]), 50)
    assert batch.ids_T.tolist() == [3, 4, 5, 6, 1]
    assert batch.targets_T.tolist() == [4, 5, 6, 7, 2]
    assert batch.packing.offsets_B1.tolist() == [0, 4, 4, 5]
    assert batch.packing.longest == 4


def test_the_last_sequence_may_be_shorter_than_its_batch(
    sequences_of: Callable[[Lists], Sequences],
) -> None:
    (batch,) = epoch(sequences_of([[1, 2, 3, 4, 5, 6], [7, 8]]), 2, 10)
    assert sorted(pairs(batch)) == [successions([1, 2, 3, 4, 5, 6]), [(7, 8)]]


def test_the_order_follows_the_generator(sequences_of: Callable[[Lists], Sequences]) -> None:
    sequences = sequences_of([[item, item + 1] for item in range(50)])
    first, second, third = (
        [batch.targets_T.tolist() for batch in epoch(sequences, 8, 5, seed)] for seed in (1, 1, 2)
    )
    assert first == second
    assert first != third
    generator = torch.Generator().manual_seed(1)
    device = DeviceSequences(sequences, CPU)
    epochs = [
        [batch.targets_T.tolist() for (batch,) in training_batches(device, 8, 1, 5, generator)]
        for _ in range(2)
    ]
    assert epochs[0] == first
    assert epochs[1] != first


@pytest.mark.parametrize("parts", [1, 2, 5, 100])
def test_a_batch_may_come_in_parts(parts: int, sequences_of: Callable[[Lists], Sequences]) -> None:
    sequences = DeviceSequences(sequences_of(LISTS), CPU)
    generator = torch.Generator().manual_seed(0)
    batches = list(training_batches(sequences, 4, parts, 10, generator))
    assert [len(batch) for batch in batches] == [min(parts, 4), min(parts, 2)]
    found = [sequence for batch in batches for part in batch for sequence in pairs(part)]
    assert sorted(found) == sorted(successions(ids) for ids in LISTS)


@pytest.mark.parametrize("max_length", [2, 50])
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_target_batches(
    batch_size: int, max_length: int, targets_of: Callable[[Lists], Targets]
) -> None:
    user = 0
    for batch in target_batches(targets_of(LISTS), batch_size, max_length, CPU):
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
