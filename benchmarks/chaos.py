"""Does a study of many workers lose a trial, or run one twice, when they are killed?

python -m benchmarks.chaos [--storage URL] [--workers 8] [--n-trials 1000] [--kills 500]
    [--every SECONDS] [--sampler random] [--output FILE]

A study of recorded trainings by `python -m study.run --workers N`, whose worker processes are
killed (SIGKILL), one at random after another, as the trials end, so that the last is killed near
the end of the study: a kill for two trials, by default, and at least some seconds apart. `lost`
are trials that failed and were not tried again, `doubled` those that were tried again twice,
`beyond` trials above the total, `gaps` numbers that no trial has. `same_front` says whether the
front is that of the same configurations looked up in the table without any fault.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from benchmarks._machine import RESULTS, append, machine
from benchmarks._storage import storage_of
from objectives.config import TrialConfig
from objectives.errors import UserError
from study.front import Point, pareto_front
from study.ledger import Ledger
from study.records import StudyRecord, find, read
from study.subject import find_table
from study.workers import live_workers, runs_here

_TABLE, _STUDY = "ml-1m", "chaos"


def _victims(ledger: Ledger) -> list[int]:
    """Worker processes that are there."""
    workers = [row.worker for row in live_workers(ledger)]
    return [int(worker.rsplit(":", 2)[1]) for worker in workers if runs_here(worker)]


def run(arguments: argparse.Namespace, folder: Path) -> tuple[StudyRecord, int, float, int]:
    """The study, how often a worker was killed, the seconds, and the exit code."""
    command = [sys.executable, "-m", "study.run", "--recorded", _TABLE, "--study", _STUDY]
    command += ["--storage", arguments.storage, "--output-dir", str(folder)]
    command += ["--workers", str(arguments.workers), "--n-trials", str(arguments.n_trials)]
    command += ["--sampler", arguments.sampler, "--max-retries", "1000", "--pruning", "none"]
    draw = random.Random(0)
    kills = 0
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        ledger: Ledger | None = None
        record: StudyRecord | None = None
        while process.poll() is None:
            time.sleep(arguments.every)
            try:
                ledger = ledger or find(_STUDY, arguments.storage, folder)
                record = read(ledger, known=record)
                victims = _victims(ledger)
            except (UserError, SQLAlchemyError, StorageInternalError):
                continue
            due = arguments.kills * len(record.finished) / (0.98 * arguments.n_trials)
            if victims and kills < min(due, arguments.kills):
                try:
                    psutil.Process(draw.choice(victims)).kill()
                except psutil.NoSuchProcess:
                    continue
                kills += 1
    seconds = time.perf_counter() - begin
    record = read(find(_STUDY, arguments.storage, folder))
    return record, kills, seconds, process.returncode


def row_of(record: StudyRecord, n_trials: int) -> dict[str, Any]:
    """What is whole in a study, and what is not."""
    again = Counter(trial.retry_of for trial in record.trials if trial.retry_of is not None)
    undisturbed = _points_of_the_table(record)
    front = {undisturbed[index] for index in pareto_front(undisturbed)}
    return {
        "finished": len(record.finished),
        "beyond": len(record.finished) - n_trials,
        "trials": len(record.trials),
        "failed": sum(trial.outcome == "failed" for trial in record.trials),
        "lost": len(record.open_failures)
        + sum(trial.outcome in ("running", "waiting") for trial in record.trials),
        "doubled": sum(count > 1 for count in again.values()),
        "gaps": record.trials[-1].number + 1 - len(record.trials),
        "same_front": front == {record.point(trial) for trial in record.front()},
    }


def _points_of_the_table(record: StudyRecord) -> list[Point]:
    """What the finished trials reach by the table alone."""
    table = find_table(_TABLE)
    assert table is not None
    configs = [TrialConfig.from_flat(trial.config) for trial in record.finished]
    cells = [cell for config in configs if (cell := table.cells.get(table.key(config)))]
    return [
        (cell.quality, float(cell.peak_bytes))
        for cell in cells
        if cell.epochs and cell.peak_bytes <= record.budget
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--storage", help="(default: a PostgreSQL of its own)")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--n-trials", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--every", type=float, default=0.1)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--output", type=Path, default=RESULTS / "chaos.csv")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, storage_of(arguments):
        record, kills, seconds, code = run(arguments, Path(folder))
    row = {
        **machine(),
        "workers": arguments.workers,
        "n_trials": arguments.n_trials,
        "sampler": arguments.sampler,
        "kills": kills,
        "wall_seconds": round(seconds, 1),
        "exit_code": code,
        **row_of(record, arguments.n_trials),
    }
    append(arguments.output, [row])
    for name, value in row.items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
