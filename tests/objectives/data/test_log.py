import dataclasses
import itertools

import numpy as np
import pyarrow as pa
import pytest

from objectives.data import log as log_module
from objectives.data.log import Log, runs, sort, stable_order
from objectives.data.sources import Interactions
from tests.objectives.data.logs import random_interactions

LEAST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@pytest.mark.parametrize(
    "keys",
    [
        np.zeros(0, np.int64),
        np.array([LEAST, MOST, 0, LEAST, -1, MOST]),
        np.array([MOST, MOST - 1, MOST, MOST - 2]),
        np.array([LEAST + 3, LEAST, LEAST + 3, LEAST]),
        np.array([0.5, -1.0, 0.5, 0.25]),
        np.zeros(9, np.int32),
        *(np.random.default_rng(seed).integers(-5, 5, 1 + 40 * seed) for seed in range(5)),
        np.random.default_rng(7).integers(LEAST, MOST, 300),
        np.random.default_rng(8).integers(-(1 << 31), 1 << 31, 300).astype(np.int32),
    ],
)
def test_the_order_is_that_of_a_stable_sort(keys: np.ndarray) -> None:
    assert stable_order(keys).tolist() == np.argsort(keys, kind="stable").tolist()


def slow_sort(raw: Interactions) -> tuple[dict[int, list[tuple[int, float, bool]]], int, int]:
    """Of each user (item, time, whether it is new), and how many rows were repeated and tied."""
    times = np.zeros(len(raw.users)) if raw.times is None else raw.times
    rows = list(zip(raw.users.tolist(), raw.items.tolist(), times.tolist(), strict=True))
    unique = rows if raw.times is None else list(dict.fromkeys(rows))
    by_user: dict[int, list[tuple[int, float]]] = {}
    for user, item, time in unique:
        by_user.setdefault(user, []).append((item, time))
    users, tied = {}, 0
    for user in sorted(by_user):
        events = sorted(by_user[user], key=lambda event: event[1])
        tied += sum(a[1] == b[1] for a, b in itertools.pairwise(events))
        users[user] = [
            (item, time, item not in [each for each, _ in events[:place]])
            for place, (item, time) in enumerate(events)
        ]
    return users, len(rows) - len(unique), 0 if raw.times is None else tied


def as_lists(log: Log) -> dict[int, list[tuple[int, float, bool]]]:
    times = np.zeros(len(log.items)) if log.times is None else log.times
    rows = list(zip(log.items.tolist(), times.tolist(), log.is_first.tolist(), strict=True))
    return {
        int(user): rows[begin:end]
        for user, begin, end in zip(log.users, log.starts, log.ends, strict=True)
    }


@pytest.mark.parametrize("bucket", [1, 7, 1 << 18])
@pytest.mark.parametrize("kind", ["untimed", "whole", "fractions", "in order", "grouped"])
def test_a_log_is_sorted_bucket_by_bucket(
    kind: str, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "_BUCKET", bucket)
    for seed in range(30):
        raw = random_interactions(seed, timed=kind != "untimed")
        if kind == "fractions":
            assert raw.times is not None
            raw = dataclasses.replace(raw, times=(raw.times / 4).astype(np.float64))
        elif kind == "in order":
            assert raw.times is not None
            raw.times.sort()
        elif kind == "grouped":
            raw = dataclasses.replace(raw, users=np.sort(raw.users))
        users, repeated, tied = slow_sort(raw)
        notes: list[str] = []
        log = sort(raw, notes)
        assert as_lists(log) == users
        expected = []
        if repeated:
            expected.append(f"dropped {repeated:,} rows that repeat a user, item and time")
        if kind == "untimed":
            expected.append(
                "no time column: the order of the rows is the order of the interactions"
            )
        if tied:
            expected.append(
                f"{tied:,} of {len(log.items):,} interactions share their time with the user's "
                "previous one: file order decides"
            )
        assert notes == expected


def test_what_is_left_of_a_log_is_a_log() -> None:
    for seed in range(100):
        log = sort(random_interactions(seed), [])
        keep = np.random.default_rng(seed).random(len(log.items)) < 0.3
        kept = as_lists(log.where(keep))
        expected = {}
        for (user, events), begin in zip(as_lists(log).items(), log.starts, strict=True):
            left = [event for place, event in enumerate(events) if keep[begin + place]]
            if left:
                expected[user] = left
        assert kept == expected
        assert log.where(np.ones_like(keep)) is log


def test_no_user_is_cut_in_two() -> None:
    offsets = np.array([0, 2, 9, 10, 12, 13])
    assert [(each.start, each.stop) for each in runs(offsets, 3)] == [
        (0, 1),
        (1, 2),
        (2, 4),
        (4, 5),
    ]
    assert list(runs(np.zeros(1, np.int64), 3)) == []


def test_codes_without_a_row_are_nobody() -> None:
    raw = Interactions(
        np.array([3, 1, 3], np.int32), np.zeros(3, np.int32), None, pa.array([5]), (), 6
    )
    assert as_lists(sort(raw, [])) == {1: [(0, 0, True)], 3: [(0, 0, True), (0, 0, False)]}
