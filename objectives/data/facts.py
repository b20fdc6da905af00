"""What matters for a search, of a log of interactions.

Shapes: M interactions, U users, V items.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from objectives.data import PreparedData
from objectives.data.sources import Interactions

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)

PARTS = 100
"""Of the time, whose interactions are counted."""

_EARLY_SHARE = 0.9
_LEAST_EPOCH = 1e8
"""Numbers from March 1973 on are taken for dates."""
_LEAST_COPY = 5
"""Items of a history from which on an equal one of another user is no accident."""
_NEGATIVES = 1024
"""Negatives that 128 rows share: with so many they cost no quality against the full softmax on
MovieLens-1M and Amazon Beauty (two seeds)."""


@dataclass(frozen=True)
class LogFacts:
    """Of a log as it was read, before filters and splits.

    Attributes:
        num_interactions: M.
        lengths: Interactions of each user [U], ascending.
        counts: Interactions of each item [V], the most popular first.
        first: The earliest time in seconds since 1970, or None without times.
        last: The latest.
        repeats: Share of interactions with an item that the user has had before.
        ties: Share of interactions at the same time as the user's previous one.
        future: Share of the interactions that are trained on under leave-one-out although they
            are later than half of the test targets; None without times.
        new: Share of the interactions in the last tenth of them by time whose items have none
            before; None without times.
        activity: Interactions in each of a hundred equal parts of the time; None without times.
        copies: Users whose history, of five items or more, is that of another user, too.
    """

    num_interactions: int
    lengths: NDArray[np.int64]
    counts: NDArray[np.int64]
    first: float | None
    last: float | None
    repeats: float
    ties: float
    future: float | None
    new: float | None
    activity: NDArray[np.int64] | None
    copies: int

    @property
    def quantiles(self) -> list[int]:
        """Of the lengths, at `QUANTILES`."""
        places = [int(np.ceil(share * len(self.lengths))) - 1 for share in QUANTILES]
        return [int(self.lengths[max(0, place)]) for place in places]

    @property
    def gini(self) -> float:
        """Of the items' popularity: 0 where all are as popular, 1 where one has everything."""
        ascending, size = self.counts[::-1], len(self.counts)
        ranks = np.arange(1, size + 1)
        return float((2 * ranks - size - 1) @ ascending / (size * ascending.sum()))

    @property
    def head(self) -> float:
        """Share of the interactions that the most popular 1 % of the items have."""
        top = self.counts[: max(1, len(self.counts) // 100)]
        return float(top.sum() / self.num_interactions)

    @property
    def once(self) -> float:
        """Share of the items that occur once."""
        return float((self.counts == 1).mean())

    @property
    def has_dates(self) -> bool:
        """Whether the times look like seconds since 1970."""
        return self.first is not None and self.first >= _LEAST_EPOCH

    @property
    def span(self) -> str:
        """From when to when, for people."""
        if self.first is None or self.last is None:
            return "no times: the order of the rows is taken"
        if not self.has_dates:
            return f"{self.first:g} to {self.last:g}, which are no dates"
        days = (self.last - self.first) / 86_400
        begin, end = (
            datetime.fromtimestamp(moment, UTC).date().isoformat()
            for moment in (self.first, self.last)
        )
        return f"{begin} to {end}, {days:,.1f} days"


@dataclass(frozen=True)
class SplitFacts:
    """Of a log that was filtered and split.

    Attributes:
        num_items: V.
        num_sequences: Those that are trained on.
        num_targets: Of validation and test.
        cold: Share of the test targets that training has never seen.
        covered: The shortest length that holds 95 % of the training sequences whole.
        negatives: A number to start from.
    """

    num_items: int
    num_sequences: int
    num_targets: tuple[int, int]
    cold: float
    covered: int
    negatives: int


def facts_of_log(log: Interactions) -> LogFacts:
    """Looks at a log as it was read."""
    size = len(log.users)
    lengths_U = np.bincount(log.users)
    counts_V = np.bincount(log.items)
    if log.times is None:
        order_M = np.argsort(log.users, kind="stable")
    else:
        order_M = np.lexsort((log.times, log.users))
    users_M, items_M = log.users[order_M], log.items[order_M]
    is_next_M1 = users_M[1:] == users_M[:-1]
    ties, first, last, future, new, activity = 0.0, None, None, None, None, None
    if log.times is not None:
        times_M = log.times[order_M]
        ties = float((is_next_M1 & (times_M[1:] == times_M[:-1])).sum() / size)
        first, last = float(times_M.min()), float(times_M.max())
        is_last_M = np.append(~is_next_M1, True)
        if not is_last_M.all():
            middle = np.median(times_M[is_last_M])
            future = float((times_M[~is_last_M] > middle).mean())
        is_late_M = times_M >= np.quantile(times_M, _EARLY_SHARE)
        is_known_V = np.zeros(len(counts_V), dtype=bool)
        is_known_V[items_M[~is_late_M]] = True
        new = float((~is_known_V[items_M[is_late_M]]).mean())
        activity, _ = np.histogram(times_M, PARTS)
    pairs_M = np.sort((users_M.astype(np.int64) << 32) | items_M)
    repeats = float((np.diff(pairs_M) == 0).sum() / size)
    return LogFacts(
        size,
        np.sort(lengths_U),
        np.sort(counts_V)[::-1],
        first,
        last,
        repeats,
        ties,
        future,
        new,
        activity,
        _copies(items_M, lengths_U),
    )


def _copies(items_M: NDArray[np.int32], lengths_U: NDArray[np.int64]) -> int:
    """Users of long enough histories that are equal, by a sum of odd multiples of their items."""
    starts_U = np.cumsum(lengths_U) - lengths_U
    places_M = np.arange(len(items_M)) - np.repeat(starts_U, lengths_U)
    mixed_M = (items_M.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    mixed_M = (mixed_M ^ (mixed_M >> np.uint64(29))) * (2 * places_M.astype(np.uint64) + 1)
    sums_U = np.add.reduceat(mixed_M, starts_U)[lengths_U >= _LEAST_COPY]
    _, counts = np.unique(sums_U, return_counts=True)
    return int(counts[counts > 1].sum())


def facts_of_split(data: PreparedData) -> SplitFacts:
    """Looks at data as trials have it."""
    lengths_S = np.sort(data.train.lengths)
    known_V = np.zeros(data.num_items, dtype=bool)
    known_V[data.train.items] = True
    return SplitFacts(
        data.num_items,
        len(data.train),
        (len(data.validation.items), len(data.test.items)),
        float((~known_V[data.test.items]).mean()) if len(data.test.items) else 0.0,
        int(lengths_S[int(np.ceil(0.95 * len(lengths_S))) - 1]),
        min(_NEGATIVES, data.num_items - 1),
    )
