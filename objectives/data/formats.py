"""From a file to record batches with the columns that are wanted, under our names."""

import csv
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from objectives.config import ColumnsConfig
from objectives.data.files import (
    File,
    format_of,
    open_file,
    open_text,
    printable,
    readable,
    size_of,
)
from objectives.errors import UserError

ALIASES = {
    "user": ("user", "user_id", "userid", "uid", "user_id:token"),
    "item": ("item", "item_id", "itemid", "iid", "item_id:token"),
    "time": ("time", "timestamp", "ts", "datetime", "date", "timestamp:float"),
    "rating": ("rating", "rating:float"),
    "event": ("event", "event_type"),
    "session": (),
}
# One row must fit a block; ids of ten million digits do.
_BLOCK_BYTES = 64 << 20
_HEADER_BYTES = 1 << 20
_PARQUET_ROWS = 1 << 20

Choose = Callable[[File, list[str]], dict[str, str]]
"""From a file and the names of its columns: our names -> the file's."""


def batches(file: File, choose: Choose) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The rows of a file in order, in batches that fit the memory.

    Args:
        file: Of a known format.
        choose: Which columns are wanted.

    Yields:
        A batch, and how many bytes of the file have been read.

    Raises:
        UserError: The file cannot be read, or a column is missing.
    """
    suffix = format_of(file)[0]
    with readable(file):
        if size_of(file) == 0:
            raise UserError(f"{file}: the file is empty")
        match suffix:
            case ".parquet":
                yield from _parquet(file, choose)
            case ".csv":
                yield from _delimited(file, ",", choose)
            case ".tsv" | ".inter":
                yield from _delimited(file, "\t", choose)
            case _:
                yield from _json(file, choose)


def column_chooser(columns: ColumnsConfig, roles: list[str]) -> Choose:
    """Finds the columns of these roles by the names that were given, or by the usual ones."""

    def choose(file: File, header: list[str]) -> dict[str, str]:
        names: dict[str, str] = {}
        for role in roles:
            wanted = getattr(columns, role)
            if wanted is not None:
                if role == "time" and wanted == "none":
                    continue
                found = [name for name in header if name == wanted]
            else:
                usual = ALIASES[role]
                found = [name for alias in usual for name in header if name.lower() == alias][:1]
            if len(found) > 1:
                raise UserError(
                    f"{file}: the column {wanted!r} stands {len(found)} times in the file"
                )
            if found and found[0] in names.values():
                raise UserError(
                    f"{file}: the column {found[0]!r} cannot be two of {', '.join(roles)}"
                )
            if found:
                names[role] = found[0]
            elif wanted is not None or not (
                role == "time" or (role == "user" and "session" in roles)
            ):
                shown = ", ".join(printable(name, 40) for name in header[:20])
                shown += ", …" if len(header) > 20 else ""
                missing = f"no column {wanted!r}" if wanted is not None else f"no {role} column"
                raise UserError(
                    f"{file}: {missing}; choose one with --columns.{role} from: {shown}"
                )
        return names

    return choose


def renamed(batch: pa.RecordBatch, names: dict[str, str]) -> pa.RecordBatch:
    """The wanted columns under our names; of several that are called the same, the first."""
    places = [batch.schema.names.index(name) for name in names.values()]
    return batch.select(places).rename_columns(list(names))


def _parquet(file: File, choose: Choose) -> Iterator[tuple[pa.RecordBatch, int]]:
    with open_file(file) as raw:
        parquet = pa.parquet.ParquetFile(raw)
        names = choose(file, parquet.schema_arrow.names)
        rows, done = parquet.metadata.num_rows, 0
        wanted = list(dict.fromkeys(names.values()))
        for batch in parquet.iter_batches(_PARQUET_ROWS, columns=wanted):
            done += batch.num_rows
            yield renamed(batch, names), size_of(file) * done // max(1, rows)
    if done != rows:
        raise UserError(f"{file}: cannot be read: it has {done:,} rows, and says {rows:,}")


def _delimited(file: File, delimiter: str, choose: Choose) -> Iterator[tuple[pa.RecordBatch, int]]:
    stream, _ = open_text(file)
    with stream:
        head = stream.read(_HEADER_BYTES)
    line, end, rest = head.partition(b"\n")
    if not head:
        raise UserError(f"{file}: the file is empty")
    quoted = delimiter == ","  # between tabs a quote is a character like others
    text = line.decode("utf-8-sig", "backslashreplace")
    try:
        header = next(csv.reader([text]), []) if quoted else text.rstrip("\r").split(delimiter)
    except csv.Error as error:
        raise UserError(f"{file}: the first line is no header: {error}") from None
    names = choose(file, header)
    if not (end and rest):
        return
    stream, raw = open_text(file)
    with stream:
        # Ids stay bytes: any encoding and any length is an id, and 007 is not 7.
        reader = pa.csv.open_csv(
            stream,
            read_options=pa.csv.ReadOptions(
                block_size=_BLOCK_BYTES, column_names=header, skip_rows=1
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(names.values()),
                column_types={name: pa.binary() for name in names.values()},
            ),
        )
        for batch in reader:
            yield renamed(batch, names), raw.tell()


def _json(file: File, choose: Choose) -> Iterator[tuple[pa.RecordBatch, int]]:
    stream, _ = open_text(file)
    with stream:
        head = stream.read(_HEADER_BYTES)
    if not head.strip():
        raise UserError(f"{file}: the file is empty")
    rows = _first_rows(head)
    if not rows:
        raise UserError(
            f"{file}: the first line is no object of JSON; write one object, such as "
            '{"user": 1, "item": 2}, a line'
        )
    names = choose(file, list(dict.fromkeys(name for row in rows for name in row)))
    schema = pa.schema([(name, _type_of(rows, name)) for name in names.values()])
    stream, raw = open_text(file)
    with stream:
        reader = pa.json.open_json(
            stream,
            read_options=pa.json.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pa.json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        for batch in reader:
            yield renamed(batch, names), raw.tell()


def _first_rows(head: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in head.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if line.strip():
                break  # cut off, or what pyarrow will say more of
            continue
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def _type_of(rows: list[dict[str, Any]], name: str) -> pa.DataType:
    """Of the values of a column in the first rows; the others have to agree."""
    values = [row[name] for row in rows if row.get(name) is not None]
    if any(isinstance(value, float) for value in values):
        return pa.float64()
    if values and all(type(value) is int for value in values):
        return pa.int64()
    if values and isinstance(values[0], bool):
        return pa.bool_()
    return pa.string()
