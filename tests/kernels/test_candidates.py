import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.alias_table import AliasTable
from kernels.candidates import (
    Candidates,
    Draws,
    Explicit,
    InBatch,
    LogUniform,
    Met,
    Mixed,
    Popularity,
    Uniform,
    philox,
)
from kernels.candidates import draw as draw_groups

NO_TARGETS = torch.zeros(0, dtype=torch.int64)


def drawn(sampler: Candidates, groups: int, num_items: int, *, first_group: int = 0) -> Tensor:
    draws, _ = sampler.draws(NO_TARGETS, num_items, 1, -100)
    return draw_groups(draws, first_group, groups, num_items, "cpu")


def draw(
    seed: int, groups: int, candidates: int, num_items: int, *, first_group: int = 0
) -> Tensor:
    return drawn(Uniform(candidates, seed), groups, num_items, first_group=first_group)


def log_uniform(num_items: int) -> Tensor:
    rank_V = torch.arange(num_items, dtype=torch.float64)
    return torch.log((rank_V + 2) / (rank_V + 1)) / math.log(num_items + 1)


def popularities(num_items: int, seed: int = 0) -> Tensor:
    """Counts of a long tail in random order, a third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    counts_V = torch.arange(num_items) ** 2 * (torch.arange(num_items) % 3)
    return counts_V[torch.randperm(num_items, generator=generator)]


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


@given(seed=st.integers(0, 2**64 - 1), offset=st.integers(-(2**63), 2**63 - 1))
def test_an_offset_is_added_to_the_seed_modulo_2_to_the_64(seed: int, offset: int) -> None:
    apart = Uniform(3, seed, torch.tensor([offset]))
    assert torch.equal(drawn(apart, 2, 1000), draw((seed + offset) % 2**64, 2, 3, 1000))


@pytest.mark.parametrize(
    "offset", [torch.zeros(1, dtype=torch.int32), torch.zeros((), dtype=torch.int64)]
)
def test_an_offset_is_one_64_bit_integer(offset: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^seed_offset must be int64 of shape \[1\]"):
        Uniform(3, 0, offset)
    with pytest.raises(ValueError, match=r"^seed_offset must be int64 of shape \[1\]"):
        LogUniform(3, 0, AliasTable.log_uniform(5), offset)


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


@pytest.mark.parametrize(
    ("sampler", "num_items"),
    [
        (Popularity(6, 3, AliasTable.from_weights(popularities(100))), 100),
        (LogUniform(6, 3, AliasTable.log_uniform(100)), 100),
        (Explicit(torch.arange(60, dtype=torch.int32).view(10, 6) - 1), 100),
    ],
)
def test_pieces_of_any_source_equal_the_whole(sampler: Candidates, num_items: int) -> None:
    draws, _ = sampler.draws(torch.zeros(10, dtype=torch.int64), num_items, 1, -100)
    whole = draw_groups(draws, 0, 10, num_items, "cpu")
    parts = [
        draw_groups(draws, first, groups, num_items, "cpu")
        for first, groups in ((0, 3), (3, 1), (4, 0), (4, 6))
    ]
    assert whole.dtype == torch.int64
    assert whole.shape == (10, 6)
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


def deviations(ids: Tensor, probabilities_V: Tensor) -> float:
    """Standard deviations between the counts of the ids and what the probabilities say."""
    possible = probabilities_V > 0
    counts_V = ids.flatten().bincount(minlength=len(possible))
    assert not counts_V[~possible].any()
    expected_V = (probabilities_V * counts_V.sum())[possible]
    chi_square = float(((counts_V[possible] - expected_V) ** 2 / expected_V).sum())
    freedom = len(expected_V) - 1
    # Wilson-Hilferty: the cube root of chi-square / freedom is close to normal.
    variance = 2 / (9 * freedom)
    return (math.cbrt(chi_square / freedom) - (1 - variance)) / math.sqrt(variance)


@pytest.mark.parametrize("num_items", [2, 3, 10, 997])
def test_uniform_draws_are_uniform(num_items: int) -> None:
    uniform_V = torch.full((num_items,), 1 / num_items, dtype=torch.float64)
    ids_GK = draw(2, 100, 2000, num_items)
    assert abs(deviations(ids_GK, uniform_V)) < 4
    if num_items > 2:
        assert abs(deviations(ids_GK, log_uniform(num_items))) > 20


@pytest.mark.parametrize("num_items", [2, 3, 10, 997])
def test_log_uniform_draws_follow_their_formula(num_items: int) -> None:
    sampler = LogUniform(2000, 4, AliasTable.log_uniform(num_items))
    probabilities_V = log_uniform(num_items)
    assert abs(deviations(drawn(sampler, 100, num_items), probabilities_V)) < 4
    assert abs(deviations(drawn(sampler, 100, num_items), probabilities_V.flip(0))) > 20


@pytest.mark.parametrize("num_items", [5, 10, 997])
def test_popularity_draws_follow_the_weights(num_items: int) -> None:
    counts_V = popularities(num_items)
    sampler = Popularity(2000, 6, AliasTable.from_weights(counts_V))
    probabilities_V = counts_V.double() / counts_V.sum()
    assert abs(deviations(drawn(sampler, 100, num_items), probabilities_V)) < 4


def test_an_alias_draw_compares_word_two_with_the_threshold_of_the_uniform_column() -> None:
    table = AliasTable.from_weights(popularities(50))
    seed, first_group = 0xFEDC_BA98_7654_3210, 9
    ids_GK = drawn(Popularity(40, seed, table), 3, 50, first_group=first_group)
    columns_GK = draw(seed, 3, 40, 50, first_group=first_group)
    for group, slot in np.ndindex(3, 40):
        column = int(columns_GK[group, slot])
        coin = philox(seed, torch.tensor([slot, first_group + group, 0, 0]))[2]
        threshold, alias = table.alias_V2[column].tolist()
        assert ids_GK[group, slot] == (column if coin < threshold % 2**32 else alias)
    assert (ids_GK != columns_GK).any()
    assert (ids_GK == columns_GK).any()


@pytest.mark.parametrize("threshold_less_coin", [0, 1])
def test_a_coin_that_equals_the_threshold_means_the_alias(threshold_less_coin: int) -> None:
    columns_GK = draw(5, 1, 1, 50)
    coin = int(philox(5, torch.zeros(4, dtype=torch.int64))[2])
    aliases_V = (torch.arange(50) + 1) % 50
    thresholds_V = torch.full_like(aliases_V, coin + threshold_less_coin)
    alias_V2 = torch.stack([thresholds_V, aliases_V], dim=1).int()
    ids_GK = draw_groups(Draws(1, 5, alias_V2=alias_V2), 0, 1, 50, "cpu")
    assert torch.equal(ids_GK, columns_GK if threshold_less_coin else aliases_V[columns_GK])


def realised_shares(table: AliasTable) -> Tensor:
    """What the table gives every item, in units of 1 / (2^32 V), added up one column at a time."""
    shares = [0] * len(table.alias_V2)
    for column, (threshold, alias) in enumerate(table.alias_V2.tolist()):
        shares[column] += threshold % 2**32
        shares[alias] += 2**32 - threshold % 2**32
    assert sum(shares) == len(shares) << 32
    return torch.tensor(shares)


WEIGHTS = [
    pytest.param(torch.ones(7), id="equal"),
    pytest.param(torch.tensor([1.0]), id="one item"),
    pytest.param(torch.tensor([0, 0, 9, 0]), id="one positive"),
    pytest.param(torch.tensor([False, True, True]), id="booleans"),
    pytest.param(torch.tensor([1e308, 0, 1e308, 1e308], dtype=torch.float64), id="huge"),
    pytest.param(torch.tensor([1e-44, 3e-44, 0]), id="subnormal"),
    pytest.param(torch.tensor([0.9, 0.05, 0.05]).half(), id="half"),
    pytest.param(popularities(1000), id="counts"),
    pytest.param(popularities(1000).sort(descending=True).values, id="falling"),
    pytest.param(popularities(1000).sort().values, id="rising"),
    pytest.param(1 / torch.arange(1, 20_001, dtype=torch.float64) ** 1.5, id="steep"),
    pytest.param(log_uniform(10_001), id="log-uniform"),
]


@pytest.mark.parametrize("weights_V", WEIGHTS)
def test_an_alias_table_realises_the_weights(weights_V: Tensor) -> None:
    table = AliasTable.from_weights(weights_V)
    assert table.alias_V2.dtype == torch.int32
    assert table.log_q_V.dtype == torch.float32
    exact_V = weights_V.double() / weights_V.double().max()
    exact_V /= exact_V.sum()
    shares_V = realised_shares(table).double() / 2**32
    torch.testing.assert_close(shares_V, exact_V * len(weights_V), atol=1e-9, rtol=1e-12)
    assert torch.equal(shares_V == 0, weights_V == 0)
    torch.testing.assert_close(
        table.log_q_V.double(), (shares_V / len(shares_V)).log(), atol=1e-7, rtol=1e-6
    )


@given(st.lists(st.integers(0, 20) | st.just(2**40), min_size=1, max_size=12).filter(any))
def test_any_alias_table_realises_its_weights(weights: list[int]) -> None:
    shares_V = realised_shares(AliasTable.from_weights(torch.tensor(weights)))
    for share, weight in zip(shares_V.tolist(), weights, strict=True):
        assert abs(share - (weight * len(weights) << 32) / sum(weights)) <= 2
        assert weight or not share


def test_the_log_uniform_table_is_that_of_the_formula() -> None:
    table = AliasTable.log_uniform(1000)
    torch.testing.assert_close(table.log_q_V.exp().double(), log_uniform(1000))


def test_a_large_alias_table_keeps_the_formula() -> None:
    table = AliasTable.log_uniform(1_000_000)
    torch.testing.assert_close(
        table.log_q_V.double().exp(), log_uniform(1_000_000), atol=0, rtol=1e-5
    )


def test_an_alias_table_moves() -> None:
    table = AliasTable.log_uniform(5).to("meta")
    assert table.alias_V2.device == table.log_q_V.device == torch.device("meta")
    assert AliasTable.log_uniform(5, "meta").log_q_V.device == torch.device("meta")


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


TARGETS = torch.tensor([3, -100, 0, 3, 8])


def test_drawn_candidates_leave_the_groups_as_they_are() -> None:
    table = AliasTable.log_uniform(9)
    assert Uniform(4, 7).draws(TARGETS, 9, 2, -100) == (Draws(4, 7), 2)
    for sampler in (Popularity(4, 7, table), LogUniform(4, 7, table)):
        draws, group_size = sampler.draws(TARGETS, 9, 2, -100)
        assert group_size == 2
        assert (draws.num_candidates, draws.seed) == (4, 7)
        assert draws.ids_GK is draws.log_weight_GK is None
        assert draws.alias_V2 is table.alias_V2
        assert draws.log_q_V is table.log_q_V


@pytest.mark.parametrize("given_size", [1, 2, 50])
def test_in_batch_candidates_are_the_targets_in_one_group(given_size: int) -> None:
    draws, group_size = InBatch().draws(TARGETS, 9, given_size, -100)
    assert group_size == draws.num_candidates == 5
    assert draw_groups(draws, 0, 1, 9, "cpu").tolist() == [[3, -1, 0, 3, 8]]
    assert draws.log_q_V is None
    draws, _ = InBatch().draws(TARGETS, 9, given_size, 3)
    assert draw_groups(draws, 0, 1, 9, "cpu").tolist() == [[-1, -100, 0, -1, 8]]
    draws, group_size = InBatch().draws(TARGETS[:0], 9, given_size, -100)
    assert group_size == 1
    assert draws.num_candidates == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float64])
def test_in_batch_frequencies_are_normalised(dtype: torch.dtype) -> None:
    counts_V = torch.tensor([1, 2, 5, 8], dtype=dtype)
    draws, _ = InBatch(counts_V).draws(TARGETS[2:4], 4, 1, -100)
    assert draws.log_q_V is not None
    assert draws.log_q_V.dtype == torch.float32
    torch.testing.assert_close(draws.log_q_V.exp(), torch.tensor([1, 2, 5, 8]) / 16)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_explicit_candidates_are_those_given(dtype: torch.dtype) -> None:
    ids_GK = torch.tensor([[0, -1, 8], [8, 8, 2], [1, 1, 1]], dtype=dtype)
    log_weight_GK = torch.randn(3, 3)
    draws, group_size = Explicit(ids_GK, log_weight_GK).draws(TARGETS, 9, 2, -100)
    assert group_size == 2
    assert draws.num_candidates == 3
    assert torch.equal(draw_groups(draws, 1, 2, 9, "cpu"), ids_GK[1:].long())
    assert draws.log_weight_GK is log_weight_GK
    assert draws.log_q_V is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "^num_candidates must be at least 1, not 0"),
        ((-1, 0), "^num_candidates must be at least 1, not -1"),
        ((1, -1), "^seed must lie in"),
        ((1, 1 << 64), "^seed must lie in"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused(arguments: tuple[int, int], message: str) -> None:
    for make in (Uniform, partial(Popularity, table=AliasTable.log_uniform(3))):
        with pytest.raises(ValueError, match=message):
            make(*arguments)


@pytest.mark.parametrize(
    "weights_V",
    [
        torch.tensor(1.0),
        torch.ones(2, 2),
        torch.ones(0),
        torch.ones(2, dtype=torch.complex64),
        torch.zeros(3),
        torch.tensor([1.0, -1.0]),
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1.0, torch.inf]),
    ],
)
def test_weights_that_are_no_distribution_are_refused(weights_V: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^weights_V must be"):
        AliasTable.from_weights(weights_V)
    with pytest.raises(ValueError, match=r"^probabilities_V must be"):
        InBatch(weights_V)


def test_what_is_in_a_batch_has_a_probability() -> None:
    with pytest.raises(ValueError, match=r"^probabilities_V must be positive"):
        InBatch(torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    ("ids_GK", "log_weight_GK", "message"),
    [
        (torch.zeros(5), None, "^ids_GK must be an int64 or int32 matrix"),
        (torch.zeros(5, 2), None, "^ids_GK must be an int64 or int32 matrix"),
        (torch.zeros(5, 2, dtype=torch.int16), None, "^ids_GK must be an int64 or int32 matrix"),
        (torch.zeros(5, 0, dtype=torch.int64), None, "^ids_GK must have at least one candidate"),
        (TARGETS[:, None], torch.zeros(5), r"^log_weight_GK must be float32 of shape \[5, 1\]"),
        (TARGETS[:, None], torch.zeros(5, 1).double(), "^log_weight_GK must be float32"),
    ],
)
def test_lists_that_cannot_be_are_refused(
    ids_GK: Tensor, log_weight_GK: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Explicit(ids_GK, log_weight_GK)


LISTS = torch.zeros(3, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Popularity(4, 0, AliasTable.log_uniform(8)), "^table is for 8 items, but .* 9"),
        (LogUniform(4, 0, AliasTable.log_uniform(9, "meta")), "^table is on meta"),
        (InBatch(torch.ones(10)), "^probabilities_V is for 10 items, but .* 9"),
        (Explicit(LISTS[:2]), "^ids_GK has 2 groups, but 5 rows in groups of 2 make 3"),
        (Explicit(LISTS.repeat(2, 1)), "^ids_GK has 6 groups"),
        (Explicit(LISTS.to("meta")), "^ids_GK is on meta"),
        (Explicit(LISTS, torch.zeros(3, 2, device="meta")), "^log_weight_GK is on meta"),
    ],
)
def test_candidates_that_do_not_fit_the_call_are_named(sampler: Candidates, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler.draws(TARGETS, 9, 2, -100)


def test_a_mixture_is_the_batch_and_uniform_draws() -> None:
    targets_N = torch.tensor([3, 3, -100, 1])
    weights_V = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0])
    mixed = Mixed(6, 11, InBatch(weights_V), torch.tensor([2]))
    draws, group_size = mixed.draws(targets_N, 5, 128, -100)
    assert group_size == 4
    assert draws.num_candidates == 10
    assert draws.ids_GK is not None
    drawn_1K = draw(13, 1, 6, 5)
    assert draws.ids_GK.tolist() == [[3, 3, -1, 1, *drawn_1K[0].tolist()]]
    assert draws.log_q_V is not None
    expected_V = (4 * weights_V / 20 + 6 / 5) / 10
    torch.testing.assert_close(draws.log_q_V.exp(), expected_V)
    torch.testing.assert_close(draws.log_q_V.exp().sum(), torch.tensor(1.0))


def test_a_mixture_needs_the_probabilities_of_targets() -> None:
    with pytest.raises(ValueError, match="in_batch must have probabilities"):
        Mixed(6, 11, InBatch())
    with pytest.raises(ValueError, match="num_candidates must be at least 1"):
        Mixed(0, 11, InBatch(torch.ones(5)))


@pytest.mark.parametrize(
    ("met", "message"),
    [
        (Met(torch.zeros(2, 3).int(), torch.zeros(2, 5).int(), -1), "reach must not be negative"),
        (Met(torch.zeros(2, 4).int(), torch.zeros(2, 5).int(), 0), r"row_numbers_QN .*\[2, 3\]"),
        (Met(torch.zeros(2, 3).int(), torch.zeros(1, 5).int(), 0), r"item_numbers_QV .*\[2, 5\]"),
        (Met(torch.zeros(2, 3), torch.zeros(2, 5).int(), 0), "must be int32"),
    ],
)
def test_numbers_of_rounds_that_do_not_fit(met: Met, message: str) -> None:
    given = Explicit(torch.zeros(3, 2, dtype=torch.int64), met=met)
    with pytest.raises(ValueError, match=message):
        given.draws(torch.zeros(3, dtype=torch.int64), 5, 1, -100)
