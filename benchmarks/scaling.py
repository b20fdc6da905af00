"""How many more trials an hour do more workers of one host run?

python -m benchmarks.scaling [--workers 1 2 4 8] [--data FILE] [--n-trials 64] [--max-epochs N]
    [--recorded TABLE] [--storage URL] [--sampler random] [--output FILE]

The same study by `python -m study.run`, with one worker on each of so many GPUs, or, of recorded
trainings, with so many on the CPU. Every trial trains for the same number of epochs.
`span_seconds` is from the first trial's start to the last one's end, and what `trials_an_hour` is
of; `wall_seconds` is that of the whole command. `busy_share` is the time in which an objective
ran, of all workers' spans; `overhead_ms` the rest of a trial's own time, for sampler and storage,
as median; `idle_share` what is between trials, the waiting for the last one included.
`beyond_ms` is from a trial's end to that of the worker's next, less its objective, as median.
`cold_start_seconds` is from the start of the command to the first step, `warm_start_seconds` from
a trial's end to the first step of the worker's next, as median; the validation of an epoch counts
as part of them. `gpu_idle_share` is the time in which no kernel ran, by NVML, in the span of the
command from its first step on, as mean of the cards. `growth` is the hypervolume over the wall
time: seconds since the first trial's start, and what it was from then on.
"""

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pynvml

from benchmarks._machine import RESULTS, append, machine
from benchmarks._storage import storage_of
from study.front import hypervolume
from study.ledger import Ledger
from study.records import StudyRecord, TrialRecord, find, read


def run(arguments: argparse.Namespace, workers: int, folder: Path) -> dict[str, Any]:
    """A row of so many workers."""
    name = f"scaling-{workers}"
    command = [sys.executable, "-m", "study.run", "--study", name]
    command += ["--storage", arguments.storage, "--output-dir", str(folder)]
    command += ["--n-trials", str(arguments.n_trials), "--sampler", arguments.sampler]
    command += ["--pruning", "none"]
    if arguments.recorded:
        command += ["--recorded", arguments.recorded, "--workers", str(workers)]
    else:
        epochs = str(arguments.max_epochs)
        gpus = ",".join(str(arguments.first_gpu + number) for number in range(workers))
        command += ["--data", str(arguments.data), "--gpus", gpus]
        command += ["--min-item-users", "1", "--columns.time", "none"]
        command += ["--space.max_epochs", epochs, "--space.patience", epochs]
        command += arguments.space
    began_at, begin = datetime.now(UTC), time.perf_counter()
    used = [] if arguments.recorded else range(arguments.first_gpu, arguments.first_gpu + workers)
    with _watched(used) as busy:
        code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    seconds = time.perf_counter() - begin
    if code:
        sys.exit(code)
    row = row_of(find(name, arguments.storage, folder), workers, began_at)
    first = row["cold_start_seconds"]
    since = [share for after, share in busy if first <= after <= first + row["span_seconds"]]
    return {
        "workers": workers,
        "n_trials": arguments.n_trials,
        "data": arguments.recorded or arguments.data.stem,
        "max_epochs": "" if arguments.recorded else arguments.max_epochs,
        "sampler": arguments.sampler,
        "wall_seconds": round(seconds, 1),
        **row,
        "gpu_idle_share": round(1 - statistics.mean(since), 4) if since else "",
    }


@contextlib.contextmanager
def _watched(gpus: Sequence[int]) -> Iterator[list[tuple[float, float]]]:
    """How busy cards are within the block: seconds since its start, and the mean share."""
    busy: list[tuple[float, float]] = []
    if not gpus:
        yield busy
        return
    pynvml.nvmlInit()
    cards = [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in gpus]
    begin, ended = time.perf_counter(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            shares = [pynvml.nvmlDeviceGetUtilizationRates(card).gpu / 100 for card in cards]
            busy.append((time.perf_counter() - begin, statistics.mean(shares)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield busy
    finally:
        ended.set()
        thread.join()


def row_of(ledger: Ledger, workers: int, began_at: datetime) -> dict[str, Any]:
    """What a study shows."""
    record = read(ledger)
    trials = [trial for trial in record.trials if trial.started and trial.finished]
    spans = [_span(trial) for trial in trials]
    recorded = record.identity["memory_source"] == "recorded"
    busy = [0.0 if recorded else trial.seconds or 0.0 for trial in trials]
    starts = [trial.started for trial in trials if trial.started]
    ends = [trial.finished for trial in trials if trial.finished]
    span = (max(ends) - min(starts)).total_seconds()
    cold, warm = _starts(ledger, trials, began_at)
    beyond = [
        (later.finished - earlier.finished).total_seconds() - (0.0 if recorded else later.seconds)
        for earlier, later in _pairs(trials)
        if earlier.finished and later.finished and later.seconds is not None
    ]
    return {
        "finished": len(record.finished),
        "failed": sum(trial.outcome == "failed" for trial in trials),
        "span_seconds": round(span, 2),
        "trials_an_hour": round(3600 * len(record.finished) / span, 1),
        "seconds_a_trial": round(span * workers / len(record.finished), 3),
        "busy_share": round(sum(busy) / (span * workers), 4),
        "overhead_ms": round(
            1e3 * statistics.median(a - b for a, b in zip(spans, busy, strict=True)), 1
        ),
        "idle_share": round(1 - sum(spans) / (span * workers), 4),
        "beyond_ms": round(1e3 * statistics.median(beyond), 1) if beyond else "",
        "cold_start_seconds": round(cold, 2),
        "warm_start_seconds": round(statistics.median(warm), 3) if warm else "",
        "hypervolume": round(
            hypervolume(list(map(record.point, record.complete)), *record.limits), 5
        ),
        "growth": " ".join(_growth(record, min(starts))),
    }


def _growth(record: StudyRecord, began_at: datetime) -> Iterator[str]:
    """When the hypervolume grew: "seconds:what it was from then on"."""
    before, points = 0.0, []
    for trial in sorted(record.complete, key=lambda trial: trial.finished or began_at):
        assert trial.finished is not None
        points.append(record.point(trial))
        if (now := hypervolume(points, *record.limits)) > before:
            before = now
            yield f"{(trial.finished - began_at).total_seconds():.1f}:{now:.5f}"


def _span(trial: TrialRecord) -> float:
    assert trial.started is not None
    assert trial.finished is not None
    return (trial.finished - trial.started).total_seconds()


def _starts(
    ledger: Ledger, trials: Sequence[TrialRecord], began_at: datetime
) -> tuple[float, list[float]]:
    """Seconds before the first step of all, and before those after another trial's end."""
    first_steps = {}
    for epoch in ledger.epochs():
        if epoch.epoch == 1:
            took = epoch.metrics.get("train/epoch_seconds", 0.0)
            first_steps[epoch.number] = epoch.recorded_at.timestamp() - took
    warm = [
        first_steps[later.number] - earlier.finished.timestamp()
        for earlier, later in _pairs(trials)
        if earlier.finished and later.number in first_steps
    ]
    return min(first_steps.values()) - began_at.timestamp(), warm


def _pairs(trials: Sequence[TrialRecord]) -> Iterator[tuple[TrialRecord, TrialRecord]]:
    """Each trial with the next one of its worker."""
    for worker in {trial.worker for trial in trials}:
        yield from itertools.pairwise(trial for trial in trials if trial.worker == worker)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--first-gpu", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path(".data/ml-1m.parquet"))
    parser.add_argument("--recorded", metavar="TABLE")
    parser.add_argument("--n-trials", type=int, default=64)
    parser.add_argument("--max-epochs", type=int, default=5)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--storage", help="(default: a PostgreSQL of its own)")
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.csv")
    arguments, space = parser.parse_known_args()
    arguments.space = space
    with storage_of(arguments), tempfile.TemporaryDirectory() as folder:
        for workers in arguments.workers:
            row = {**machine(), **run(arguments, workers, Path(folder))}
            append(arguments.output, [row])
            for name, value in row.items():
                print(f"{name:20} {value}", flush=True)


if __name__ == "__main__":
    main()
