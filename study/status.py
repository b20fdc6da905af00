"""`python -m study.status`: how far a study is."""

import argparse
import json
import sys
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from study import cli

if TYPE_CHECKING:
    from study.ledger import Epoch
    from study.records import StudyRecord, TrialRecord
    from study.workers import WorkerRow

_LATELY = 20


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "study.status", "[--study NAME] [options]", "Show how far a study is."
    )
    cli.add_study_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the status as JSON")
    return cli.main(parser, _status, argv)


def _status(arguments: argparse.Namespace) -> int:
    from study.ledger import TOTAL
    from study.records import find, read
    from study.workers import live_workers, runs_here

    ledger = find(arguments.study, arguments.storage, arguments.output_dir)
    record = read(ledger)
    workers = [row for row in live_workers(ledger) if runs_here(row.worker) is not False]
    running = {
        trial.number: ledger.epochs(trial.number)
        for trial in record.trials
        if trial.outcome == "running"
    }
    left = max(0, ledger.study.user_attrs.get(TOTAL, 0) - len(record.finished))
    if arguments.json:
        print(json.dumps(_as_json(record, workers, running, left), indent=2))
    else:
        _print(record, workers, running, left)
    return cli.OK


def _as_json(
    record: "StudyRecord",
    workers: "list[WorkerRow]",
    running: "dict[int, list[Epoch]]",
    left: int,
) -> dict[str, Any]:
    from study.best import as_json
    from study.stopping import expected_gain

    best, rate = record.best(), _rate(record)
    return {
        "study": record.name,
        "memory_budget_bytes": record.budget,
        "finished": len(record.finished),
        "refused": len(record.refused),
        "outcomes": dict(_outcomes(record)),
        "repeats": len(record.repeats),
        "retries": sum(trial.retry_of is not None for trial in record.trials),
        "given_up": [trial.number for trial in _given_up(record)],
        "expected_gain": expected_gain(record),
        "left": left,
        "trials_an_hour": rate,
        "seconds_left": 3600 * left / rate if rate else None,
        "workers": [
            {"worker": row.worker, "place": row.place, "asked_to_stop": row.asked}
            for row in workers
        ],
        "running": [
            {
                "trial": number,
                "worker": record.trials[number].worker,
                "epochs": len(epochs),
                "peak_memory_bytes": _peak(epochs),
            }
            for number, epochs in running.items()
        ],
        "best": None if best is None else as_json(best),
        "front": [trial.number for trial in record.front()],
    }


def _print(
    record: "StudyRecord",
    workers: "list[WorkerRow]",
    running: "dict[int, list[Epoch]]",
    left: int,
) -> None:
    from study.best import front_table
    from study.budget import format_bytes
    from study.stopping import expected_gain

    outcomes = _outcomes(record).most_common()
    shown = ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
    print(f"study {record.name}: {len(record.finished)} trials finished ({shown or 'none yet'})")
    print(f"memory budget {format_bytes(record.budget)}")
    if (rate := _rate(record)) is not None:
        shown = str(timedelta(seconds=round(3600 * left / rate)))
        print(f"{rate:.1f} trials an hour lately: the {left} that are left take {shown}")
    if workers:
        print(
            cli.aligned(
                [("worker", "on", "trial", "epochs", "memory"), *_rows(workers, record, running)]
            )
        )
    for number in running.keys() - {_trial_of(row, record) for row in workers}:
        print(f"trial {number} is running, {len(running[number])} epochs done, by a lost worker")
    retries = sum(trial.retry_of is not None for trial in record.trials)
    if retries:
        print(f"{retries} trials were tried again after a fault or a hand-back")
    if given_up := _given_up(record):
        numbers = ", ".join(str(trial.number) for trial in given_up)
        print(f"given up, until python -m study.retry: trial {numbers}")
    if record.repeats:
        print(f"{len(record.repeats)} more trials repeat configurations of the front")
    if (gain := expected_gain(record)) is not None:
        print(f"as many trials again may add {gain:.1%} to the hypervolume of the front")
    print(front_table(record))


def _rows(
    workers: "list[WorkerRow]", record: "StudyRecord", running: "dict[int, list[Epoch]]"
) -> list[tuple[str, ...]]:
    from study.budget import format_bytes

    rows: list[tuple[str, ...]] = []
    for row in workers:
        host, pid, _ = row.worker.rsplit(":", 2)
        number = _trial_of(row, record)
        epochs = [] if number is None else running[number]
        peak = _peak(epochs)
        asked = {"drain": "stops after its trial", "now": "stops"}.get(row.asked or "", "-")
        rows.append(
            (
                f"{host} {pid}",
                row.place,
                asked if number is None else str(number),
                "-" if number is None else str(len(epochs)),
                "-" if peak is None else format_bytes(peak),
            )
        )
    return rows


def _trial_of(row: "WorkerRow", record: "StudyRecord") -> int | None:
    return next(
        (
            trial.number
            for trial in record.trials
            if trial.outcome == "running" and trial.worker == row.worker
        ),
        None,
    )


def _outcomes(record: "StudyRecord") -> Counter[str]:
    return Counter(
        "refused" if trial.was_refused else trial.outcome
        for trial in record.trials
        if trial.repeat_of is None
    )


def _given_up(record: "StudyRecord") -> "list[TrialRecord]":
    """Where no worker runs, the next one may still try what failed last again."""
    return [trial for trial in record.open_failures if not trial.handed_back]


def _peak(epochs: "list[Epoch]") -> int | None:
    return int(epochs[-1].metrics["memory/peak_bytes"]) if epochs else None


def _rate(record: "StudyRecord") -> float | None:
    """Trials an hour over the last ones that ended, at most twenty; None of fewer than two."""
    ends = sorted(trial.finished for trial in record.finished if trial.finished)[-_LATELY:]
    if len(ends) < 2:
        return None
    seconds = (ends[-1] - ends[0]).total_seconds()
    return 3600 * (len(ends) - 1) / seconds if seconds > 0 else None


if __name__ == "__main__":
    sys.exit(main())
