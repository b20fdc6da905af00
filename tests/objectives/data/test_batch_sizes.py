import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from objectives.data import Sequences
from objectives.data.batch_sizes import Lengths
from objectives.data.batches import TrainingBatches
from objectives.data.sequences import DeviceSequences


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    batch_size=st.integers(1, 20),
    parts=st.integers(1, 4),
    max_length=st.integers(1, 70),
    masked=st.booleans(),
)
def test_the_largest_shape_is_that_of_the_largest_batch(
    lengths: list[int], batch_size: int, parts: int, max_length: int, masked: bool
) -> None:
    sequences = Sequences(
        np.zeros(sum(lengths), np.int32), np.cumsum([0, *lengths], dtype=np.int64)
    )
    batches = TrainingBatches(
        DeviceSequences(sequences, torch.device("cpu")),
        batch_size=batch_size,
        parts=parts,
        max_length=max_length,
        mask_share=0.3 if masked else None,
        generator=torch.Generator().manual_seed(0),
        fixed_sizes=True,
    )
    shape = Lengths(np.array(lengths)).largest_shape(
        batch_size=batch_size,
        parts=parts,
        max_length=max_length,
        mask_share=0.3 if masked else None,
    )
    (largest, *_) = batches.largest()
    assert shape._replace(num_rows=0) == largest.shape._replace(num_rows=0)
    if masked:
        assert largest.shape.num_rows <= shape.num_rows <= shape.num_tokens
    else:
        assert largest.shape.num_rows == shape.num_rows


@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    ahead=st.integers(0, 1),
    most=st.integers(1, 70),
)
def test_the_mean_is_that_of_the_tokens(lengths: list[int], ahead: int, most: int) -> None:
    tokens = (np.array(lengths) - ahead).clip(0, most)
    assert Lengths(np.array(lengths)).mean(ahead, most) == pytest.approx(tokens.mean())


def test_a_larger_batch_or_length_has_no_fewer_tokens() -> None:
    lengths = Lengths(np.random.default_rng(0).lognormal(3, 1, 3000).astype(np.int64) + 2)

    def tokens(batch_size: int, max_length: int) -> int:
        shape = lengths.largest_shape(
            batch_size=batch_size, parts=1, max_length=max_length, mask_share=None
        )
        return shape.num_tokens

    for sizes in (
        [tokens(batch_size, 50) for batch_size in range(8, 3000, 31)],
        [tokens(64, max_length) for max_length in range(8, 300, 7)],
    ):
        # Up to what is filled.
        assert all(b > 0.95 * a for a, b in itertools.pairwise(sizes))
