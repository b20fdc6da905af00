import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import Uniform
from kernels.candidates import philox

CPU = torch.device("cpu")


def draw(
    seed: int, groups: int, candidates: int, num_items: int, *, first_group: int = 0
) -> Tensor:
    return Uniform(candidates, seed).draw(first_group, groups, num_items, CPU)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_answers_the_known_vectors_of_random123(
    counter: str, key: str, expected: str
) -> None:
    low, high = words(key)
    assert philox(low | high << 32, torch.tensor(words(counter))).tolist() == words(expected)


def test_philox_works_on_counters_of_any_shape() -> None:
    counters = torch.randint(0, 1 << 32, (4, 2, 3, 5), generator=torch.Generator().manual_seed(0))
    together = philox(99, counters)
    assert together.shape == counters.shape
    for i, j, k in np.ndindex(2, 3, 5):
        assert torch.equal(together[:, i, j, k], philox(99, counters[:, i, j, k]))


def test_the_draw_is_the_high_word_of_the_random_number_times_the_items() -> None:
    seed, num_items = 0xDEAD_BEEF_0123_4567, 2**31 - 1
    ids_GK = draw(seed, 3, 5, num_items, first_group=7)
    for group, slot in np.ndindex(3, 5):
        high, low, _, _ = philox(seed, torch.tensor([slot, 7 + group, 0, 0])).tolist()
        assert ids_GK[group, slot] == ((high << 32 | low) * num_items) >> 64


def test_the_draw_equals_tritons_philox_bit_for_bit() -> None:
    pytest.importorskip("triton")
    cases = [
        [0, 0, 2, 5, 2],
        [0xFFFF_FFFF_FFFF_FFFF, 3, 3, 4, 10_000_000],
        [0x0123_4567_89AB_CDEF, 2**31, 2, 7, 2**31 - 1],
        [42 << 32 | 17, 1000, 1, 33, 997],
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("philox_in_triton.py"))],
        input=json.dumps(cases),
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours = [
        draw(seed, groups, candidates, items, first_group=first).tolist()
        for seed, first, groups, candidates, items in cases
    ]
    assert json.loads(done.stdout) == ours


@given(
    seed=st.integers(0, 2**64 - 1),
    first=st.integers(0, 2**31),
    pieces=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    num_items=st.integers(2, 2**31 - 1),
)
def test_pieces_of_a_draw_equal_the_whole(
    seed: int, first: int, pieces: list[int], num_items: int
) -> None:
    whole = draw(seed, sum(pieces), 6, num_items, first_group=first)
    starts = np.cumsum([first, *pieces[:-1]])
    parts = [
        draw(seed, piece, 6, num_items, first_group=int(start))
        for start, piece in zip(starts, pieces, strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_fewer_candidates_are_the_first_of_more() -> None:
    assert torch.equal(draw(5, 4, 3, 1000), draw(5, 4, 9, 1000)[:, :3])


@pytest.mark.parametrize("num_items", [2, 3, 997, 10_000_000])
def test_draws_lie_in_the_catalogue_and_span_it(num_items: int) -> None:
    ids_GK = draw(11, 64, 512, num_items)
    assert ids_GK.dtype == torch.int64
    assert ids_GK.min() >= 0
    assert ids_GK.max() < num_items
    assert ids_GK.min() <= num_items // 1000
    assert ids_GK.max() >= num_items - 1 - num_items // 1000


@pytest.mark.parametrize("num_items", [2, 3, 10, 997])
def test_draws_are_uniform(num_items: int) -> None:
    ids = draw(2, 100, 2000, num_items).flatten()
    expected = len(ids) / num_items
    chi_square = float(((ids.bincount(minlength=num_items) - expected) ** 2 / expected).sum())
    freedom = num_items - 1
    # Wilson-Hilferty: the cube root of chi-square / freedom is close to normal.
    variance = 2 / (9 * freedom)
    deviations = ((chi_square / freedom) ** (1 / 3) - (1 - variance)) / variance**0.5
    assert abs(deviations) < 4


def test_neighbouring_draws_are_independent() -> None:
    ids_GK = draw(3, 200, 200, 1000).double()
    for left, right in ((ids_GK[:, 1:], ids_GK[:, :-1]), (ids_GK[1:], ids_GK[:-1])):
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4 / left.numel() ** 0.5


def test_seeds_groups_and_slots_differ() -> None:
    num_items = 2**31 - 1
    ids_GK = draw(1, 50, 50, num_items)
    assert len(set(ids_GK.flatten().tolist())) == ids_GK.numel()
    for seed in (0, 2, 1 | 1 << 32, 1 << 32):
        assert not torch.isin(draw(seed, 50, 50, num_items), ids_GK).any()


def test_a_draw_is_a_function_of_its_arguments() -> None:
    assert torch.equal(draw(8, 3, 4, 100), draw(8, 3, 4, 100))
    assert draw(8, 0, 4, 100).shape == (0, 4)


@pytest.mark.parametrize("num_candidates", [0, -1])
def test_at_least_one_candidate(num_candidates: int) -> None:
    with pytest.raises(ValueError, match="num_candidates"):
        Uniform(num_candidates, seed=0)
