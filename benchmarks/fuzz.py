"""Is there a damaged file that crashes a reader, hangs it, or loses rows unsaid?

python -m benchmarks.fuzz [--files N] [--seed N] [--output FILE]

So many files in all formats, of which most are cut off, have bits flipped or parts replaced, or
hold hostile ids, wrong types and mixed encodings (`tests/objectives/data/damage.py`). Each has to
be read, with as many rows kept and counted as dropped as another reader finds, or to be refused in
one sentence; the command fails at the first that is not. A row for a format: `read` and `refused`
files, and the seconds of the slowest.
"""

import argparse
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks._machine import RESULTS, append, machine
from tests.objectives.data.damage import FORMATS, check, files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.csv")
    arguments = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        for name in FORMATS:
            outcomes: Counter[str] = Counter()
            slowest = 0.0
            for content in files(name, arguments.files // len(FORMATS), arguments.seed):
                begin = time.perf_counter()
                outcomes[check(Path(folder) / name, content)] += 1
                slowest = max(slowest, time.perf_counter() - begin)
            print(f"{name}: {outcomes['read']} read, {outcomes['refused']} refused")
            rows.append(
                machine()
                | {
                    "file": name,
                    "seed": arguments.seed,
                    "read": outcomes["read"],
                    "refused": outcomes["refused"],
                    "slowest_s": f"{slowest:.3f}",
                }
            )
    append(arguments.output, rows)


if __name__ == "__main__":
    main()
