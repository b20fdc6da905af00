"""Which interactions are trained on, and which are targets of validation and test.

Shapes: M interactions, S users, T sequences of a part, V items of the source.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.config import DataConfig
from objectives.data.log import Log
from objectives.errors import UserError
from objectives.moments import parse_moment

_CUT_QUANTILE = 0.9
_SEED = 42
_TEMPORAL_SHARE = 0.05
"""Of the users before the cut: those that are validated."""
_DISJOINT_SHARE = 0.1
"""Of all users: those that are validated, and as many that are tested."""
_NO_TARGET = {
    "validation": "fewer than two of their items before the cut occur in training",
    "test": "none of their items after the cut occurs in training",
}
"""Why a user of the temporal split is skipped."""


@dataclass(frozen=True)
class Part:
    """Sequences of a log: of each user some in a row, the oldest first.

    Attributes:
        log: Where they are.
        begins: Where each begins [T], int64.
        ends: Where it ends [T]. There is the target, if the part has targets.
    """

    log: Log
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def users(self) -> NDArray[np.int64]:
        """Codes of their users [T]."""
        return self.log.users[np.searchsorted(self.log.offsets, self.begins, side="right") - 1]

    def where(self, keep_T: NDArray[np.bool_]) -> "Part":
        """These sequences alone."""
        return Part(self.log, self.begins[keep_T], self.ends[keep_T])


@dataclass(frozen=True)
class Split:
    """A split.

    Attributes:
        train: Sequences of at least two interactions.
        validation: Histories of at least one, each before its target.
        test: Such, too.
        items: Which items of the source can be recommended [V].
    """

    train: Part
    validation: Part
    test: Part
    items: NDArray[np.bool_]


def split(log: Log, num_items: int, config: DataConfig, notes: list[str]) -> Split:
    """The split that the configuration asks for.

    Args:
        log: What the filters have left.
        num_items: V.
        config: Which split.
        notes: Who is left out is added.

    Raises:
        UserError: It leaves nothing to train on, to validate or to test.
    """
    return _SPLITS[config.split](log, num_items, config, notes)


def unused(log: Log, parts: Split) -> int:
    """Interactions that are in no part."""
    num_users = int(log.users[-1]) + 1
    used_S = np.zeros(num_users, dtype=np.int64)
    for part, target in ((parts.train, 0), (parts.validation, 1), (parts.test, 1)):
        # All parts have a user's first interactions with items of the catalogue.
        np.maximum.at(used_S, part.users, part.ends - part.begins + target)
    return len(log.items) - int(used_S.sum())


def _leave_one_out(log: Log, num_items: int, config: DataConfig, notes: list[str]) -> Split:
    """Each user's last item is the test target, the one before the validation target.

    With fewer users to validate, the latter item of all others is trained on. The catalogue is
    all items: published results rank those that only occur as targets, too.
    """
    is_long_S = log.lengths >= 3
    if num_short := len(log.users) - int(is_long_S.sum()):
        notes.append(
            f"{num_short:,} users of fewer than 3 interactions are neither validated nor tested"
        )
    users = log.users[is_long_S]
    if len(users) == 0:
        raise UserError(
            f"{config.data}: no user has the 3 interactions that leave-one-out needs (one each to "
            "train, validate and test)"
        )
    is_validated_S = is_long_S
    if config.validation_users is not None:
        if config.validation_users > len(users):
            raise UserError(
                f"--validation-users {config.validation_users}: there are {len(users):,} users of "
                "3 interactions or more; use at most that many"
            )
        is_validated_S = np.isin(log.users, _draw(users, config.validation_users))
    train = Part(log, log.starts, log.ends - is_long_S - is_validated_S)
    return Split(
        _trainable(train, config),
        Part(log, log.starts, log.ends - 2).where(is_validated_S),
        Part(log, log.starts, log.ends - 1).where(is_long_S),
        log.occurring(num_items),
    )


def _temporal(log: Log, num_items: int, config: DataConfig, notes: list[str]) -> Split:
    """The global temporal split of the CCE- paper.

    The cut is a quantile of the interactions' times, or a date. 5 % of the users before the cut
    are for validation: their last item before it is the target. Test users are the others who were
    active before and after it: the last item of their whole history is the target, or another one
    after the cut. Items unknown to training are dropped. Unlike the paper, a test user whose items
    after the cut are all unknown is left out, since a training interaction would be the target;
    and so is a user of a single interaction before it, who cannot be trained on.
    """
    assert log.times is not None
    if config.split_date is None:
        quantile = config.split_quantile or _CUT_QUANTILE
        cut = float(np.quantile(log.times, quantile))
        where = f"the {100 * quantile:g} % quantile of time"
    else:
        cut, where = parse_moment(config.split_date), f"--split-date {config.split_date}"
    before_M = log.times < cut
    before_S = log.count(before_M)
    users = log.users[before_S > 0]
    if len(users) < 2:
        raise UserError(
            f"{config.data}: fewer than two users lie before {where}; move the cut, or use "
            "--split leave-one-out"
        )
    validated = _draw(users, max(1, round(_TEMPORAL_SHARE * len(users))))
    is_validated_S = np.isin(log.users, validated)
    train = Part(log, log.starts, log.starts + before_S).where(~is_validated_S)
    train = _trainable(train, config)

    items, known = _known(log, train, num_items)
    assert known.times is not None
    before_S = known.count(known.times < cut)
    cuts_S = known.starts + before_S
    is_validated_S = np.isin(known.users, validated)
    validation = Part(known, known.starts, cuts_S - 1).where(is_validated_S & (before_S >= 2))
    is_tested_S = np.isin(known.users, train.users) & (cuts_S < known.ends)
    test = _targets(known, cuts_S, is_tested_S, config.target)
    for name, part in (("validation", validation), ("test", test)):
        if len(part) == 0:
            raise UserError(
                f"{config.data}: the temporal split leaves no {name} targets; use --split "
                "leave-one-out"
            )
    left_out = len(log.users) - len(train) - len(validated)
    notes.append(f"{left_out:,} users without training events left out")
    for name, asked, tested in (
        ("validation", len(validated), len(validation)),
        ("test", len(train), int(is_tested_S.sum())),
    ):
        if asked > tested:
            notes.append(
                f"{asked - tested:,} of {asked:,} {name} users have no target and are skipped: "
                f"{_NO_TARGET[name]}"
            )
    return Split(train, validation, test, items)


def _targets(log: Log, cuts_S: NDArray[np.int64], tested_S: NDArray[np.bool_], which: str) -> Part:
    """Targets of some users at their cut or behind it, where they have such."""
    begins, firsts, ends = log.starts[tested_S], cuts_S[tested_S], log.ends[tested_S]
    if which == "first":
        return Part(log, begins, firsts)
    if which == "random":
        return Part(log, begins, np.random.default_rng(_SEED).integers(firsts, ends))
    if which == "all":
        counts = ends - firsts
        places = np.repeat(firsts - counts.cumsum() + counts, counts) + np.arange(counts.sum())
        return Part(log, np.repeat(begins, counts), places)
    return Part(log, begins, ends - 1)


def _user_disjoint(log: Log, num_items: int, config: DataConfig, notes: list[str]) -> Split:
    """10 % of the users are validated and as many tested, on their last item; others train.

    Items unknown to training are dropped.
    """
    size = max(1, round(_DISJOINT_SHARE * len(log.users)))
    if len(log.users) < 3:
        raise UserError(
            f"{config.data}: fewer than three users are left; use --split leave-one-out"
        )
    drawn = _draw(log.users, 2 * size)
    train = Part(log, log.starts, log.ends).where(~np.isin(log.users, drawn))
    train = _trainable(train, config)
    items, known = _known(log, train, num_items)
    parts = {}
    for name, users in (("validation", drawn[:size]), ("test", drawn[size:])):
        is_chosen_S = np.isin(known.users, users) & (known.lengths >= 2)
        part = Part(known, known.starts, known.ends - 1).where(is_chosen_S)
        if len(part) == 0:
            raise UserError(
                f"{config.data}: the user-disjoint split leaves no {name} targets; use --split "
                "leave-one-out"
            )
        if size > len(part):
            notes.append(
                f"{size - len(part):,} of {size:,} {name} users have no target and are skipped: "
                "fewer than two of their items occur in training"
            )
        parts[name] = part
    return Split(train, parts["validation"], parts["test"], items)


def _none(log: Log, num_items: int, config: DataConfig, notes: list[str]) -> Split:
    """All is trained on."""
    train = _trainable(Part(log, log.starts, log.ends), config)
    nothing = train.where(np.zeros(len(train), dtype=bool))
    return Split(train, nothing, nothing, log.occurring(num_items))


_SPLITS: dict[str, Callable[[Log, int, DataConfig, list[str]], Split]] = {
    "leave-one-out": _leave_one_out,
    "temporal": _temporal,
    "user-disjoint": _user_disjoint,
    "none": _none,
}


def _draw(users: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).choice(users, size, replace=False)


def _trainable(train: Part, config: DataConfig) -> Part:
    """The sequences that something can be predicted in."""
    train = train.where(train.ends - train.begins >= 2)
    if len(train) == 0:
        raise UserError(
            f"{config.data}: no training sequence has the two interactions that a prediction needs"
        )
    return train


def _known(log: Log, train: Part, num_items: int) -> tuple[NDArray[np.bool_], Log]:
    """The items that training knows [V], and all interactions with them."""
    trained_M = np.zeros(len(log.items) + 1, dtype=np.int8)
    trained_M[train.begins] = 1
    trained_M[train.ends] -= 1
    items = np.zeros(num_items, dtype=bool)
    items[log.items[trained_M[:-1].cumsum(dtype=np.int8).view(bool)]] = True
    return items, log.where(items[log.items])
