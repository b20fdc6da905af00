"""How long does it take to prepare a log, and how much memory, and to start on what is prepared?

python -m benchmarks.ingest [--rows N] [--formats parquet csv] [--split SPLIT] [--output FILE]

A log of N interactions in random order, of a hundredth as many users and items, the items with
Zipf's popularity, is written to a temporary folder and prepared by a process of its own. `seconds`
is all of that process, `peak_mb` the most memory that it had at a time, and `ratio` that over the
log's three columns of 64 bits. `again_s` is of `prepare` in another process that finds the data
prepared, `again_process_s` all of that process.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from benchmarks._machine import RESULTS, append, machine

_BLOCK = 1 << 20
_COLUMNS = ("user", "item", "time")
_PREPARE = """
import re, sys, time
from objectives.config import DataConfig
from objectives.data import prepare
config = DataConfig(data=sys.argv[1], split=sys.argv[2])
begin = time.perf_counter()
data = prepare(config)
seconds = time.perf_counter() - begin
with open("/proc/self/status") as status:
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read())[1]) * 1024
print(seconds, peak, len(data.train.items), *data.notes, sep="\\n")
"""


def log(num_rows: int) -> Iterator[pa.RecordBatch]:
    """A log's interactions, block by block."""
    generator = np.random.default_rng(0)
    num_ids = max(2, num_rows // 100)
    for begin in range(0, num_rows, _BLOCK):
        size = min(_BLOCK, num_rows - begin)
        # The inverse of a distribution whose density falls with the rank.
        items = (num_ids ** generator.random(size)).astype(np.int64)
        users, times = generator.integers(0, num_ids, size), generator.integers(0, 1 << 26, size)
        yield pa.record_batch([users, items, times + 1_600_000_000], names=_COLUMNS)


def write(path: Path, num_rows: int) -> None:
    """Writes the log in the format of the name."""
    schema = pa.schema([(name, pa.int64()) for name in _COLUMNS])
    parquet = path.suffix == ".parquet"
    kind = pyarrow.parquet.ParquetWriter if parquet else pyarrow.csv.CSVWriter
    with closing(kind(path, schema)) as writer:
        for batch in log(num_rows):
            writer.write_batch(batch)


def run(path: Path, split: str) -> tuple[float, list[str]]:
    """Seconds of a process that prepares, and the lines that it prints."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", _PREPARE, str(path), split]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - begin, done.stdout.splitlines()


def measure(folder: Path, num_rows: int, form: str, split: str) -> dict[str, Any]:
    """A row of the results."""
    path = folder / f"log.{form}"
    write(path, num_rows)
    time.sleep(3)  # The digest of a file that has just changed would not be remembered.
    seconds, (_, peak, interactions, *notes) = run(path, split)
    again_process, (again, *_) = run(path, split)
    print(*notes, sep="\n")
    row = {
        "rows": num_rows,
        "format": form,
        "split": split,
        "file_mb": round(path.stat().st_size / 1e6),
        "trained_on": int(interactions),
        "seconds": round(seconds, 1),
        "peak_mb": round(int(peak) / 1e6),
        "ratio": round(int(peak) / (24 * num_rows), 2),
        "again_s": round(float(again), 3),
        "again_process_s": round(again_process, 2),
        "load": round(os.getloadavg()[0], 1),
    }
    path.unlink()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--formats", nargs="+", default=["parquet", "csv"])
    parser.add_argument("--split", default="leave-one-out")
    parser.add_argument("--output", type=Path, default=RESULTS / "ingest.csv")
    arguments = parser.parse_args()
    for form in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["PARETOCUT_CACHE"] = f"{folder}/cache"
            row = machine() | measure(Path(folder), arguments.rows, form, arguments.split)
            append(arguments.output, [row])
            csv.DictWriter(sys.stdout, list(row)).writerow(row)


if __name__ == "__main__":
    main()
