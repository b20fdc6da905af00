import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import reference, reference_ranking, target_ranks, top_k
from kernels.gpu import Gpu, simulated_gpu
from objectives.memory import measured_memory

Pairs = list[tuple[int, int]]
BACKENDS = ["eager", "triton"]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TYPES = [(FP32, FP32), (BF16, BF16), (BF16, FP32)]
"""Of states and tables: each is multiplied in another way."""
LAUNCH = "kernels.triton_ranking_launch"


@contextmanager
def ranking_on(backend: str, tile_elements: int = 1 << 22) -> Iterator[None]:
    """A backend, and the elements of a tile; in Triton with few groups, so that passes are two."""
    with pytest.MonkeyPatch.context() as patch:
        if backend == "triton":
            pytest.importorskip("triton")
            patch.setattr(f"{LAUNCH}._LEAST_GROUPS", 32)
        patch.setenv("PARETOCUT_KERNELS", backend)
        patch.setattr(reference, "TILE_ELEMENTS", tile_elements)
        yield


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


def ranks_in(lists: list[list[int]], targets: list[int], num_items: int) -> list[int]:
    """Where the targets stand in lists of all items, V + 1 where they do not."""
    return [
        items.index(target) + 1 if target in items else num_items + 1
        for items, target in zip(lists, targets, strict=True)
    ]


def as_tensors(seen: Pairs, device: torch.device) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor(seen, dtype=torch.int64, device=device).view(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def integers(generator: torch.Generator, *shape: int) -> Tensor:
    """Small integers as floats: sums are exact and often equal."""
    return torch.randint(-2, 3, shape, generator=generator).float()


def random_pairs(
    generator: torch.Generator, num_pairs: int, num_rows: int, num_items: int
) -> tuple[Tensor, Tensor]:
    """Seen pairs, some twice."""
    rows_P = torch.randint(num_rows, (num_pairs,), generator=generator)
    ids_P = torch.randint(num_items, (num_pairs,), generator=generator)
    return rows_P.repeat(2), ids_P.repeat(2)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(
    num_rows=st.integers(1, 4),
    num_items=st.integers(1, 40),
    k=st.integers(1, 45),
    tile_elements=st.integers(1, 200),
    share_seen=st.sampled_from([0.0, 0.3, 0.95]),
    dtypes=st.sampled_from([*TYPES, (torch.float64, torch.float64)]),
    seed=st.integers(0, 1000),
)
def test_lists_and_ranks_equal_a_plain_sort(
    backend: str,
    device: torch.device,
    num_rows: int,
    num_items: int,
    k: int,
    tile_elements: int,
    share_seen: float,
    dtypes: tuple[torch.dtype, torch.dtype],
    seed: int,
) -> None:
    if backend == "triton" and torch.float64 in dtypes:
        dtypes = FP16, FP16
    generator = torch.Generator().manual_seed(seed)
    states_BD, table_VD = integers(generator, num_rows, 2), integers(generator, num_items, 2)
    targets_B = torch.randint(num_items, (num_rows,), generator=generator)
    drawn = torch.rand(num_rows, num_items, generator=generator) < share_seen
    seen: Pairs = [(row, item) for row, item in drawn.nonzero().tolist()]
    given = as_tensors(seen[::-1] + seen[::3], device)
    states, table = states_BD.to(device, dtypes[0]), table_VD.to(device, dtypes[1])
    with ranking_on(backend, tile_elements):
        lists_Bk = top_k(states, table, k, given)
        ranks_B = target_ranks(states, table, targets_B.to(device), given)
    assert lists_Bk.dtype == ranks_B.dtype == torch.int64
    assert lists_Bk.tolist() == sorted_lists(states_BD, table_VD, k, seen)
    lists = sorted_lists(states_BD, table_VD, num_items, seen)
    assert ranks_B.tolist() == ranks_in(lists, targets_B.tolist(), num_items)


@pytest.mark.parametrize(
    ("shape", "k", "num_pairs", "dtypes"),
    [
        ((1, 2, 1), 1, 0, (FP32, FP32)),
        ((1, 997, 50), 1, 9, (FP32, FP32)),
        ((40, 300, 1), 2, 100, (BF16, BF16)),
        ((40, 140, 192), 3, 0, (FP16, FP16)),
        ((5, 300, 50), 20, 40, (FP32, BF16)),
        ((5, 300, 50), 3, 40, (BF16, FP16)),
        ((40, 300, 1), 2, 100, (BF16, FP32)),
        ((5, 140, 200), 20, 40, (BF16, FP32)),
        ((2, 70, 300), 3, 40, (BF16, FP32)),
        ((2, 70, 300), 3, 40, (BF16, BF16)),
        ((5, 140, 50), 143, 40, (FP32, FP32)),
        ((3, 97, 2), 5, 600, (FP32, FP32)),
    ],
)
@pytest.mark.usefixtures("triton_backend")
def test_backends_agree_where_scores_are_exact(
    shape: tuple[int, int, int],
    k: int,
    num_pairs: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    device: torch.device,
) -> None:
    num_rows, num_items, width = shape
    generator = torch.Generator().manual_seed(num_items)
    states_BD = integers(generator, num_rows, width).to(device, dtypes[0])
    table_VD = integers(generator, num_items, width).to(device, dtypes[1])
    targets_B = torch.randint(num_items, (num_rows,), generator=generator).to(device)
    rows_P, ids_P = random_pairs(generator, num_pairs, num_rows, num_items)
    seen = (rows_P.to(device), ids_P.to(device)) if num_pairs else None
    with ranking_on("triton"):
        assert torch.equal(
            top_k(states_BD, table_VD, k, seen),
            reference_ranking.top_k(states_BD, table_VD, k, seen),
        )
        assert torch.equal(
            target_ranks(states_BD, table_VD, targets_B, seen),
            reference_ranking.target_ranks(states_BD, table_VD, targets_B, seen),
        )


@pytest.mark.parametrize("tile", [(16, 64, 4, 2), (32, 16, 4, 3)])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.usefixtures("triton_backend")
def test_tiles_change_nothing(
    dtype: torch.dtype,
    tile: tuple[int, int, int, int],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kernels.launch import Tile

    generator = torch.Generator().manual_seed(7)
    states_BD = integers(generator, 40, 20).to(device, dtype)
    table_VD = integers(generator, 300, 20).to(device)
    targets_B = torch.randint(300, (40,), generator=generator).to(device)
    rows_P, ids_P = random_pairs(generator, 90, 40, 300)
    seen = rows_P.to(device), ids_P.to(device)
    monkeypatch.setattr(f"{LAUNCH}._MEASURED", {"ranks": Tile(*tile), "lists": Tile(*tile)})
    with ranking_on("triton"):
        lists_Bk = top_k(states_BD, table_VD, 5, seen)
        ranks_B = target_ranks(states_BD, table_VD, targets_B, seen)
    assert torch.equal(lists_Bk, reference_ranking.top_k(states_BD, table_VD, 5, seen))
    expected_B = reference_ranking.target_ranks(states_BD, table_VD, targets_B, seen)
    assert torch.equal(ranks_B, expected_B)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", TYPES)
def test_equal_items_tie_whatever_is_rounded(
    backend: str, dtypes: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(3)
    states_BD = torch.randn(20, 80, generator=generator).to(device, dtypes[0])
    half_VD = torch.randn(96, 80, generator=generator).to(device, dtypes[1])
    table_VD = half_VD.repeat(2, 1)
    targets_B = torch.randint(96, (20,), generator=generator).to(device)
    rows_P, ids_P = random_pairs(generator, 200, 20, 96)
    # Both of two equal items are seen, or none.
    seen = rows_P.repeat(2).to(device), torch.cat([ids_P, ids_P + 96]).to(device)
    with ranking_on(backend):
        lists_Bk = top_k(states_BD, table_VD, 8, seen)
        ranks_B, next_B = (
            target_ranks(states_BD, table_VD, targets_B + add, seen) for add in (0, 96)
        )
    assert torch.equal(lists_Bk[:, 1::2], lists_Bk[:, ::2] + 96)
    seen_B = ranks_B == 193
    assert 0 < seen_B.sum() < 20
    assert torch.equal(next_B == 193, seen_B)
    assert torch.equal(next_B[~seen_B], ranks_B[~seen_B] + 1)
    assert (ranks_B % 2 == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", TYPES)
def test_ranks_are_places_in_the_lists(
    backend: str, dtypes: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(4)
    states_BD = torch.randn(6, 16, generator=generator).to(device, dtypes[0])
    table_VD = torch.randn(200, 16, generator=generator).to(device, dtypes[1])
    rows_P, ids_P = random_pairs(generator, 90, 6, 200)
    seen = rows_P.to(device), ids_P.to(device)
    with ranking_on(backend):
        lists_BV = top_k(states_BD, table_VD, 200, seen)
        for place in (0, 1, 50):
            ranks_B = target_ranks(states_BD, table_VD, lists_BV[:, place].contiguous(), seen)
            assert ranks_B.tolist() == [place + 1] * 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_negative_zero_ties_with_zero(
    backend: str, dtype: torch.dtype, device: torch.device
) -> None:
    # -1e-60 underflows to -0.0.
    table_VD = torch.tensor([[-1e-30], [1e-30], [-1e-30], [0.0], [1.0]], device=device)
    states_BD = torch.full((3, 1), 1e-30, dtype=dtype, device=device)
    with ranking_on(backend):
        assert top_k(states_BD, table_VD, 5).tolist() == [[4, 0, 1, 2, 3]] * 3
        targets_B = torch.tensor([1, 3, 0], device=device)
        assert target_ranks(states_BD, table_VD, targets_B).tolist() == [3, 5, 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tile_elements", [1, 1000])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_nan_and_minus_infinity_are_never_listed(
    backend: str, tile_elements: int, dtype: torch.dtype, device: torch.device
) -> None:
    # More than the largest bfloat16, and finite when rounded to TF32.
    odd = [math.nan, -math.inf, -3.4e38, math.inf, 0.0, -math.nan, 3.4e38]
    table_VD = torch.tensor(odd, device=device)[:, None]
    ones_BD = torch.ones(7, 1, dtype=dtype, device=device)
    targets_B = torch.arange(7, device=device)
    with ranking_on(backend, tile_elements):
        assert top_k(ones_BD[:1], table_VD, 7).tolist() == [[3, 6, 4, 2, -1, -1, -1]]
        assert top_k(ones_BD[:2] * math.nan, table_VD, 2).tolist() == [[-1, -1], [-1, -1]]
        ranks_B = target_ranks(ones_BD, table_VD, targets_B)
        assert ranks_B.tolist() == [8, 8, 4, 1, 3, 8, 2]
        assert target_ranks(ones_BD * math.nan, table_VD, targets_B).tolist() == [8] * 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_seen_items_are_left_out_of_their_own_rows_only(
    backend: str, device: torch.device
) -> None:
    table_VD = torch.tensor([[3.0], [2.0], [1.0]], device=device)
    seen = as_tensors([(0, 0), (0, 2), (0, 0), (2, 1)], device)
    states_BD = torch.ones(3, 1, device=device)
    with ranking_on(backend):
        lists = top_k(states_BD, table_VD, 3, seen)
        assert lists.tolist() == [[1, -1, -1], [0, 1, 2], [0, 2, -1]]
        for targets, expected in (
            ([0, 0, 0], [4, 1, 1]),
            ([1, 1, 1], [1, 2, 4]),
            ([2, 2, 2], [4, 3, 2]),
        ):
            targets_B = torch.tensor(targets, device=device)
            assert target_ranks(states_BD, table_VD, targets_B, seen).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_items", [7, 200])
def test_where_everything_is_seen_nothing_is_listed(
    backend: str, num_items: int, device: torch.device
) -> None:
    seen = as_tensors([(1, item) for item in range(num_items)] * 2, device)
    states_BD, table_VD = torch.ones(2, 3, device=device), torch.ones(num_items, 3, device=device)
    targets_B = torch.tensor([5, 5], device=device)
    with ranking_on(backend):
        assert top_k(states_BD, table_VD, 2, seen).tolist() == [[0, 1], [-1, -1]]
        ranks_B = target_ranks(states_BD, table_VD, targets_B, seen)
    assert ranks_B.tolist() == [6, num_items + 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_rank(backend: str, device: torch.device) -> None:
    table_VD, none = torch.ones(5, 3, device=device), torch.ones(0, 3, device=device)
    no_ids = torch.ones(0, dtype=torch.int64, device=device)
    with ranking_on(backend):
        assert top_k(none, table_VD, 4).shape == (0, 4)
        assert target_ranks(none, table_VD, no_ids).shape == (0,)
        assert top_k(table_VD[:1], none, 2, (no_ids, no_ids)).tolist() == [[-1, -1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [16, 200])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_random_scores_of_bfloat16_states_are_ranked_by_their_exact_products(
    backend: str, dtype: torch.dtype, width: int, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(1)
    states_BD = torch.randn(6, width, generator=generator).bfloat16().to(device)
    table_VD = torch.randn(150, width, generator=generator).to(device, dtype)
    ordered_BV = (states_BD.double() @ table_VD.double().T).argsort(descending=True)
    with ranking_on(backend):
        assert torch.equal(top_k(states_BD, table_VD, 10), ordered_BV[:, :10])
        for place in (0, 100):
            targets_B = ordered_BV[:, place].contiguous()
            assert target_ranks(states_BD, table_VD, targets_B).tolist() == [place + 1] * 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_digit_of_a_float32_item_counts(backend: str, device: torch.device) -> None:
    """Neighbours among float32 are listed in their order, and so are those far from 1."""
    steps_V = torch.randperm(200, generator=torch.Generator().manual_seed(8))
    for scale in (1.0, -1.0, 2.0**100, 2.0**-100):
        table_VD = (scale * (1 + steps_V * 2.0**-23))[:, None].to(device)
        expected_V = steps_V.argsort(descending=scale > 0).to(device)
        states_BD = torch.full((16, 1), 2.0, dtype=BF16, device=device)
        with ranking_on(backend):
            assert torch.equal(top_k(states_BD[:1], table_VD, 200)[0], expected_V)
            ranks_B = target_ranks(states_BD, table_VD, expected_V[40:56])
        assert ranks_B.tolist() == list(range(41, 57))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_and_layout_and_gradients_change_nothing(
    backend: str, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(2)
    states_BD = torch.randn(6, 16, generator=generator).to(device)
    table_VD = torch.randn(300, 16, generator=generator).to(device)
    targets_B = torch.randint(300, (12,), generator=generator).to(device)[::2]
    wide_VD = torch.cat([table_VD, table_VD], dim=1).requires_grad_()
    with ranking_on(backend):
        lists_Bk = top_k(states_BD, table_VD, 4)
        ranks_B = target_ranks(states_BD, table_VD, targets_B)
        with torch.autocast(device.type, dtype=BF16):
            for states in (states_BD.requires_grad_(), states_BD.T.contiguous().T):
                assert torch.equal(top_k(states, wide_VD[:, 16:], 4), lists_Bk)
                assert torch.equal(target_ranks(states, wide_VD[:, 16:], targets_B), ranks_B)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_peak_does_not_grow_with_the_catalogue(backend: str, device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("needs every tensor tracked")
    pytest.importorskip("triton")
    num_rows, sizes = 40, (2048, 4096)
    states_BD, seen = torch.ones(num_rows, 2), as_tensors([(0, 0)], device)
    targets_B = torch.ones(num_rows, dtype=torch.int64)
    peaks: list[int] = []
    # Nothing is launched: the interpreter lets go of tensors whenever it likes.
    with ranking_on(backend, tile_elements=4096), simulated_gpu(Gpu(9, 1)):
        for num_items in sizes:
            with measured_memory(device, 1 << 40) as memory:
                table_VD = torch.ones(num_items, 2)
                top_k(states_BD, table_VD, 10, seen)
                target_ranks(states_BD, table_VD, targets_B, seen)
            peaks.append(memory.peak - table_VD.nbytes)
    assert peaks[0] == peaks[1]
    # What bfloat16 logits would take.
    assert peaks[1] < 2 * num_rows * sizes[1]


@pytest.fixture
def reranked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows that the eager backend has ranked."""
    calls: list[int] = []
    plain = reference_ranking.top_k

    def spy(states_BD: Tensor, *rest: Any) -> Tensor:
        calls.append(len(states_BD))
        return plain(states_BD, *rest)

    monkeypatch.setattr(reference_ranking, "top_k", spy)
    return calls


class Crowded(NamedTuple):
    """The best items of rows 1 and 3 fall into few groups, and find no room."""

    states_BD: Tensor
    table_VD: Tensor
    seen: Pairs

    def lists(self, device: torch.device, *, exact: bool) -> list[list[int]]:
        """Two items each, of Triton."""
        states_BD, table_VD = self.states_BD.to(device), self.table_VD.to(device)
        with ranking_on("triton"):
            lists_Bk = top_k(states_BD, table_VD, 2, as_tensors(self.seen, device), exact=exact)
        ids: list[list[int]] = lists_Bk.tolist()
        return ids


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Crowded:
    monkeypatch.setattr(f"{LAUNCH}._LEAST_ROOM", 8)
    table_VD = torch.zeros(400, 2)
    table_VD[::32, 0] = torch.arange(13.0)
    table_VD[:, 1] = torch.arange(400.0)
    states_BD = torch.tensor([[0.0, 1.0], [100.0, 0.0], [0.0, -1.0], [100.0, 0.0]])
    return Crowded(states_BD, table_VD, [(1, 384), (3, 352), (3, 352), (2, 0), (0, 7)])


@pytest.mark.usefixtures("triton_backend")
def test_rows_with_more_good_items_than_room_are_ranked_again(
    crowded: Crowded, reranked: list[int], device: torch.device
) -> None:
    lists = crowded.lists(device, exact=True)
    assert lists == sorted_lists(crowded.states_BD, crowded.table_VD, 2, crowded.seen)
    # A card has other tiles, and groups of other items.
    assert reranked == [2] or device.type == "cuda"


@pytest.mark.usefixtures("triton_backend")
def test_where_nothing_waits_such_rows_have_the_best_of_groups(
    crowded: Crowded, reranked: list[int], device: torch.device
) -> None:
    lists = crowded.lists(device, exact=False)
    assert reranked == []
    best = sorted_lists(crowded.states_BD, crowded.table_VD, 2, crowded.seen)
    assert [lists[row] for row in (0, 2)] == [best[row] for row in (0, 2)]
    if device.type == "cpu":
        # Ids modulo 64: where the best of a group was seen, the group counts for nothing.
        assert [lists[row] for row in (1, 3)] == [[352, 1], [384, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_seen", [False, True])
def test_where_nothing_waits_other_rows_have_the_best(
    backend: str, with_seen: bool, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(9)
    states_BD = integers(generator, 7, 20).to(device)
    table_VD = integers(generator, 300, 20).to(device)
    rows_P, ids_P = random_pairs(generator, 60, 7, 300)
    seen = (rows_P.to(device), ids_P.to(device)) if with_seen else None
    with ranking_on(backend):
        lists_Bk = top_k(states_BD, table_VD, 3, seen, exact=False)
        assert torch.equal(lists_Bk, top_k(states_BD, table_VD, 3, seen))


@pytest.mark.usefixtures("triton_backend")
@pytest.mark.parametrize("types", TYPES)
def test_where_nothing_waits_lists_hold_nearly_all_of_the_best(
    types: tuple[torch.dtype, torch.dtype], device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(10)
    states_BD = torch.randn(16, 20, generator=generator).to(device, types[0])
    table_VD = torch.randn(2000, 20, generator=generator).to(device, types[1])
    with ranking_on("eager"):
        best_Bk = top_k(states_BD, table_VD, 30)
    with ranking_on("triton"):
        lists_Bk = top_k(states_BD, table_VD, 30, exact=False)
    assert all(len(set(row)) == 30 for row in lists_Bk.tolist())
    scores_BV = states_BD.float() @ table_VD.float().T
    scores_Bk = scores_BV.gather(1, lists_Bk)
    rounding = 0.05 if device.type == "cuda" else 1e-4
    assert (scores_Bk.diff() <= rounding).all()
    found = (lists_Bk[:, :, None] == best_Bk[:, None, :]).any(2).float().mean()
    assert 0.94 < found < 1  # k / (2 S) are missing: S is 480, or 512 of a card's tiles.


@pytest.mark.parametrize(
    ("num_rows", "num_items", "k"), [(512, 1_000_003, 4096), (2048, 200_000, 64), (5, 7, 9)]
)
def test_where_nothing_waits_no_number_is_asked_for(num_rows: int, num_items: int, k: int) -> None:
    """There is none in a tensor that is not real."""
    pytest.importorskip("triton")
    with simulated_gpu(Gpu(9, 132)), FakeTensorMode():
        states_BD, table_VD = torch.empty(num_rows, 8), torch.empty(num_items, 8)
        assert top_k(states_BD, table_VD, k, exact=False).shape == (num_rows, k)


@pytest.mark.parametrize("kernels", ["ranks", "lists"])
def test_an_h100_ranks_wide_float32_by_few_columns_at_a_time(
    kernels: Literal["ranks", "lists"],
) -> None:
    pytest.importorskip("triton")
    from kernels.triton_ranking_launch import _cut

    with simulated_gpu(Gpu(9, 132)):
        for state_type, precision in ((FP32, "tf32x3"), (BF16, "bf16x3")):
            states_BD, table_VD = torch.empty(500, 256, dtype=state_type), torch.empty(900, 256)
            constants = _cut(states_BD, table_VD, kernels).constants
            assert (constants["PRECISION"], constants["BLOCK_D"]) == (precision, 32)


@pytest.mark.usefixtures("triton_backend")
def test_ties_need_no_room(reranked: list[int], device: torch.device) -> None:
    states_BD, table_VD = torch.ones(3, 2, device=device), torch.ones(400, 2, device=device)
    seen = as_tensors([(1, 1), (1, 3), (2, 0)], device)
    with ranking_on("triton"):
        lists_Bk = top_k(states_BD, table_VD, 3, seen)
    assert lists_Bk.tolist() == [[0, 1, 2], [0, 2, 4], [1, 2, 3]]
    assert reranked == []


@pytest.mark.parametrize("with_seen", [False, True])
@pytest.mark.usefixtures("triton_backend")
def test_passes_over_the_rows_change_nothing(
    with_seen: bool, reranked: list[int], device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(6)
    states_BD = integers(generator, 7, 20).to(device)
    table_VD = integers(generator, 300, 20).to(device)
    best_B = reference_ranking.top_k(states_BD, table_VD, 1, None)[:, 0]
    rows_B = torch.arange(7, device=device)
    seen = (rows_B, best_B) if with_seen else None
    expected = reference_ranking.top_k(states_BD, table_VD, 2, seen)
    reranked.clear()
    # Three rows of 256 places.
    with ranking_on("triton", tile_elements=3 * 256):
        assert torch.equal(top_k(states_BD, table_VD, 2, seen), expected)
    assert reranked == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_nobody_checked_have_the_last_rank(backend: str, device: torch.device) -> None:
    """On a GPU nothing is checked on the host."""
    pytest.importorskip("triton")
    from kernels import triton_ranking_launch

    module: Any = reference_ranking if backend == "eager" else triton_ranking_launch
    states_BD, table_VD = torch.ones(3, 2, device=device), torch.ones(5, 2, device=device)
    seen = as_tensors([(0, 5), (0, -1), (3, 0), (-1, 1), (2, 0)], device)
    targets_B = torch.tensor([5, -1, 4], device=device)
    assert module.target_ranks(states_BD, table_VD, targets_B, seen).tolist() == [6, 6, 4]
    lists = module.top_k(states_BD, table_VD, 2, seen)
    assert lists.tolist() == [[0, 1], [0, 1], [1, 2]]


@pytest.mark.parametrize("k", [0, -1])
def test_lists_have_at_least_one_place(k: int) -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(torch.ones(1, 2), torch.ones(3, 2), k)


@pytest.mark.parametrize(
    ("states", "table", "message"),
    [
        ((1, 2), (3, 4), "must be matrices of one width"),
        ((2,), (3, 2), "must be matrices of one width"),
        ((1, 2), (2,), "must be matrices of one width"),
        ((1, 0), (3, 0), "states_BD must have at least one column"),
    ],
)
def test_matrices_must_fit(states: tuple[int, ...], table: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k(torch.ones(states), torch.ones(table), 1)
    with pytest.raises(ValueError, match=message):
        target_ranks(torch.ones(states), torch.ones(table), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("targets_B", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"targets_B must be int64 of shape \[2\]"),
        (torch.zeros(2, dtype=torch.int32), r"targets_B must be int64 of shape \[2\]"),
        (torch.tensor([0, 3]), r"targets_B must lie in \[0, 3\), but spans? 0 to 3"),
        (torch.tensor([-1, 0]), r"targets_B must lie in \[0, 3\), but spans? -1 to 0"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), "targets_B is on meta, but table_VD"),
    ],
)
def test_targets_must_fit(targets_B: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_ranks(torch.ones(2, 2), torch.ones(3, 2), targets_B)


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ((ids(0, 1), ids(0)), "seen must be two int64 vectors of one length"),
        ((ids(0), ids(0).int()), "seen must be two int64 vectors of one length"),
        ((ids(0)[None], ids(0)[None]), "seen must be two int64 vectors of one length"),
        ((ids(2), ids(0)), r"the rows of seen must lie in \[0, 2\)"),
        ((ids(0), ids(3)), r"the items of seen must lie in \[0, 3\)"),
        ((ids(0), ids(-1)), r"the items of seen must lie in \[0, 3\)"),
        ((ids(0).to("meta"), ids(0)), "seen is on meta, but table_VD is on cpu"),
    ],
)
def test_seen_pairs_must_fit(seen: tuple[Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k(torch.ones(2, 2), torch.ones(3, 2), 1, seen)
    with pytest.raises(ValueError, match=message):
        target_ranks(torch.ones(2, 2), torch.ones(3, 2), ids(0, 0), seen)


def test_matrices_are_on_one_device() -> None:
    with pytest.raises(ValueError, match="states_BD is on meta, but table_VD is on cpu"):
        top_k(torch.ones(2, 2, device="meta"), torch.ones(3, 2), 1)
