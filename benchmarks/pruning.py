"""What does it save to stop trials that others are far ahead of, and what does it cost?

python -m benchmarks.pruning [--folder .data] [--data ml-1m] [--samplers random front]
    [--pruning none dominance] [--n-trials 40] [--seeds 1] [--recorded] [--processes 1]
    [--output FILE]

A study by `python -m study.run` for each sampler, with and without: of the space of the data's
grid (`benchmarks.grid`), sizes and rates as ranges. `random` proposes the same trials both times,
so that what differs is pruning alone. `wall_seconds` are those of the command; `log_area` is the
area under the front of NDCG@10 against the logarithm of memory up to the budget. With `--recorded`
the runs of the grid are looked up, `trained_seconds` are those that they took, and the budget is
the largest peak.
"""

import argparse
import itertools
import math
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks._machine import RESULTS, append, machine
from benchmarks._trainings import CONFIGS, FILES
from benchmarks.grid import GRIDS
from benchmarks.search import area, search, whole_grid
from objectives.recorded import TABLES, RecordedObjective
from study.front import hypervolume
from study.records import StudyRecord, find, read

_BUDGET = "1GiB"


def run(arguments: argparse.Namespace, sampler: str, seed: int, pruning: str) -> dict[str, Any]:
    """One study."""
    fixed, axes = GRIDS[arguments.data]
    command = [sys.executable, "-m", "study.run", "--study", "pruning", "--sampler", sampler]
    command += ["--config", str(CONFIGS / f"{arguments.data}.toml"), "--pruning", pruning]
    command += ["--data", str(arguments.folder / FILES[arguments.data])]
    command += ["--n-trials", str(arguments.n_trials), "--seed", str(seed)]
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


def look_up(data: str, sampler: str, pruning: str, seed: int, num_trials: int) -> dict[str, Any]:
    """A search of recorded runs."""
    objective = RecordedObjective(TABLES / f"{data}.csv")
    _, budget = whole_grid(objective)
    found = list(search(objective, sampler, seed, num_trials, prunes=pruning == "dominance"))
    points = [each.point for each in found if each.point is not None]
    return {
        "wall_seconds": "",
        "trials": num_trials,
        "complete": len(points),
        "pruned": num_trials - len(points),
        "epochs": "",
        "trained_seconds": round(sum(each.trained for each in found), 1),
        "hypervolume": round(hypervolume(points, budget), 5),
        "log_area": round(area(points, math.log2(budget)), 5),
        "best_val_ndcg_at_10": max(quality for quality, _ in points),
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
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--recorded", action="store_true", help="look the runs of the grid up")
    parser.add_argument("--processes", type=int, default=1, help="searches of recorded runs")
    parser.add_argument("--output", type=Path, default=RESULTS / "pruning.csv")
    arguments = parser.parse_args()
    about = machine()
    kinds = list(itertools.product(arguments.samplers, range(arguments.seeds), arguments.pruning))
    with ProcessPoolExecutor(
        arguments.processes, multiprocessing.get_context("spawn")
    ) as processes:
        done: Iterable[dict[str, Any]]
        if arguments.recorded:
            jobs = [
                processes.submit(
                    look_up, arguments.data, sampler, pruning, seed, arguments.n_trials
                )
                for sampler, seed, pruning in kinds
            ]
            done = (job.result() for job in jobs)
        else:
            done = (run(arguments, *kind) for kind in kinds)
        for (sampler, seed, pruning), found in zip(kinds, done, strict=True):
            what = {"data": arguments.data, "recorded": arguments.recorded, "seed": seed}
            row = {**what, "sampler": sampler, "pruning": pruning, **found}
            append(arguments.output, [{**about, **row}])
            print(row, flush=True)


if __name__ == "__main__":
    main()
