import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from objectives.config import ColumnsConfig, DataConfig, FilterConfig
from objectives.data import formats, sources
from objectives.errors import UserError

ROWS = [(1, "a", 5), (2, "b", 3), (1, "c", 4)]
CSV = b"user,item,time\n" + b"".join(b"%d,%b,%d\n" % (u, i.encode(), t) for u, i, t in ROWS)
JSON = b"".join(
    json.dumps({"user": u, "more": {"x": [1]}, "item": i, "time": t}).encode() + b"\n"
    for u, i, t in ROWS
)


def read(place: Path | str) -> sources.Interactions:
    files, columns, _ = sources.locate(DataConfig(data=str(place)))
    return sources.read(files, columns, FilterConfig())


def refusal(place: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_is_the_log(log: sources.Interactions) -> None:
    assert log.users.tolist() == [0, 1, 0]
    assert log.items.tolist() == [0, 1, 2]
    assert log.item_ids.to_pylist() == [b"a", b"b", b"c"]
    assert log.times is not None
    assert log.times.tolist() == [5, 3, 4]
    assert (log.num_users, log.notes) == (2, ())


def packed(name: str, content: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("name", ["log.jsonl", "log.ndjson", "log.json"])
def test_lines_of_json(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(JSON)
    assert_is_the_log(read(tmp_path / name))


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv.zst", "LOG.CSV.GZ", "log.tsv.gz"])
def test_compressed_text(name: str, tmp_path: Path) -> None:
    content = CSV.replace(b",", b"\t") if ".tsv" in name else CSV
    (tmp_path / name).write_bytes(packed(name.lower(), content))
    assert_is_the_log(read(tmp_path / name))


@pytest.mark.parametrize("name", ["log.jsonl.gz", "log.jsonl.zst"])
def test_compressed_json(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(packed(name, JSON))
    assert_is_the_log(read(tmp_path / name))


def test_gzip_may_have_several_members(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress(CSV[:20]) + gzip.compress(CSV[20:]))
    assert_is_the_log(read(path))


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv.zst"])
def test_a_compressed_file_that_is_cut_off_is_refused(name: str, tmp_path: Path) -> None:
    content = packed(name, CSV * 1000)
    (tmp_path / name).write_bytes(content[:-9])
    assert refusal(tmp_path / name).startswith(f"{tmp_path / name}: cannot be read: ")


@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl.gz"])
def test_a_compressed_file_of_nothing_is_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b""))
    assert refusal(tmp_path / name) == f"{tmp_path / name}: the file is empty"


def test_parts_may_be_compressed_or_not(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(CSV)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(CSV))
    assert len(read(tmp_path).users) == 6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"user": 1, "item": 2}\n{"user": 1, "item"', "cannot be read"),
        (b'{"user": 1, "item": 2}\n{"user": "1", "item": 3}\n', "cannot be read"),
        (b'[{"user": 1, "item": 2}]', "the first line is no object of JSON"),
        (b"user,item\n1,2\n", "the first line is no object of JSON"),
        (b'{"user": 1}\n', "no item column; choose one with --columns.item from: user"),
        (b'{"user": true, "item": 2}\n', "the user column is bool"),
        (b"\n\n", "the file is empty"),
    ],
)
def test_json_that_cannot_be_used(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: {reason}") or reason in refusal(path)


def test_json_without_a_value_is_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"user": null, "item": 1}\n{"item": 2}\n\n{"user": "x", "item": 3}\n')
    log = read(path)
    assert log.item_ids.to_pylist() == [3]
    assert log.notes == ("dropped 2 of 3 rows without a user, item or time",)


def test_json_times_may_be_whole_and_not(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = ((1, 5), (1, 5.5), (1, 6))
    path.write_text("".join(f'{{"user": {u}, "item": 1, "time": {t}}}\n' for u, t in rows))
    log = read(path)
    assert log.times is not None
    assert log.times.tolist() == [5, 5.5, 6]


def test_a_file_of_many_batches_is_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(formats, "_PARQUET_ROWS", 7)
    users = [number * 7919 % 50 for number in range(200)]
    codes: dict[int, int] = {}
    expected = [codes.setdefault(user, len(codes)) for user in users]
    pq.write_table(pa.table({"user": users, "item": users}), tmp_path / "log.parquet")
    rows = "".join(f"{user},{user}\n" for user in users)
    (tmp_path / "log.csv").write_text(f"user,item\n{rows}")
    lines = "".join(f'{{"user": {user}, "item": {user}}}\n' for user in users)
    (tmp_path / "log.jsonl").write_text(lines)
    for name in ("log.parquet", "log.csv", "log.jsonl"):
        assert read(tmp_path / name).users.tolist() == expected


def test_parquet_that_says_it_has_other_rows_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": range(100), "item": range(100)}), path)
    content = bytearray(path.read_bytes())
    footer = content[: -8 - int.from_bytes(content[-8:-4], "little")]
    # The rows of the whole file: a varint of twice as many, behind the schema.
    place = content.index(b"\xc8\x01", len(footer))
    content[place] ^= 1 << 1
    path.write_bytes(content)
    assert pq.read_metadata(path).num_rows == 101
    assert refusal(path) == f"{path}: cannot be read: it has 100 rows, and says 101"


BOMB = """
import resource, sys
from pathlib import Path
from objectives.config import ColumnsConfig, FilterConfig
from objectives.data import sources
from objectives.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    sources.read([Path(sys.argv[1])], ColumnsConfig(), FilterConfig())
except UserError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("name", "head"),
    [("log.csv.gz", b"user,item\n1,"), ("log.jsonl.gz", b'{"user": 1, "item": 2}\n{"')],
)
def test_a_file_that_unpacks_to_far_more_is_refused_in_little_memory(
    name: str, head: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    # 16 GiB of nines.
    path.write_bytes(gzip.compress(head) + gzip.compress(b"9" * (1 << 24)) * 1024)
    command = [sys.executable, "-c", BOMB, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sentence, grown_kib = done.stdout.splitlines()
    assert sentence.startswith(f"{path}: ")
    assert int(grown_kib) < 700_000


# Elsewhere


@pytest.fixture
def bucket() -> str:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/log.csv.gz", gzip.compress(CSV))
    system.pipe("/bucket/parts/b.jsonl", JSON)
    system.pipe("/bucket/parts/_SUCCESS", b"")
    sink = pa.BufferOutputStream()
    columns = zip(*ROWS, strict=True)
    table = pa.table(dict(zip(("user", "item", "time"), columns, strict=True)))
    pq.write_table(table, sink)
    system.pipe("/bucket/log.parquet", sink.getvalue().to_pybytes())
    return "memory://bucket"


@pytest.mark.parametrize("name", ["log.csv.gz", "parts", "log.parquet"])
def test_files_that_fsspec_reaches(name: str, bucket: str) -> None:
    assert_is_the_log(read(f"{bucket}/{name}"))


def test_the_digest_of_a_remote_file_is_that_of_what_lies_there(bucket: str) -> None:
    def digest() -> str:
        files, columns, _ = sources.locate(DataConfig(data=f"{bucket}/log.csv.gz"))
        return sources.content_digest(files, columns, FilterConfig())

    before = digest()
    assert digest() == before
    fsspec.filesystem("memory").pipe("/bucket/log.csv.gz", gzip.compress(CSV + CSV))
    assert digest() != before


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://key:secret@bucket/logs/june.parquet", "june"),
        ("gs://key:secret@bucket", "bucket"),
        ("postgresql://me:secret@host/shop?sslmode=require", "shop"),
    ],
)
def test_names_of_places(url: str, name: str) -> None:
    assert sources.name_of(DataConfig(data=url)) == name


def test_a_remote_file_that_is_not_there_is_one_sentence(bucket: str) -> None:
    place = f"{bucket}/no.csv"
    assert refusal(place).startswith(f"--data {place}: neither a file or folder")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert refusal("s3://key:secret@bucket/log.csv") == (
        '--data s3://…: its package is not installed; pip install -e ".[s3]" has it'
    )


def test_an_unknown_scheme_is_one_sentence() -> None:
    assert refusal("nowhere://user:secret@bucket/log.csv").startswith("--data nowhere://…: ")


# Tables


def test_tables_in_memory() -> None:
    users, items, times = zip(*ROWS, strict=True)
    columns = {"user": users, "item": items, "time": times}
    tables = (
        pa.table(columns),
        pa.table(columns).to_batches()[0],
        pd.DataFrame(columns),
        pd.DataFrame(columns, index=[7, 8, 9]),
    )
    for table in tables:
        assert_is_the_log(sources.from_table(table, ColumnsConfig(), FilterConfig()))


def test_a_table_of_mixed_types_is_one_sentence() -> None:
    table = pd.DataFrame({"user": [1, "x", b"y"], "item": [1, 2, 3]})
    with pytest.raises(UserError, match=r"^the table: "):
        sources.from_table(table, ColumnsConfig(), FilterConfig())


def test_a_table_without_a_column_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"^the table: no item column; choose one with"):
        sources.from_table(pa.table({"user": [1]}), ColumnsConfig(), FilterConfig())


# Progress


READ = """
import sys
from pathlib import Path
from objectives.config import ColumnsConfig, FilterConfig
from objectives.data import progress, sources
progress.WORTH_SHOWING = 1
sources.read([Path(sys.argv[1])], ColumnsConfig(), FilterConfig())
"""


def test_a_terminal_shows_how_far_reading_is(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(CSV * 1)
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", READ, tmp_path / "log.csv"], stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "reading" in shown
    assert f"{len(CSV)}/{len(CSV)} bytes" in shown


def test_elsewhere_nothing_is_shown(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(CSV)
    done = subprocess.run(
        [sys.executable, "-c", READ, tmp_path / "log.csv"], capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
