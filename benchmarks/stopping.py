"""How far off is what a study says of as many trials again?

python -m benchmarks.stopping --table ../shared/data/recorded-grid.csv [--data SET ...]
    [--samplers tpe random front] [--seeds 10] [--processes 2] [--output FILE]

A search runs on a table of finished runs (`objectives.recorded`), in which a configuration that is
not there runs out of memory. After 10, 20 and 30 trials, as shares of the hypervolume of the
front then: `halves` is what the study says (`study.stopping.expected_gain`), what random halves
of the trials fall short of all of them; `last_half`, the other candidate, what the last half of
the trials brought; `gained` what as many trials again brought. `missing` is what is missing of
the hypervolume of the whole grid, as a share of that.
"""

import argparse
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._machine import RESULTS, append, machine
from benchmarks.search import search, whole_grid
from objectives.recorded import RecordedObjective
from study.front import Point, hypervolume
from study.records import StudyRecord, TrialRecord
from study.stopping import expected_gain, hypervolumes

_AFTER = (10, 20, 30)


def run(table: Path, data: str, name: str, seed: int) -> list[dict[str, Any]]:
    """One search; a row for each number of trials after which it is asked."""
    objective = RecordedObjective(table, data)
    everything, budget = whole_grid(objective)
    whole = hypervolume(everything, budget)
    found = search(objective, name, seed, 2 * max(_AFTER))
    trials = tuple(_trial(number, each.point) for number, each in enumerate(found))
    record = StudyRecord(data, {"memory_budget": budget}, trials, {}, None)
    volumes = hypervolumes(record)
    return [
        {
            "data": data,
            "sampler": name,
            "seed": seed,
            "trials": number,
            "halves": round(expected_gain(replace(record, trials=record.trials[:number])) or 0, 5),
            "last_half": round(1 - volumes[number // 2 - 1] / volumes[number - 1], 5),
            "gained": round(volumes[2 * number - 1] / volumes[number - 1] - 1, 5),
            "missing": round(1 - volumes[number - 1] / whole, 5),
        }
        for number in _AFTER
    ]


def _trial(number: int, point: Point | None) -> TrialRecord:
    if point is None:
        return TrialRecord(number, "infeasible")
    return TrialRecord(number, "complete", quality=point[0], peak_memory=int(point[1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="CSV of finished runs")
    parser.add_argument(
        "--data", nargs="+", default=["30music", "gowalla", "megamarket", "movielens_20m"]
    )
    samplers = ("tpe", "random", "front")
    parser.add_argument("--samplers", nargs="+", choices=samplers, default=list(samplers))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "stopping.csv")
    arguments = parser.parse_args()
    about = machine()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, spawn) as pool:
        for name in arguments.samplers:
            jobs = [
                pool.submit(run, arguments.table, data, name, seed)
                for data in arguments.data
                for seed in range(arguments.seeds)
            ]
            rows = [row for job in jobs for row in job.result()]
            append(arguments.output, [{**about, **row} for row in rows])
            for number in _AFTER:
                at = [row for row in rows if row["trials"] == number]
                said = {key: statistics.fmean(row[key] for row in at) for key in list(at[0])[4:]}
                off = {
                    key: statistics.fmean(abs(row[key] - row["gained"]) for row in at)
                    for key in ("halves", "last_half")
                }
                print(
                    f"{name:6} after {number}: "
                    + ", ".join(f"{key} {value:.3f}" for key, value in said.items())
                    + f"; off by {off['halves']:.3f} and {off['last_half']:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
