"""From raw interactions to sequences: filter, encode, split; cached by content.

Shapes: M interactions, S sequences.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from objectives.config import DataConfig
from objectives.data import sources
from objectives.data.cache import cache_entry, cache_folder
from objectives.data.moments import parse_moment
from objectives.data.named_sets import NAMED_SETS
from objectives.errors import UserError

_FORMAT = 2
"""Version of the prepared files; raise it when they or the steps before them change."""

_CUT_QUANTILE = 0.9
_VALIDATION_SHARE = 0.05
_VALIDATION_SEED = 42
_NO_TARGET = {
    "validation": "fewer than two of their items before the cut occur in training",
    "test": "no item after the cut, or none that is their last and occurs in training",
}
"""Why a user of the temporal split is skipped."""


@dataclass(frozen=True)
class Sequences:
    """Item sequences, one after the other.

    Attributes:
        items: Item ids [M], int32, oldest first in each sequence.
        offsets: Sequence s is items[offsets[s] : offsets[s + 1]]; [S + 1], int64.
    """

    items: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Items of each sequence [S]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Targets:
    """Histories and the one item that followed each.

    Attributes:
        inputs: The histories, S sequences of at least one item.
        items: What followed [S], int32.
    """

    inputs: Sequences
    items: NDArray[np.int32]


@dataclass(frozen=True)
class PreparedData:
    """What a trial trains and is judged on.

    Attributes:
        name: Short name for people.
        digest: Identifies content, filters and split.
        num_items: V; ids are 0 .. V-1.
        item_ids: The source's id of every item.
        train: Sequences of at least two items.
        validation: Targets that the search sees.
        test: Targets that it never sees.
        notes: What was dropped or is odd, for people.
    """

    name: str
    digest: str
    num_items: int
    item_ids: pa.Array
    train: Sequences
    validation: Targets
    test: Targets
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Log:
    """Interactions sorted by user, then time, then row."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64] | NDArray[np.float64] | None

    def where(self, keep: NDArray[np.bool_]) -> "_Log":
        return _Log(
            self.users[keep],
            self.items[keep],
            None if self.times is None else self.times[keep],
        )


def prepare(
    config: DataConfig, *, since: str | None = None, catalogue: pa.Array | None = None
) -> PreparedData:
    """The prepared data of a configuration, from the cache if it was prepared before.

    Args:
        config: Which data, filtered and split how.
        since: Only users with a training interaction at or after this date or time are trained
            on, with all that lies before, too.
        catalogue: Ids of items that a model knows: they are the first ones, as they are in it,
            and those of the data that it does not know follow.

    Raises:
        UserError: The data cannot be used; the message says what, where and what to do.
    """
    files, columns, notes = sources.locate(config)
    recipe = [
        _FORMAT,
        sources.content_digest(files, columns),
        config.split,
        config.min_item_users,
        config.min_user_items,
        config.validation_users,
    ]
    if since is not None:
        recipe.append({"since": since})
    if catalogue is not None:
        recipe.append(
            {"catalogue": hashlib.sha256(repr(catalogue.to_pylist()).encode()).hexdigest()}
        )
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    entry = cache_folder() / "prepared" / digest
    if not entry.is_dir():
        data = _prepare(sources.read(files, columns), config, digest, since, catalogue)
        with cache_entry(entry) as temporary:
            _save(data, temporary)
    try:
        return _load(entry, _name(config), digest, notes)
    except (OSError, ValueError) as error:
        raise UserError(f"{entry}: the prepared data is damaged; delete the folder") from error


def _name(config: DataConfig) -> str:
    return config.data if config.data in NAMED_SETS else Path(config.data).resolve().stem


def _prepare(
    raw: sources.Interactions,
    config: DataConfig,
    digest: str,
    since: str | None,
    known: pa.Array | None,
) -> PreparedData:
    notes = list(raw.notes)
    if config.split == "temporal" and raw.times is None:
        raise UserError(
            f"--split temporal: {config.data} has no time column; name it with --columns.time or "
            "use --split leave-one-out"
        )
    if raw.times is None:
        notes.append("no time column: the order of the rows is the order of the interactions")
        order = np.argsort(raw.users, kind="stable")
    else:
        order = np.lexsort((raw.times, raw.users))
        tied = np.diff(raw.times[order]) == 0
        tied &= np.diff(raw.users[order]) == 0
        if tied.any():
            notes.append(
                f"{tied.sum():,} of {len(order):,} interactions share their time with the user's "
                "previous one: file order decides"
            )
    log = _Log(raw.users[order], raw.items[order], None if raw.times is None else raw.times[order])
    log = _filter(log, config, notes)
    train, validation, test = _SPLITS[config.split](log, config, notes)

    # The catalogue: training items under a temporal split, all items under others: of
    # leave-one-out published results rank items that only occur as targets too.
    items = np.unique(train.items if config.split == "temporal" else log.items)
    encode, item_ids = _encode(raw.item_ids, items, known, config)
    if since is not None:
        train = _active(train, since, config)
    notes.append(
        f"{config.split}: {len(item_ids):,} items, {_count(train):,} training sequences, "
        f"{_count(validation):,} validation and {_count(test):,} test targets"
    )
    for name, part in (("validation", validation), ("test", test)):
        if repeats := _repeated_targets(part):
            notes.append(
                f"{repeats:,} {name} targets are in their user's history: never hit, since seen "
                "items are not recommended"
            )
    return PreparedData(
        _name(config),
        digest,
        len(item_ids),
        item_ids,
        _sequences(train, encode),
        _targets(validation, encode),
        _targets(test, encode),
        tuple(notes),
    )


def _encode(
    ids: pa.Array, items: NDArray[np.int64], known: pa.Array | None, config: DataConfig
) -> tuple[NDArray[np.int32], pa.Array]:
    """The number of each of these items, -1 of others, and their ids: known ones first."""
    encode = np.full(len(ids), -1, dtype=np.int32)
    if known is None:
        known = ids.slice(0, 0)
    elif known.type != ids.type:
        raise UserError(
            f"{config.data}: its item ids are {ids.type}, those of the model {known.type}; read "
            "the data from the kind of file that the model was trained on"
        )
    places = pc.index_in(ids.take(pa.array(items)), value_set=known).fill_null(-1).to_numpy()
    new = items[places < 0]
    encode[items] = places
    encode[new] = np.arange(len(known), len(known) + len(new), dtype=np.int32)
    return encode, pa.concat_arrays([known, ids.take(pa.array(new))])


def _active(train: _Log, since: str, config: DataConfig) -> _Log:
    """The users with an interaction at that time or after it."""
    if train.times is None:
        raise UserError(f"--since {since}: {config.data} has no times; leave it out")
    begin = parse_moment(since, train.times, "--since")
    active = train.where(np.isin(train.users, train.users[train.times >= begin]))
    if len(active.users) == 0:
        raise UserError(
            f"--since {since}: no training interaction is so late; name an earlier time"
        )
    return active


def _count(log: _Log) -> int:
    return len(np.unique(log.users))


def _filter(log: _Log, config: DataConfig, notes: list[str]) -> _Log:
    """A single pass, as in the CCE- paper: rare items first, then users with few items left."""
    pairs = _distinct_pairs(log)
    item_users = np.bincount(pairs.items)
    kept = log.where(item_users[log.items] >= config.min_item_users)
    rare = (item_users > 0).sum() - (item_users >= max(1, config.min_item_users)).sum()
    if rare:
        notes.append(
            f"dropped {rare:,} items of fewer than {config.min_item_users} users "
            f"({len(log.users) - len(kept.users):,} interactions)"
        )
    user_items = np.bincount(_distinct_pairs(kept).users, minlength=int(log.users.max()) + 1)
    result = kept.where(user_items[kept.users] >= config.min_user_items)
    few = _count(log) - _count(result)
    if few:
        notes.append(
            f"dropped {few:,} users of fewer than {config.min_user_items} of these items "
            f"({len(kept.users) - len(result.users):,} interactions)"
        )
    if len(result.users) == 0:
        raise UserError(
            f"{config.data}: no interaction is left once items of fewer than "
            f"{config.min_item_users} users and users of fewer than {config.min_user_items} items "
            "are dropped; lower --min-item-users or --min-user-items"
        )
    if len(np.unique(result.items)) < 2:
        raise UserError(f"{config.data}: only one item is left; there is nothing to rank")
    return result


def _distinct_pairs(log: _Log) -> _Log:
    order = np.lexsort((log.items, log.users))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(log.users[order]) != 0) | (np.diff(log.items[order]) != 0)
    return _Log(log.users[order][first], log.items[order][first], None)


def _from_end(users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each interaction counted from its user's last, which is 0."""
    if len(users) == 0:
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.diff(users, prepend=users[0] - 1))
    ends = np.append(starts[1:], len(users))
    return np.repeat(ends, ends - starts) - 1 - np.arange(len(users))


def _lengths(log: _Log) -> NDArray[np.int64]:
    """Of each interaction, how many its user has."""
    if len(log.users) == 0:
        return np.zeros(0, dtype=np.int64)
    return np.bincount(log.users)[log.users]


def _leave_one_out(log: _Log, config: DataConfig, notes: list[str]) -> tuple[_Log, _Log, _Log]:
    """Each user's last item is the test target, the one before the validation target.

    With fewer users to validate, the latter item of all others is trained on.
    """
    position, length = _from_end(log.users), _lengths(log)
    short = length < 3
    if short.any():
        notes.append(
            f"{len(np.unique(log.users[short])):,} users of fewer than 3 interactions are "
            "neither validated nor tested"
        )
    test = log.where(~short)
    if len(test.users) == 0:
        raise UserError(
            f"{config.data}: no user has the 3 interactions that leave-one-out needs (one each to "
            "train, validate and test)"
        )
    users = np.unique(test.users)
    if config.validation_users is not None:
        if config.validation_users > len(users):
            raise UserError(
                f"--validation-users {config.validation_users}: there are {len(users):,} users of "
                "3 interactions or more; use at most that many"
            )
        users = np.random.default_rng(_VALIDATION_SEED).choice(
            users, config.validation_users, replace=False
        )
    is_validated = np.isin(log.users, users)
    train = log.where(short | (position >= np.where(is_validated, 2, 1)))
    train = train.where(_lengths(train) >= 2)
    validation = log.where(~short & is_validated & (position >= 1))
    return _require_training(train, config), validation, test


def _temporal(log: _Log, config: DataConfig, notes: list[str]) -> tuple[_Log, _Log, _Log]:
    """The global temporal split of the CCE- paper.

    The cut is the 90 % quantile of the interactions' times. 5 % of the users before the cut are
    for validation: their last item before it is the target. Test users are the others who were
    active before and after it: the last item of their whole history is the target. Items unknown
    to training are dropped. Unlike the paper, a test user whose items after the cut are all
    unknown is left out, since a training interaction would be the target; and so is a user of a
    single interaction before it, who cannot be trained on.
    """
    assert log.times is not None
    cut = np.quantile(log.times, _CUT_QUANTILE)
    before = log.times < cut
    users = np.unique(log.users[before])
    if len(users) < 2:
        raise UserError(
            f"{config.data}: fewer than two users lie before the 90 % quantile of time; use "
            "--split leave-one-out"
        )
    chosen = np.random.default_rng(_VALIDATION_SEED).choice(
        users, max(1, round(_VALIDATION_SHARE * len(users))), replace=False
    )
    is_chosen = np.isin(log.users, chosen)
    train = log.where(before & ~is_chosen)
    train = _require_training(train.where(_lengths(train) >= 2), config)
    known = np.isin(log.items, train.items)

    validation = log.where(before & is_chosen & known)
    validation = validation.where(_lengths(validation) >= 2)
    test = log.where(known & np.isin(log.users, train.users))
    assert test.times is not None
    is_last = _from_end(test.users) == 0
    ends_after = np.isin(test.users, test.users[is_last & (test.times >= cut)])
    test = test.where(ends_after)
    test = test.where(_lengths(test) >= 2)
    for name, part in (("validation", validation), ("test", test)):
        if len(part.users) == 0:
            raise UserError(
                f"{config.data}: the temporal split leaves no {name} targets; use --split "
                "leave-one-out"
            )
    late = ~np.isin(log.users, train.users) & ~is_chosen
    notes.append(f"{len(np.unique(log.users[late])):,} users without training events left out")
    for name, users_of_split, part in (
        ("validation", chosen, validation),
        ("test", np.unique(train.users), test),
    ):
        if without := len(users_of_split) - _count(part):
            notes.append(
                f"{without:,} of {len(users_of_split):,} {name} users have no target and are "
                f"skipped: {_NO_TARGET[name]}"
            )
    return train, validation, test


def _none(log: _Log, config: DataConfig, notes: list[str]) -> tuple[_Log, _Log, _Log]:
    """All is trained on, nothing is validated or tested."""
    train = _require_training(log.where(_lengths(log) >= 2), config)
    nothing = log.where(np.zeros(len(log.users), dtype=bool))
    return train, nothing, nothing


_SPLITS = {"leave-one-out": _leave_one_out, "temporal": _temporal, "none": _none}


def _require_training(train: _Log, config: DataConfig) -> _Log:
    if len(train.users) == 0:
        raise UserError(
            f"{config.data}: no training sequence has the two interactions that a prediction needs"
        )
    return train


def _repeated_targets(log: _Log) -> int:
    is_target = _from_end(log.users) == 0
    pairs = _distinct_pairs(log), _distinct_pairs(log.where(~is_target))
    return int(is_target.sum()) - (len(pairs[0].users) - len(pairs[1].users))


def _sequences(log: _Log, encode: NDArray[np.int32]) -> Sequences:
    starts = np.flatnonzero(np.diff(log.users, prepend=-1))
    return Sequences(encode[log.items], np.append(starts, len(log.users)).astype(np.int64))


def _targets(log: _Log, encode: NDArray[np.int32]) -> Targets:
    is_target = _from_end(log.users) == 0
    return Targets(_sequences(log.where(~is_target), encode), encode[log.items[is_target]])


def _save(data: PreparedData, folder: Path) -> None:
    folder.mkdir()
    for name, sequences in (
        ("train", data.train),
        ("validation", data.validation.inputs),
        ("test", data.test.inputs),
    ):
        np.save(folder / f"{name}_items.npy", sequences.items)
        np.save(folder / f"{name}_offsets.npy", sequences.offsets)
    np.save(folder / "validation_targets.npy", data.validation.items)
    np.save(folder / "test_targets.npy", data.test.items)
    pa.parquet.write_table(pa.table({"item": data.item_ids}), folder / "item_ids.parquet")
    (folder / "notes.json").write_text(json.dumps(data.notes))


def _load(folder: Path, name: str, digest: str, notes: tuple[str, ...]) -> PreparedData:
    def sequences(part: str) -> Sequences:
        return Sequences(
            np.load(folder / f"{part}_items.npy"), np.load(folder / f"{part}_offsets.npy")
        )

    item_ids = pa.parquet.read_table(folder / "item_ids.parquet")["item"].combine_chunks()
    return PreparedData(
        name,
        digest,
        len(item_ids),
        item_ids,
        sequences("train"),
        Targets(sequences("validation"), np.load(folder / "validation_targets.npy")),
        Targets(sequences("test"), np.load(folder / "test_targets.npy")),
        notes + tuple(json.loads((folder / "notes.json").read_text())),
    )
