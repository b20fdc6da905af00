import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.bert4rec import MASK
from models.packing import Packing
from objectives.data import Sequences
from objectives.data.batches import NO_TARGET, Plan, TrainingBatch, TrainingBatches
from objectives.data.sequences import DeviceSequences

CPU = torch.device("cpu")
Lists = list[list[int]]
MakeSequences = Callable[[Lists], Sequences]
LISTS = [[1, 2], [3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14], [2, 1], [15, 16, 17]]


def make(sequences: Sequences, *, on_host: bool = False, **settings: Any) -> TrainingBatches:
    usual: dict[str, Any] = {"batch_size": 100, "parts": 1, "max_length": 10, "mask_share": None}
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    return TrainingBatches(
        DeviceSequences(sequences, CPU, on_host=on_host),
        generator=generator,
        **usual | {"fixed_sizes": False} | settings,
    )


def assembled(batches: TrainingBatches, plan: Plan) -> TrainingBatch:
    return batches.assemble(torch.from_numpy(plan.numbers), plan.shape)


def epoch(batches: TrainingBatches) -> list[TrainingBatch]:
    """The batches of an epoch, all in one part."""
    return [assembled(batches, plan) for (plan,) in batches.epoch()]


def split(values_T: Tensor, packing: Packing) -> Lists:
    """The values of each sequence."""
    return [part.tolist() for part in torch.split(values_T, packing.offsets_B1.diff().tolist())]


def pairs(batch: TrainingBatch) -> list[list[tuple[int, int]]]:
    """(item, next item) at the tokens of each sequence that predict."""
    assert batch.rows_N.tolist() == list(range(batch.packing.num_tokens))
    ids, targets = (split(values, batch.packing) for values in (batch.ids_T, batch.targets_N))
    found = [zip(*each, strict=True) for each in zip(ids, targets, strict=True)]
    return [[pair for pair in each if pair[1] != NO_TARGET] for each in found]


def successions(ids: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(ids))


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("fixed_sizes", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_an_epoch_has_every_sequence_once_and_every_next_item(
    batch_size: int, fixed_sizes: bool, on_host: bool, sequences_of: MakeSequences
) -> None:
    batches = make(
        sequences_of(LISTS), batch_size=batch_size, fixed_sizes=fixed_sizes, on_host=on_host
    )
    plans = list(batches.epoch())
    assert len(plans) == len(batches) == -(-len(LISTS) // batch_size)
    found = [pairs(assembled(batches, plan)) for (plan,) in plans]
    sequences = [pairs_ for each in found for pairs_ in each if pairs_]
    assert sorted(sequences) == sorted(successions(ids) for ids in LISTS)
    for (plan,), each in zip(plans, found, strict=True):
        assert plan.num_predictions == plan.num_items == sum(map(len, each))


@pytest.mark.parametrize("fixed_sizes", [False, True])
@pytest.mark.parametrize("max_length", [1, 2, 3])
def test_the_most_recent_predictions_are_kept(
    max_length: int, fixed_sizes: bool, sequences_of: MakeSequences
) -> None:
    (batch,) = epoch(make(sequences_of(LISTS), max_length=max_length, fixed_sizes=fixed_sizes))
    assert batch.packing.longest == max_length
    assert batch.packing.position_T.max() == max_length - 1
    assert batch.ids_T.dtype == batch.targets_N.dtype == torch.int64
    expected = sorted(successions(ids)[-max_length:] for ids in LISTS)
    assert sorted(found for found in pairs(batch) if found) == expected


def test_no_token_is_a_filler_where_sizes_are_free(sequences_of: MakeSequences) -> None:
    batches = make(sequences_of([*LISTS, [7]]), max_length=50)
    (plan,) = batches.plans(np.array([1, 6, 0]))
    batch = assembled(batches, plan)
    assert batch.ids_T.tolist() == [3, 4, 5, 6, 1]
    assert batch.targets_N.tolist() == [4, 5, 6, 7, 2]
    assert batch.packing.offsets_B1.tolist() == [0, 4, 4, 5]
    assert batch.packing.longest == 4
    assert batch.num_predictions == 5


def test_fillers_are_the_first_item_and_see_no_others(sequences_of: MakeSequences) -> None:
    batches = make(sequences_of(LISTS), batch_size=6, max_length=7, fixed_sizes=True)
    (plan,) = batches.plans(np.array([1, 0, 2]))
    batch = assembled(batches, plan)
    assert plan.shape == (6, 16, 16, 7, 3)
    assert batch.ids_T.tolist() == [3, 4, 5, 6, 1, 8, 9] + [3] * 9
    assert batch.targets_N.tolist() == [4, 5, 6, 7, 2, 9, 10] + [NO_TARGET] * 9
    # Three sequences, three that are missing, and fillers of at most seven tokens.
    assert batch.packing.offsets_B1.tolist() == [0, 4, 5, 7, 7, 7, 7, 14, 16, 16]
    assert batch.num_predictions == 7


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    batch_size=st.integers(1, 12),
    parts=st.integers(1, 3),
    max_length=st.integers(1, 40),
    masked=st.booleans(),
    on_host=st.booleans(),
)
def test_fixed_sizes_change_no_prediction(
    lengths: list[int], batch_size: int, parts: int, max_length: int, masked: bool, on_host: bool
) -> None:
    items = np.random.default_rng(0).integers(0, 1000, sum(lengths)).astype(np.int32)
    sequences = Sequences(items, np.cumsum([0, *lengths], dtype=np.int64))
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "parts": parts,
        "max_length": max_length,
        "mask_share": 0.3 if masked else None,
    }
    free = make(sequences, **settings)
    fixed = make(sequences, fixed_sizes=True, on_host=on_host, **settings)
    for ours, theirs in zip(free.epoch(), fixed.epoch(), strict=True):
        for part, same in zip(ours, theirs, strict=True):
            batch, filled = assembled(free, part), assembled(fixed, same)
            assert len(filled.ids_T) == same.shape.num_tokens == filled.packing.num_tokens
            assert filled.packing.offsets_B1[-1] == same.shape.num_tokens
            assert len(filled.targets_N) == same.shape.num_rows
            assert filled.packing.offsets_B1.diff().max() <= same.shape.longest == max_length
            assert torch.equal(batch.ids_T, filled.ids_T[: part.num_items])
            predicts_N = filled.targets_N != NO_TARGET
            assert torch.equal(batch.rows_N, filled.rows_N[predicts_N])
            assert torch.equal(batch.targets_N, filled.targets_N[predicts_N])
            assert batch.num_predictions == filled.num_predictions


def test_few_shapes_occur_and_few_tokens_are_fillers(sequences_of: MakeSequences) -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 5000).clip(2, 2000).astype(int)
    sequences = Sequences(
        np.zeros(lengths.sum(), np.int32), np.concatenate([[0], lengths.cumsum()])
    )
    batches = make(sequences, batch_size=128, max_length=512, fixed_sizes=True)
    plans = [plan for _ in range(5) for (plan,) in batches.epoch()]
    assert len({plan.shape for plan in plans}) < 25
    real, computed = (
        sum(numbers)
        for numbers in zip(*[(p.num_items, p.shape.num_tokens) for p in plans], strict=True)
    )
    assert real / computed > 0.97


def test_the_batch_with_most_tokens_comes_first(sequences_of: MakeSequences) -> None:
    batches = make(sequences_of([[1] * length for length in range(2, 40)]), batch_size=4)
    for _ in range(3):
        sizes = [plan.num_items for (plan,) in batches.epoch()]
        assert sizes[0] == max(sizes)
        assert sizes[1:] != sorted(sizes[1:])


def test_the_largest_batch_has_the_longest_sequence_of_every_stratum(
    sequences_of: MakeSequences,
) -> None:
    batches = make(
        sequences_of([[1, 2], [3, 4, 5, 6, 7, 8, 9], [1, 2, 3], [9, 8]]),
        batch_size=2,
        max_length=5,
    )
    (plan,) = batches.largest()
    batch = assembled(batches, plan)
    # The strata are the sequences of two items and those of more.
    assert batch.packing.offsets_B1.tolist() == [0, 1, 6]
    assert batch.targets_N.tolist() == [8, 5, 6, 7, 8, 9]


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    batch_size=st.integers(1, 20),
    max_length=st.integers(1, 70),
)
def test_the_batches_of_an_epoch_are_of_one_size_and_none_exceeds_the_largest(
    lengths: list[int], batch_size: int, max_length: int
) -> None:
    sequences = Sequences(
        np.zeros(sum(lengths), np.int32), np.cumsum([0, *lengths], dtype=np.int64)
    )
    batches = make(sequences, batch_size=batch_size, max_length=max_length)
    plans = [plan for (plan,) in batches.epoch()]
    sizes = {plan.shape.num_sequences for plan in plans}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    tokens = [plan.num_items for plan in plans]
    (largest,) = batches.largest()
    assert max(tokens) <= largest.num_items
    # A stratum ends where the next begins.
    assert largest.num_items - min(tokens) <= max_length


def test_the_order_follows_the_generator(sequences_of: MakeSequences) -> None:
    sequences = sequences_of([[item, item + 1] for item in range(50)])
    batches = [make(sequences, batch_size=8, seed=seed) for seed in (1, 1, 2)]
    first, again, other = ([batch.targets_N.tolist() for batch in epoch(each)] for each in batches)
    assert first == again
    assert first != other
    assert first != [batch.targets_N.tolist() for batch in epoch(batches[0])]


@pytest.mark.parametrize("parts", [1, 2, 5, 100])
def test_a_batch_may_come_in_parts(parts: int, sequences_of: MakeSequences) -> None:
    batches = make(sequences_of(LISTS), batch_size=4, parts=parts)
    found = list(batches.epoch())
    assert list(map(len, found)) == [min(parts, 3)] * 2
    targets = []
    for plans in found:
        whole = [assembled(batches, plan) for plan in plans]
        predictions = sum(len(part.targets_N) for part in whole)
        assert all(part.num_predictions == predictions for part in whole)
        targets += [target for part in whole for target in part.targets_N.tolist()]
    assert sorted(targets) == sorted(item for ids in LISTS for item in ids[1:])


def masked(share: float, sequences: Sequences, seed: int = 0) -> TrainingBatch:
    """All sequences in their order, their last four items."""
    batches = make(sequences, max_length=4, mask_share=share, seed=seed)
    (plan,) = batches.plans(np.arange(len(sequences.lengths)))
    return assembled(batches, plan)


@pytest.mark.parametrize("share", [1e-6, 0.4, 1.0])
def test_masked_items_are_predicted_and_no_others_change(
    share: float, sequences_of: MakeSequences
) -> None:
    batch = masked(share, sequences_of(LISTS))
    recent = [item for ids in LISTS for item in ids[-4:]]
    rows = batch.rows_N.tolist()
    assert [place for place, item in enumerate(batch.ids_T.tolist()) if item == MASK] == rows
    assert batch.targets_N.tolist() == [recent[row] for row in rows]
    restored_T = batch.ids_T.index_copy(0, batch.rows_N, batch.targets_N)
    assert restored_T.tolist() == recent


def test_a_sequence_without_a_mask_gets_one_at_its_end(sequences_of: MakeSequences) -> None:
    batch = masked(1e-6, sequences_of(LISTS))
    assert batch.rows_N.tolist() == batch.packing.last_B.tolist()
    assert len(masked(1.0, sequences_of(LISTS)).rows_N) == batch.packing.num_tokens


def test_masks_follow_their_share_and_the_generator(sequences_of: MakeSequences) -> None:
    sequences = sequences_of([[1, 2, 3, 4]] * 500)
    first, again, other = (masked(0.4, sequences, seed).rows_N.tolist() for seed in (1, 1, 2))
    assert first == again != other
    # .4, and .25 of the .13 of sequences that would have none.
    assert len(first) / 2000 == pytest.approx(0.4 + 0.6**4 / 4, abs=0.04)
