"""Where interactions come from: named sets, files, databases and tables, through one door."""

import hashlib
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from objectives.config import ColumnsConfig, DataConfig, FilterConfig
from objectives.data.cache import cache_entry, cache_folder
from objectives.data.files import File, file_digest, find, printable, size_of
from objectives.data.formats import batches, column_chooser, renamed
from objectives.data.growing import Growing
from objectives.data.hosted_sets import BY_HAND, HOSTED_SETS, fetch_hosted
from objectives.data.ids import TEXTS, Ids, MixedTypesError, read_ids
from objectives.data.named_sets import NAMED_SETS, fetch
from objectives.data.progress import bytes_progress
from objectives.data.queries import fetch_query
from objectives.data.synthetic import PREFIX, Synthetic
from objectives.data.times import Times, parse_times
from objectives.errors import UserError


@dataclass(frozen=True)
class Interactions:
    """Raw interactions in file order.

    Attributes:
        users: Dense user codes by first appearance [M], int32; of sessions, where there are some.
        items: Dense item codes by first appearance [M], int32.
        times: Seconds since 1970 [M], int64 where all are whole, else float64; or None where row
            order is the order.
        item_ids: The source's id of every item code: int64, uint64 or large_binary.
        notes: What was dropped or is odd, for people.
        num_users: Different users.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.int64] | NDArray[np.float64] | None
    item_ids: pa.Array
    notes: tuple[str, ...]
    num_users: int


def locate(config: DataConfig) -> tuple[list[File], ColumnsConfig, tuple[str, ...]]:
    """The files of a data set, fetched if need be, their columns, and what to tell the user.

    Raises:
        UserError: There is no such data, or it cannot be had.
    """
    data = config.data
    if config.query is not None:
        files, notes = fetch_query(data, config.query)
        return [*files], config.columns, notes
    if named := NAMED_SETS.get(data):
        path, notes = fetch(data, named)
        return [path], named.columns, notes
    if hosted := HOSTED_SETS.get(data):
        files, notes = fetch_hosted(data, hosted)
        return [*files], ColumnsConfig(), notes
    if is_synthetic(data):
        return [*Synthetic.parse(data).fetch()], ColumnsConfig(), ()
    try:
        return find(data), config.columns, ()
    except FileNotFoundError:
        pass
    if data in BY_HAND:
        where, how = BY_HAND[data]
        raise UserError(f"--data {data}: {where}; then --data {how}")
    fixed = [name for name in (*NAMED_SETS, *HOSTED_SETS) if not name.startswith("amazon-")]
    raise UserError(
        f"--data {data[:200]}: neither a file or folder nor one of the named sets "
        f"({', '.join(fixed)}, amazon-2018-… and amazon-2023-… such as amazon-2023-all-beauty)"
    )


def is_synthetic(data: str) -> bool:
    """Whether the data is to be made up."""
    return data.partition(":")[0] == PREFIX


def name_of(config: DataConfig) -> str:
    """A short name of the data, for people."""
    if config.data in (*NAMED_SETS, *HOSTED_SETS):
        return config.data
    if is_synthetic(config.data):
        return Synthetic.parse(config.data).name
    if "://" in config.data:
        url = urllib.parse.urlsplit(config.data)
        return Path(url.path).stem or url.hostname or url.scheme
    return Path(config.data).resolve().stem


def content_digest(files: list[File], columns: ColumnsConfig, filters: FilterConfig) -> str:
    """SHA-256 over the content of the files, and which rows and columns of them are asked for."""
    asked = {**columns.model_dump(exclude_none=True), **filters.model_dump(exclude_none=True)}
    later = {name: asked[name] for name in asked if name not in ("user", "item", "time")}
    # As earlier versions wrote it, so that their studies go on.
    text = f"ColumnsConfig(user={columns.user!r}, item={columns.item!r}, time={columns.time!r})"
    digest = hashlib.sha256((text + (repr(later) if later else "")).encode())
    for file in files:
        digest.update(file_digest(file))
    return digest.hexdigest()


def read(files: list[File], columns: ColumnsConfig, filters: FilterConfig) -> Interactions:
    """Reads, checks and codes the interactions of the files, in their order.

    Raises:
        UserError: A file cannot be read, a column is missing, or no row can be used.
    """
    where = files[0] if len(files) == 1 else files[0].parent
    rows = _Rows(where, filters)
    choose = column_chooser(columns, _roles(columns, filters))
    sizes = [size_of(file) for file in files]
    with bytes_progress("reading", sum(sizes)) as show:
        before = 0
        for file, size in zip(files, sizes, strict=True):
            rows.begin(file)
            for batch, done in batches(file, choose):
                show(before + done)
                rows.add(batch)
            before += size
    return rows.interactions()


def from_table(table: Any, columns: ColumnsConfig, filters: FilterConfig) -> Interactions:
    """The interactions of a table in memory, in the order of its rows.

    Args:
        table: A pandas DataFrame, or a pyarrow Table or RecordBatch.
        columns: The names of its columns.
        filters: Which rows are kept.

    Raises:
        UserError: A column is missing, or no row can be used.
    """
    table = _arrow_table(table)
    where = Path("the table")
    names = column_chooser(columns, _roles(columns, filters))(where, table.column_names)
    rows = _Rows(where, filters)
    rows.begin(where)
    for batch in table.to_batches():
        rows.add(renamed(batch, names))
    return rows.interactions()


def keep_table(table: Any) -> Path:
    """A file of the cache with a table in memory, for whatever process is to read it.

    Args:
        table: As `from_table` takes it.

    Raises:
        UserError: A column cannot be written.
    """
    content = pa.BufferOutputStream()
    pa.parquet.write_table(_arrow_table(table), content, compression="zstd")
    buffer = content.getvalue()
    key = hashlib.sha256(buffer).hexdigest()[:16]
    target = cache_folder() / "raw" / f"table-{key}.parquet"
    if not target.is_file():
        with cache_entry(target) as temporary:
            temporary.write_bytes(buffer)
    return target


def _arrow_table(table: Any) -> pa.Table:
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    if isinstance(table, pa.Table):
        return table
    try:
        return pa.Table.from_pandas(table, preserve_index=False)
    except pa.ArrowException as error:
        raise UserError(f"the table: {printable(str(error), 200)}") from error


def _roles(columns: ColumnsConfig, filters: FilterConfig) -> list[str]:
    wanted = {
        "rating": filters.min_rating is not None,
        "event": filters.events is not None,
        "session": columns.session is not None,
    }
    return ["user", "item", "time", *(role for role, is_wanted in wanted.items() if is_wanted)]


class _Rows:
    """Codes rows batch by batch; drops and counts what cannot be used or is not wanted."""

    def __init__(self, where: object, filters: FilterConfig) -> None:
        self._where, self._filters = where, filters
        self._file: object = where
        self._ids = {"user": Ids(), "item": Ids(), "session": Ids(), "pair": Ids()}
        self._codes = {"user": Growing(np.int32), "item": Growing(np.int32)}
        self._times = Times()
        self._has_times: bool | None = None
        self._num_rows = self._rows_of_file = 0
        self._dropped: dict[str, int] = {}

    def begin(self, file: object) -> None:
        """The rows that follow are of this file."""
        self._file, self._rows_of_file = file, 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Rows with columns under our names.

        Raises:
            UserError: A column is not what it should be, or not as in the files before.
        """
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        has_times = "time" in columns
        if self._has_times not in (None, has_times):
            raise UserError(f"{self._where}: only some of the files have a time column")
        self._has_times = has_times
        keep = np.ones(batch.num_rows, dtype=bool)
        ids = {}
        for name in ("user", "item", "session"):
            if name in columns:
                ids[name], known = read_ids(columns[name], name, self._file)
                keep &= known
        if has_times:
            moments = parse_times(columns["time"], self._file, self._rows_of_file)
            keep &= moments.known
        self._drop(~keep, "without a user, item or time")
        if "rating" in columns:
            keep = self._keep_rated(columns["rating"], keep)
        if "event" in columns:
            keep = self._keep_events(columns["event"], keep)
        self._num_rows += batch.num_rows
        self._rows_of_file += batch.num_rows
        if not keep.any():
            return
        if has_times:
            self._times.append(moments, keep, self._where)
        self._encode(ids, keep)

    def _keep_rated(self, column: pa.Array, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        least = self._filters.min_rating
        assert least is not None
        try:
            ratings = np.asarray(_texts(column).cast(pa.float64()).fill_null(np.nan))
        except pa.ArrowException:
            raise UserError(
                f"{self._file}: the rating column is not one of numbers; name another with "
                "--columns.rating"
            ) from None
        is_rated = ~np.isnan(ratings)
        self._drop(keep & ~is_rated, "without a rating")
        is_high: NDArray[np.bool_] = ratings >= least
        self._drop(keep & is_rated & ~is_high, f"with a rating below {least:g}")
        return keep & is_high

    def _keep_events(self, column: pa.Array, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        events = self._filters.events
        assert events is not None
        try:
            texts = _texts(column)
            if texts.type != pa.large_binary():
                texts = texts.cast(pa.large_string()).cast(pa.large_binary())
        except pa.ArrowException:
            raise UserError(
                f"{self._file}: the event column is {column.type}, not one of words or numbers; "
                "name another with --columns.event"
            ) from None
        wanted = pa.array([event.encode() for event in events], pa.large_binary())
        is_wanted: NDArray[np.bool_] = np.asarray(pc.is_in(texts, value_set=wanted))
        self._drop(keep & ~is_wanted, f"of other events than {', '.join(events)}")
        return keep & is_wanted

    def _drop(self, rows: NDArray[np.bool_], why: str) -> None:
        self._dropped[why] = self._dropped.get(why, 0) + int(rows.sum())

    def _encode(self, ids: dict[str, pa.Array], keep: NDArray[np.bool_]) -> None:
        kept = ids if keep.all() else {name: ids[name].filter(pa.array(keep)) for name in ids}
        try:
            codes = {name: self._ids[name].encode(values) for name, values in kept.items()}
        except MixedTypesError:
            raise UserError(
                f"{self._where}: the files disagree on the types of their columns"
            ) from None
        if "session" in codes:
            # Sessions may be counted anew for every user.
            pairs = codes["session"].astype(np.int64)
            if "user" in codes:
                pairs += codes["user"].astype(np.int64) << 32
            codes["user"] = self._ids["pair"].encode(pa.array(pairs))
        for name, growing in self._codes.items():
            growing.append(codes[name])

    def interactions(self) -> Interactions:
        """What was kept.

        Raises:
            UserError: Nothing was.
        """
        if self._num_rows == 0:
            raise UserError(f"{self._where}: the file has a header but no rows")
        dropped = {why: count for why, count in self._dropped.items() if count}
        if sum(dropped.values()) == self._num_rows:
            if len(dropped) == 1 and "without a user, item or time" in dropped:
                raise UserError(
                    f"{self._where}: every one of the {self._num_rows:,} rows lacks a user, item "
                    "or time"
                )
            reasons = "; ".join(f"{count:,} {why}" for why, count in dropped.items())
            raise UserError(
                f"{self._where}: none of the {self._num_rows:,} rows is left ({reasons}); change "
                "--filter.min-rating or --filter.events"
            )
        times, notes = self._times.seconds(self._where) if self._has_times else (None, ())
        users = self._ids["pair"] if len(self._ids["pair"]) else self._ids["user"]
        return Interactions(
            self._codes["user"].take(),
            self._codes["item"].take(),
            times,
            self._ids["item"].ids(),
            tuple(
                f"dropped {count:,} of {self._num_rows:,} rows {why}"
                for why, count in dropped.items()
            )
            + notes,
            len(users),
        )


def _texts(column: pa.Array) -> pa.Array:
    """A column that Arrow can cast to numbers or text; empty text is null."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type in TEXTS:
        column = column.cast(pa.large_binary())
        return pc.if_else(pc.equal(pc.binary_length(column), 0), None, column)
    return column
