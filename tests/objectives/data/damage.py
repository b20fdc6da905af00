"""Files of interactions, damaged at random but the same in every run, and what is true of them."""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from objectives.config import ColumnsConfig, FilterConfig
from objectives.data import sources
from objectives.data.files import format_of
from objectives.errors import UserError

FORMATS = (
    "log.csv", "log.tsv", "log.jsonl", "log.parquet",
    "log.csv.gz", "log.tsv.zst", "log.jsonl.gz", "log.jsonl.zst",
)  # fmt: skip

HOSTILE = (
    "=cmd|' /C calc'!A0", "@SUM(1+1)", "<script>alert(1)</script>", "a\x00b", "\u202egpj.exe",
    "\ufeff", "\ud800".encode("utf-8", "surrogatepass").decode("latin1"), "../../etc/passwd",
    "9" * 400, "-0", "007", "1e5", "NaN", "null", "true", "x" * 70_000, "\x1b[31m", "'; drop",
    '"', "a\tb", "a,b", "a\rb", "٣", "🦊", "",
)  # fmt: skip
_TIMES = ("5", "-1", "1709465696", "1709465696000", "2024-03-03", "2024-03-03T11:34:56Z", "1.5",
          "nan", "inf", "", "soon", "9" * 30, "0x10", "1e400")  # fmt: skip


def files(name: str, count: int, seed: int = 0) -> Iterator[bytes]:
    """So many files of a format, of which most are damaged."""
    generator = np.random.default_rng([seed, FORMATS.index(name)])
    for number in range(count):
        rows = _rows(generator, hostile=number % 3 == 0)
        content = _mutated(_text(name, rows, generator), generator, number % 5)
        if name.endswith(".gz"):
            # A packed file is small, whatever comes out of it.
            content += b"9" * 2_000_000 if number % 50 == 7 else b""
            content = _mutated(gzip.compress(content, 1), generator, number // 5 % 6)
        elif name.endswith(".zst"):
            content = bytes(pa.compress(content, "zstd", asbytes=True))
            content = _mutated(content, generator, number // 5 % 6)
        yield content


def _rows(generator: np.random.Generator, *, hostile: bool) -> list[tuple[str, str, str]]:
    def draw(words: tuple[str, ...]) -> str:
        return words[int(generator.integers(len(words)))]

    time = draw(_TIMES if generator.random() < 0.1 else _TIMES[:7])
    return [
        (
            draw(HOSTILE) if hostile and generator.random() < 0.3 else str(generator.integers(5)),
            draw(HOSTILE) if hostile and generator.random() < 0.3 else str(generator.integers(9)),
            draw(_TIMES) if hostile and generator.random() < 0.02 else time,
        )
        for _ in range(int(generator.integers(0, 25)))
    ]


def _text(name: str, rows: list[tuple[str, str, str]], generator: np.random.Generator) -> bytes:
    if name.endswith(".parquet"):
        return _parquet(rows, generator)
    if ".jsonl" in name:
        objects = [dict(zip(("user", "item", "time"), row, strict=True)) for row in rows]
        lines = [json.dumps(each, ensure_ascii=bool(generator.integers(2))) for each in objects]
        return "\n".join([*lines, ""]).encode("utf-8", "replace")
    text = io.StringIO()
    if ".tsv" in name:
        text.write("user\titem\ttime\n")
        text.writelines("\t".join(row) + "\n" for row in rows)
    else:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([("user", "item", "time"), *rows])
    encoding = ("utf-8", "utf-8-sig", "utf-16", "latin1")[int(generator.integers(40)) % 37 % 4]
    return text.getvalue().encode(encoding, "replace")


def _parquet(rows: list[tuple[str, str, str]], generator: np.random.Generator) -> bytes:
    columns = dict(zip(("user", "item", "time"), zip(*rows, strict=True), strict=False))
    if not rows:
        columns = {"user": (), "item": (), "time": ()}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    kinds = (pa.string(), pa.int64(), pa.float32(), pa.bool_(), pa.timestamp("ms"), pa.date32())
    for position, name in enumerate(table.column_names):
        kind = kinds[int(generator.integers(12)) % len(kinds)]
        try:
            table = table.set_column(position, name, table[name].cast(kind))
        except pa.ArrowException:
            continue
    sink = io.BytesIO()
    compression = ("none", "snappy", "zstd")[int(generator.integers(3))]
    pq.write_table(table, sink, compression=compression, row_group_size=5)
    return sink.getvalue()


def _mutated(content: bytes, generator: np.random.Generator, kind: int) -> bytes:
    if not content or kind not in (1, 2, 3):
        return content
    changed = bytearray(content)
    if kind == 1:  # cut off
        return bytes(changed[: int(generator.integers(len(changed)))])
    if kind == 2:  # bits flipped
        for place in generator.integers(0, len(changed), int(generator.integers(1, 6))):
            changed[place] ^= 1 << int(generator.integers(8))
        return bytes(changed)
    begin, end = np.sort(generator.integers(0, len(changed), 2))
    changed[begin:end] = generator.bytes(int(generator.integers(20)))  # a part replaced
    return bytes(changed)


def check(path: Path, content: bytes) -> str:
    """Reads a file and asserts what is true of every file.

    Returns:
        read or refused.
    """
    path.write_bytes(content)
    try:
        log = sources.read([path], ColumnsConfig(), FilterConfig())
    except UserError as error:
        message = str(error)
        assert str(path) in message
        assert message.isprintable(), ascii(message)
        assert len(message) < 1000
        return "refused"
    kept = len(log.users)
    assert kept == len(log.items) > 0
    assert log.times is None or (len(log.times) == kept and np.isfinite(log.times).all())
    # Codes are dense, by first appearance.
    for codes, count in ((log.users, log.num_users), (log.items, len(log.item_ids))):
        first_seen = dict.fromkeys(codes.tolist())
        assert list(first_seen) == list(range(count))
    assert len(set(log.item_ids.to_pylist())) == len(log.item_ids)
    dropped = [re.fullmatch(r"dropped ([\d,]+) of ([\d,]+) rows .*", note) for note in log.notes]
    lost = sum(int(match[1].replace(",", "")) for match in dropped if match)
    assert kept + lost == num_rows(path, content), log.notes
    return "read"


def num_rows(path: Path, content: bytes) -> int:
    """The rows of a file that can be read, counted in another way."""
    suffix, codec = format_of(path)
    if suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    if codec == "gzip":
        content = gzip.decompress(content)
    elif codec == "zstd":
        content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    if suffix == ".jsonl":
        return _num_objects(content)
    rest = content.partition(b"\n")[2].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if suffix == ".tsv":
        return sum(1 for line in rest.split(b"\n") if line)
    return _num_records(rest)


def _num_records(text: bytes) -> int:
    """Lines of a CSV that hold something; a quote can hide no end of a line."""
    return sum(1 for line in text.split(b"\n") if line)


def _num_objects(text: bytes) -> int:
    decoder, count, place = json.JSONDecoder(), 0, 0
    decoded = text.decode("utf-8", "replace")
    while match := re.compile(r"[^\s]").search(decoded, place):
        _, place = decoder.raw_decode(decoded, match.start())
        count += 1
    return count
