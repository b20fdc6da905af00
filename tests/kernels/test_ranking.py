import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference, top_k
from objectives.memory import measured_memory

Pairs = set[tuple[int, int]]


def sorted_lists(states_BD: Tensor, table_VD: Tensor, k: int, seen: Pairs) -> list[list[int]]:
    """Score descending, then item id ascending; without NaN, -inf and seen items; -1 behind."""
    lists = []
    for row, state in enumerate(states_BD.double().tolist()):
        scores = {
            item: sum(a * b for a, b in zip(state, vector, strict=True))
            for item, vector in enumerate(table_VD.double().tolist())
            if (row, item) not in seen
        }
        kept = {i: s for i, s in scores.items() if not math.isnan(s) and s != -math.inf}
        best = sorted(kept, key=lambda item: (-kept[item], item))[:k]
        lists.append(best + [-1] * (k - len(best)))
    return lists


def as_tensors(seen: Pairs) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor(sorted(seen), dtype=torch.int64).view(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def integers(generator: torch.Generator, *shape: int) -> Tensor:
    """Small integers as floats: sums are exact and often equal."""
    return torch.randint(-2, 3, shape, generator=generator).float()


@given(
    num_rows=st.integers(1, 4),
    num_items=st.integers(1, 40),
    k=st.integers(1, 45),
    tile_elements=st.integers(1, 200),
    share_seen=st.sampled_from([0.0, 0.3, 0.95]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_lists_equal_a_plain_sort(
    num_rows: int,
    num_items: int,
    k: int,
    tile_elements: int,
    share_seen: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    states_BD, table_VD = integers(generator, num_rows, 2), integers(generator, num_items, 2)
    drawn = torch.rand(num_rows, num_items, generator=generator) < share_seen
    seen = {(row, item) for row, item in drawn.nonzero().tolist()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "TILE_ELEMENTS", tile_elements)
        ours = top_k(states_BD.to(dtype), table_VD.to(dtype), k, as_tensors(seen))
    assert ours.dtype == torch.int64
    assert ours.tolist() == sorted_lists(states_BD, table_VD, k, seen)


def test_negative_zero_ties_with_zero() -> None:
    # -1e-60 underflows to -0.0.
    table_VD = torch.tensor([[-1e-30], [1e-30], [-1e-30], [0.0], [1.0]])
    assert top_k(torch.full((3, 1), 1e-30), table_VD, 5).tolist() == [[4, 0, 1, 2, 3]] * 3


@pytest.mark.parametrize("tile_elements", [1, 1000])
def test_nan_and_minus_infinity_are_never_listed(
    tile_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "TILE_ELEMENTS", tile_elements)
    odd = [math.nan, -math.inf, -3e38, math.inf, 0.0, -math.nan, 3e38]
    table_VD = torch.tensor(odd)[:, None]
    assert top_k(torch.ones(1, 1), table_VD, 7).tolist() == [[3, 6, 4, 2, -1, -1, -1]]
    assert top_k(torch.full((2, 1), math.nan), table_VD, 2).tolist() == [[-1, -1], [-1, -1]]


def test_seen_items_are_left_out_of_their_own_rows_only() -> None:
    table_VD = torch.tensor([[3.0], [2.0], [1.0]])
    seen = (torch.tensor([0, 0, 0, 2]), torch.tensor([0, 2, 0, 1]))
    lists = top_k(torch.ones(3, 1), table_VD, 3, seen)
    assert lists.tolist() == [[1, -1, -1], [0, 1, 2], [0, 2, -1]]


def test_no_rows() -> None:
    assert top_k(torch.ones(0, 3), torch.ones(5, 3), 4).shape == (0, 4)


def test_random_scores_in_bfloat16_are_ranked_by_their_float32_products() -> None:
    generator = torch.Generator().manual_seed(1)
    states_BD = torch.randn(6, 16, generator=generator).bfloat16()
    table_VD = torch.randn(500, 16, generator=generator).bfloat16()
    scores_BV = states_BD.float() @ table_VD.float().T
    assert torch.equal(top_k(states_BD, table_VD, 20), scores_BV.topk(20).indices)


def test_autocast_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    states_BD = torch.randn(6, 16, generator=generator)
    table_VD = torch.randn(500, 16, generator=generator)
    plain = top_k(states_BD, table_VD, 100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(top_k(states_BD, table_VD, 100), plain)


def test_the_peak_does_not_grow_with_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "TILE_ELEMENTS", 4096)
    peaks = []
    for num_items in (4096, 40_960):
        table_VD = torch.ones(num_items, 2)
        with measured_memory(torch.device("cpu"), 1 << 40) as memory:
            top_k(torch.ones(8, 2), table_VD, 10)
        peaks.append(memory.peak - table_VD.nbytes)
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("k", [0, -1])
def test_lists_have_at_least_one_place(k: int) -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(torch.ones(1, 2), torch.ones(3, 2), k)


@pytest.mark.parametrize(("states", "table"), [((1, 2), (3, 4)), ((2,), (3, 2)), ((1, 2), (2,))])
def test_widths_must_agree(states: tuple[int, ...], table: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be matrices of one width"):
        top_k(torch.ones(states), torch.ones(table), 1)
