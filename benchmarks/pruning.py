"""What does it save to stop trials that others are far ahead of, and what does it cost?

python -m benchmarks.pruning [--folder .data] [--data ml-1m] [--samplers random front]
    [--pruning none dominance] [--n-trials 40] [--seed 0] [--output FILE]

A study by `python -m study.run` for each sampler, with and without: of the space of the data's
grid (`benchmarks.grid`), sizes and rates as ranges. `random` proposes the same trials both times,
so that what differs is pruning alone. `wall_seconds` are those of the command; `log_area` is the
area under the front of NDCG@10 against the logarithm of memory up to the budget.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._machine import RESULTS, append, machine
from benchmarks._trainings import FILES
from benchmarks.grid import GRIDS
from benchmarks.search import area
from study.front import hypervolume
from study.records import StudyRecord, find, read

_BUDGET = "1GiB"
_CONFIGS = Path(__file__).parents[1] / "configs"


def run(arguments: argparse.Namespace, sampler: str, pruning: str) -> dict[str, Any]:
    """One study."""
    fixed, axes = GRIDS[arguments.data]
    command = [sys.executable, "-m", "study.run", "--study", "pruning", "--sampler", sampler]
    command += ["--config", str(_CONFIGS / f"{arguments.data}.toml"), "--pruning", pruning]
    command += ["--data", str(arguments.folder / FILES[arguments.data])]
    command += ["--n-trials", str(arguments.n_trials), "--seed", str(arguments.seed)]
    command += ["--memory-budget", _BUDGET]
    for name, value in fixed.items():
        command += [f"--space.{name}", str(value)]
    for name, values in axes.items():
        is_list = name in ("max_length", "width")
        command += [f"--space.{name}", *map(str, values if is_list else (values[0], values[-1]))]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run([*command, "--output-dir", folder], check=True)
        seconds = time.perf_counter() - begin
        record = read(find("pruning", None, Path(folder)))
    return {"wall_seconds": round(seconds, 1), **_found(record)}


def _found(record: StudyRecord) -> dict[str, Any]:
    points = list(map(record.point, record.complete))
    best = record.best()
    return {
        "trials": len(record.finished),
        "complete": len(record.complete),
        "pruned": sum(trial.outcome == "pruned" for trial in record.trials),
        "epochs": sum(trial.epochs for trial in record.finished),
        "trained_seconds": round(sum(trial.seconds or 0 for trial in record.finished), 1),
        "hypervolume": round(hypervolume(points, *record.limits), 5),
        "log_area": round(area(points, math.log2(record.budget)), 5),
        "best_val_ndcg_at_10": "" if best is None else best.quality,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".data"), help="of the data's files")
    parser.add_argument("--data", choices=GRIDS, default="ml-1m")
    parser.add_argument("--samplers", nargs="+", default=["random", "front"])
    parser.add_argument("--pruning", nargs="+", default=["none", "dominance"])
    parser.add_argument("--n-trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "pruning.csv")
    arguments = parser.parse_args()
    about = {**machine(), "data": arguments.data, "seed": arguments.seed}
    for sampler in arguments.samplers:
        for pruning in arguments.pruning:
            row = {"sampler": sampler, "pruning": pruning, **run(arguments, sampler, pruning)}
            append(arguments.output, [{**about, **row}])
            print(row, flush=True)


if __name__ == "__main__":
    main()
