"""From raw interactions to sequences: ordered, filtered, split; once for each content."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from objectives.config import ColumnsConfig, DataConfig
from objectives.data import prepared, sources
from objectives.data.cache import cache_entry, cache_folder, made_by_one
from objectives.data.files import File
from objectives.data.filters import keep_enough
from objectives.data.log import sort
from objectives.data.prepared import PreparedData
from objectives.data.splits import Part, Split, split, unused
from objectives.errors import UserError
from objectives.moments import parse_moment

_STEPS = 2
"""Version of what makes sequences of a source; raise it where the sequences change, and studies
that were begun before are refused."""
_IN_THE_CONTENT = ("data", "query", "columns", "filter")
_ALWAYS_IN_THE_DIGEST = ("split", "min_item_users", "min_user_items", "validation_users")


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
    recipe = [_STEPS, sources.content_digest(files, columns, config.filter)]
    recipe += [getattr(config, name) for name in _ALWAYS_IN_THE_DIGEST]
    # What is as it was before it could be said leaves the digest as it was: studies go on.
    said = config.model_dump(
        mode="json", exclude_defaults=True, exclude={*_IN_THE_CONTENT, *_ALWAYS_IN_THE_DIGEST}
    )
    if since is not None:
        said["since"] = since
    if catalogue is not None:
        ids = repr(catalogue.to_pylist()).encode()
        said["catalogue"] = hashlib.sha256(ids).hexdigest()
    if said:
        recipe.append(said)
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    entry = cache_folder() / "prepared" / digest
    if not entry.is_dir():
        with made_by_one(entry):
            if not entry.is_dir():
                _prepare(entry, files, columns, config, since, catalogue)
    try:
        return prepared.load(entry, sources.name_of(config), digest, notes)
    except (OSError, ValueError) as error:
        raise UserError(f"{entry}: the prepared data is damaged; delete the folder") from error


def _prepare(
    entry: Path,
    files: list[File],
    columns: ColumnsConfig,
    config: DataConfig,
    since: str | None,
    catalogue: pa.Array | None,
) -> None:
    raw = sources.read(files, columns, config.filter)
    # Arrow keeps what it read with: of 100 M rows as much as these rows take.
    pa.default_memory_pool().release_unused()
    if config.split == "temporal" and raw.times is None:
        raise UserError(
            f"--split temporal: {config.data} has no time column; name it with --columns.time or "
            "use --split leave-one-out"
        )
    notes = list(raw.notes)
    ids = raw.item_ids
    log = sort(raw, notes)
    del raw  # It takes as much memory as the log does.
    log = keep_enough(log, len(ids), config, notes)
    parts = split(log, len(ids), config, notes)
    numbers, item_ids = _number(ids, parts.items, catalogue, config)
    if since is not None:
        train = _since(parts.train, since, config)
        parts = Split(train, parts.validation, parts.test, parts.items)
    notes.append(
        f"{config.split}: {len(item_ids):,} items, {len(parts.train):,} training sequences, "
        f"{len(parts.validation):,} validation and {len(parts.test):,} test targets"
    )
    if left := unused(log, parts):
        notes.append(f"{left:,} of {len(log.items):,} interactions are in none of these parts")
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        if repeats := len(part) - int(part.log.is_first[part.ends].sum()):
            notes.append(
                f"{repeats:,} {name} targets are in their user's history: never hit, since seen "
                "items are not recommended"
            )
    with cache_entry(entry) as temporary:
        prepared.write(temporary, parts, numbers, item_ids, notes)


def _number(
    ids: pa.Array, items: NDArray[np.bool_], known: pa.Array | None, config: DataConfig
) -> tuple[NDArray[np.int32], pa.Array]:
    """The number of each item in the catalogue, -1 of others, and the catalogue: known ones first.

    Args:
        ids: The source's, of every item.
        items: Which of them are in the catalogue.
        known: Ids of those that have their numbers already.
        config: For the message.
    """
    codes = np.flatnonzero(items)
    if known is None:
        known = ids.slice(0, 0)
    elif known.type != ids.type:
        raise UserError(
            f"{config.data}: its item ids are {ids.type}, those of the model {known.type}; read "
            "the data from the kind of file that the model was trained on"
        )
    found = pc.index_in(ids.take(pa.array(codes)), value_set=known).fill_null(-1).to_numpy()
    new = codes[found < 0]
    numbers = np.full(len(ids), -1, dtype=np.int32)
    numbers[codes] = found
    numbers[new] = np.arange(len(known), len(known) + len(new), dtype=np.int32)
    return numbers, pa.concat_arrays([known, ids.take(pa.array(new))])


def _since(train: Part, since: str, config: DataConfig) -> Part:
    """Who has an interaction at that time or after it."""
    if train.log.times is None:
        raise UserError(f"--since {since}: {config.data} has no times; leave it out")
    try:
        begin = parse_moment(since)
    except ValueError as error:
        raise UserError(f"--since {since}: {error}") from None
    active = train.where(train.log.times[train.ends - 1] >= begin)
    if len(active) == 0:
        raise UserError(
            f"--since {since}: no training interaction is so late; name an earlier time"
        )
    return active
