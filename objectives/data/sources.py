"""Where interactions come from: named sets and files, through one door."""

import contextlib
import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from objectives.config import ColumnsConfig, DataConfig
from objectives.data.digests import file_digest
from objectives.data.named_sets import NAMED_SETS, fetch
from objectives.errors import UserError

_ALIASES = {
    "user": ("user", "user_id", "userid", "uid", "user_id:token"),
    "item": ("item", "item_id", "itemid", "iid", "item_id:token"),
    "time": ("time", "timestamp", "ts", "datetime", "date", "timestamp:float"),
}
_FORMATS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".parquet": None}
# One row must fit a block; ids of ten million digits do.
_CSV_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Interactions:
    """Raw interactions in file order.

    Attributes:
        users: Dense user codes [M], int32.
        items: Dense item codes [M], int32.
        times: Times [M], int64 or float64, or None where row order is the order.
        item_ids: The source's id of every item code.
        notes: What was dropped or is odd, for people.
        num_users: How many users there are.
    """

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    times: NDArray[np.int64] | NDArray[np.float64] | None
    item_ids: pa.Array
    notes: tuple[str, ...]
    num_users: int


def locate(config: DataConfig) -> tuple[list[Path], ColumnsConfig, tuple[str, ...]]:
    """The files of a data set, fetched if need be, their columns, and what to tell the user."""
    if named := NAMED_SETS.get(config.data):
        path, notes = fetch(config.data, named)
        return [path], named.columns, notes
    path = Path(config.data)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError:  # such as a name that is too long
        is_folder = is_file = False
    if is_folder:
        files = sorted(
            part for part in path.rglob("*") if part.suffix in _FORMATS and part.is_file()
        )
        if not files:
            raise UserError(f"{path}: the folder holds no .csv, .tsv, .inter or .parquet file")
        if len({part.suffix for part in files}) > 1:
            raise UserError(f"{path}: the folder mixes file types; keep the parts of one type")
    elif is_file:
        if path.suffix not in _FORMATS:
            raise UserError(f"{path}: name it .csv, .tsv, .inter or .parquet to say what it is")
        files = [path]
    else:
        raise UserError(
            f"--data {config.data[:200]}: neither a file or folder nor one of the named sets "
            f"({', '.join(NAMED_SETS)})"
        )
    return files, config.columns, ()


def content_digest(files: list[Path], columns: ColumnsConfig) -> str:
    """SHA-256 over the content of the files and the columns that are asked for."""
    digest = hashlib.sha256(repr(columns).encode())
    for file in files:
        with _readable(file):
            digest.update(file_digest(file))
    return digest.hexdigest()


def read(files: list[Path], columns: ColumnsConfig) -> Interactions:
    """Reads, checks and codes the interactions of the files, in their order.

    Raises:
        UserError: A file cannot be read, a column is missing, or no row can be used.
    """
    parts = []
    for file in files:
        with _readable(file):
            parts.append(_read_table(file, columns))
    if len({"time" in part.column_names for part in parts}) > 1:
        raise UserError(f"{files[0].parent}: only some of the files have a time column")
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{files[0].parent}: the files disagree on the types of their columns"
        ) from error
    return _clean(table, files[0] if len(files) == 1 else files[0].parent)


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: cannot be read: {reason}") from error


def _read_table(file: Path, columns: ColumnsConfig) -> pa.Table:
    """Columns user, item and, where there is one, time."""
    delimiter = _FORMATS[file.suffix]
    if file.stat().st_size == 0:
        raise UserError(f"{file}: the file is empty")
    if delimiter is None:
        header = pa.parquet.read_schema(file).names
    else:
        with file.open("rb") as stream:
            line = stream.readline(1 << 20).decode("utf-8-sig", "backslashreplace")
            is_empty = not stream.read(1)
        quoted = delimiter == ","  # between tabs a quote is a character like others
        header = next(csv.reader([line])) if quoted else line.rstrip("\r\n").split(delimiter)
    names = _find_columns(file, header, columns)
    if delimiter is None:
        table = pa.parquet.read_table(file, columns=list(names.values()))
    elif is_empty:
        table = pa.table({name: pa.array([], pa.binary()) for name in names.values()})
    else:
        # Ids stay bytes: any encoding and any length is an id, and 007 is not 7.
        table = pa.csv.read_csv(
            file,
            read_options=pa.csv.ReadOptions(
                block_size=_CSV_BLOCK_BYTES, column_names=header, skip_rows=1
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(names.values()),
                column_types={name: pa.binary() for name in names.values()},
            ),
        )
    return table.select(list(names.values())).rename_columns(list(names))


def _find_columns(file: Path, header: list[str], columns: ColumnsConfig) -> dict[str, str]:
    """Our name -> the file's name; time is left out where there is none."""
    names: dict[str, str] = {}
    for role, aliases in _ALIASES.items():
        wanted = getattr(columns, role)
        if wanted is not None:
            if role == "time" and wanted == "none":
                continue
            found = [name for name in header if name == wanted]
        else:
            found = [name for alias in aliases for name in header if name.lower() == alias][:1]
        if len(found) > 1:
            raise UserError(f"{file}: the column {wanted!r} stands {len(found)} times in the file")
        if found and found[0] in names.values():
            raise UserError(f"{file}: the column {found[0]!r} cannot be two of user, item, time")
        if found:
            names[role] = found[0]
        elif wanted is not None or role != "time":
            shown = ", ".join(header[:20]) + (", …" if len(header) > 20 else "")
            missing = f"no column {wanted!r}" if wanted is not None else f"no {role} column"
            raise UserError(f"{file}: {missing}; choose one with --columns.{role} from: {shown}")
    return names


def _clean(table: pa.Table, where: Path) -> Interactions:
    """Drops and counts what cannot be used; codes users and items by first appearance."""
    if table.num_rows == 0:
        raise UserError(f"{where}: the file has a header but no rows")
    notes = []
    arrays = {name: _flatten(table[name], name, where) for name in table.column_names}
    keep = pc.and_(*(pc.invert(_missing(arrays[name])) for name in ("user", "item")))
    times = None
    if "time" in arrays:
        times, known = _parse_times(arrays["time"], where)
        keep = pc.and_(keep, pa.array(known))
        times = times[np.asarray(keep)]
    dropped = table.num_rows - pc.sum(keep).as_py()
    if dropped == table.num_rows:
        raise UserError(f"{where}: every one of the {dropped:,} rows lacks a user, item or time")
    if dropped:
        notes.append(
            f"dropped {dropped:,} of {table.num_rows:,} rows without a user, item or time"
        )
    users, items = (arrays[name].filter(keep).dictionary_encode() for name in ("user", "item"))
    return Interactions(
        np.asarray(users.indices, dtype=np.int32),
        np.asarray(items.indices, dtype=np.int32),
        times,
        items.dictionary,
        tuple(notes),
        len(users.dictionary),
    )


def _flatten(column: pa.ChunkedArray, name: str, where: Path) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if name != "time" and not (
        pa.types.is_integer(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_null(kind)
    ):
        raise UserError(
            f"{where}: ids must be integers or strings, but the {name} column is {kind}"
        )
    # Offsets of 64 bits: the ids of a column may exceed 2 GiB together.
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
        column = column.cast(pa.large_binary())
    return column.combine_chunks()


def _missing(values: pa.Array) -> pa.Array:
    if pa.types.is_large_binary(values.type):
        return pc.or_kleene(pc.is_null(values), pc.equal(pc.binary_length(values), 0)).fill_null(
            True
        )
    return pc.is_null(values)


def _parse_times(
    values: pa.Array, where: Path
) -> tuple[NDArray[np.int64] | NDArray[np.float64], NDArray[np.bool_]]:
    """Times as numbers, and which of them are there."""
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date64(kind):
        values = values.view(pa.int64())
    elif pa.types.is_date32(kind):
        values = values.view(pa.int32())
    elif pa.types.is_large_binary(kind) or pa.types.is_large_string(kind):
        values = _parse_written_times(values, where)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise UserError(
            f"{where}: times must be numbers, dates or ISO 8601, but the time column is {kind}"
        )
    known = np.asarray(values.is_valid())
    if pa.types.is_floating(values.type):
        numbers = np.asarray(values.fill_null(np.nan), dtype=np.float64)
        return numbers, known & np.isfinite(numbers)
    if pa.types.is_null(values.type):
        return np.zeros(len(values), dtype=np.int64), known
    try:
        return np.asarray(values.fill_null(0).cast(pa.int64())), known
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{where}: the time column exceeds 64 bits; name another with --columns.time"
        ) from error


def _parse_written_times(values: pa.Array, where: Path) -> pa.Array:
    """Integers, floats or ISO 8601, all of one kind; empty becomes null."""
    filled = pc.if_else(_missing(values), None, values)
    try:
        texts = pc.utf8_trim_whitespace(filled.cast(pa.large_string()))
    except pa.ArrowException as error:
        raise UserError(f"{where}: the time column is not UTF-8 text") from error
    for kind in (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            parsed = texts.cast(kind)
        except pa.ArrowException:
            continue
        return parsed.view(pa.int64()) if pa.types.is_timestamp(kind) else parsed
    for row, text in enumerate(texts.to_pylist(), start=1):
        if text is not None and not _is_time(text):
            raise UserError(
                f"{where}, row {row:,}: the time {text[:40]!r} is neither a number nor ISO 8601; "
                "name another column with --columns.time"
            )
    raise UserError(f"{where}: the time column mixes numbers and dates; write all in one way")


def _is_time(text: str) -> bool:
    scalar = pa.scalar(text)
    for kind in (pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            scalar.cast(kind)
        except pa.ArrowException:
            continue
        return True
    return False
