import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data import Sequences, Targets
from objectives.data.sequences import (
    DeviceSequences,
    DeviceTargets,
    TrainingBatch,
    masked_batch,
    next_item_batch,
    shuffled_batches,
)

CPU = torch.device("cpu")
Lists = list[list[int]]
LISTS = [[1, 2], [3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14], [2, 1], [15, 16, 17]]


def split(values_T: Tensor, packing: Packing) -> Lists:
    """The values of each sequence."""
    return [part.tolist() for part in torch.split(values_T, packing.offsets_B1.diff().tolist())]


def pairs(batch: TrainingBatch) -> list[list[tuple[int, int]]]:
    """(item, next item) at the tokens of each sequence."""
    assert batch.rows_N.tolist() == list(range(batch.packing.num_tokens))
    ids, targets = (split(values, batch.packing) for values in (batch.ids_T, batch.targets_N))
    return [list(zip(*each, strict=True)) for each in zip(ids, targets, strict=True)]


def successions(ids: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(ids))


def epoch(
    sequences: Sequences, batch_size: int, max_length: int, seed: int = 0
) -> list[TrainingBatch]:
    generator = torch.Generator().manual_seed(seed)
    device = DeviceSequences(sequences, CPU)
    return [
        next_item_batch(device, rows_B, max_length)
        for (rows_B,) in shuffled_batches(len(device), batch_size, 1, generator)
    ]


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
    assert batch.ids_T.dtype == batch.targets_N.dtype == torch.int64
    expected = sorted(successions(ids)[-max_length:] for ids in LISTS)
    assert sorted(pairs(batch)) == expected


def test_no_token_of_a_batch_is_padding(sequences_of: Callable[[Lists], Sequences]) -> None:
    sequences = DeviceSequences(sequences_of([*LISTS, [7]]), CPU)
    batch = next_item_batch(sequences, torch.tensor([1, 6, 0]), 50)
    assert batch.ids_T.tolist() == [3, 4, 5, 6, 1]
    assert batch.targets_N.tolist() == [4, 5, 6, 7, 2]
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
        [batch.targets_N.tolist() for batch in epoch(sequences, 8, 5, seed)] for seed in (1, 1, 2)
    )
    assert first == second
    assert first != third
    generator = torch.Generator().manual_seed(1)
    orders = [
        [rows_B.tolist() for (rows_B,) in shuffled_batches(50, 8, 1, generator)] for _ in range(2)
    ]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("parts", [1, 2, 5, 100])
def test_a_batch_may_come_in_parts(parts: int, sequences_of: Callable[[Lists], Sequences]) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = list(shuffled_batches(6, 4, parts, generator))
    assert [len(batch) for batch in batches] == [min(parts, 4), min(parts, 2)]
    assert sorted(torch.cat([part for batch in batches for part in batch]).tolist()) == [*range(6)]


def masked(share: float, sequences: Sequences, seed: int = 0) -> TrainingBatch:
    """All sequences, their last four items."""
    generator = torch.Generator().manual_seed(seed)
    device = DeviceSequences(sequences, CPU)
    return masked_batch(device, torch.arange(len(device)), 4, share, generator)


@pytest.mark.parametrize("share", [1e-6, 0.4, 1.0])
def test_masked_items_are_predicted_and_no_others_change(
    share: float, sequences_of: Callable[[Lists], Sequences]
) -> None:
    batch = masked(share, sequences_of(LISTS))
    recent = [item for ids in LISTS for item in ids[-4:]]
    rows = batch.rows_N.tolist()
    assert [place for place, item in enumerate(batch.ids_T.tolist()) if item == MASK] == rows
    assert batch.targets_N.tolist() == [recent[row] for row in rows]
    restored_T = batch.ids_T.index_copy(0, batch.rows_N, batch.targets_N)
    assert restored_T.tolist() == recent


def test_a_sequence_without_a_mask_gets_one_at_its_end(
    sequences_of: Callable[[Lists], Sequences],
) -> None:
    batch = masked(1e-6, sequences_of(LISTS))
    assert batch.rows_N.tolist() == batch.packing.last_B.tolist()
    assert len(masked(1.0, sequences_of(LISTS)).rows_N) == batch.packing.num_tokens


def test_masks_follow_their_share_and_the_generator(
    sequences_of: Callable[[Lists], Sequences],
) -> None:
    sequences = sequences_of([[1, 2, 3, 4]] * 500)
    first, again, other = (masked(0.4, sequences, seed).rows_N.tolist() for seed in (1, 1, 2))
    assert first == again != other
    # .4, and .25 of the .13 of sequences that would have none.
    assert len(first) / 2000 == pytest.approx(0.4 + 0.6**4 / 4, abs=0.04)


@pytest.mark.parametrize("max_length", [1, 3, 50])
def test_a_mask_stands_in_the_place_of_the_target(
    max_length: int, targets_of: Callable[[Lists], Targets]
) -> None:
    targets = DeviceTargets(targets_of(LISTS), CPU)
    (batch,) = targets.batches(100, max_length, masked=True)
    expected = [[*history[:-1], MASK][-max_length:] for history in LISTS]
    assert split(batch.ids_T, batch.packing) == expected


@pytest.mark.parametrize("max_length", [2, 50])
@pytest.mark.parametrize("batch_tokens", [1, 7, 100])
def test_target_batches(
    batch_tokens: int, max_length: int, targets_of: Callable[[Lists], Targets]
) -> None:
    user = 0
    targets = DeviceTargets(targets_of(LISTS), CPU)
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
