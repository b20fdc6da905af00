"""`python -m study.run`: a study from start to report. The composition root."""

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import UserError
from study import cli
from study.flags import add_spec_flags
from study.front import OBJECTIVES
from study.spec import StudySpec, load_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from study.ledger import Ledger
    from study.records import StudyRecord
    from study.subject import Subject
    from study.tracking import Tracker
    from study.work import Work

_DESCRIPTION = """\
Search negatives, batch size and learning rate of a sequential recommender under a memory budget.
The same command continues a study that was interrupted; a larger --n-trials extends it."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    0: done. 1: the machine failed. 2: the request cannot be met. 3: no trial trained to its
    end within the budget. 130 and 143: stopped by Ctrl-C or SIGTERM; the same command continues.
    """
    parser = cli.build_parser(
        "study.run", "[--data NAME|PATH|URL] [--memory-budget SIZE] [options]", _DESCRIPTION
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file with the same keys")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the study and one sampled trial, then stop"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_spec_flags(parser)
    given = sys.argv[1:] if argv is None else argv
    parser.set_defaults(command=shlex.join(["python", "-m", "study.run", *given]))
    return cli.main(parser, _run, argv)


def _run(arguments: argparse.Namespace) -> int:
    spec = load_spec(vars(arguments), arguments.config)
    if spec.gpus_per_trial > 1 and not spec.gpus:
        raise UserError(f"--gpus-per-trial {spec.gpus_per_trial}: say with --gpus which there are")
    if not arguments.dry_run:
        from study.tracking import check_server

        check_server(spec.tracking_store)
        if spec.gpus or spec.workers:
            return _run_supervised(spec, arguments)

    from study.subject import build_subject

    subject = build_subject(spec)
    for note in subject.notes:
        cli.say(f"{subject.name}: {note}")
    if arguments.dry_run:
        print(json.dumps(_dry_run(spec, subject), indent=2))
        return cli.OK

    from study.work import Work

    return _run_here(Work(spec, subject), subject, spec, arguments)


def _dry_run(spec: StudySpec, subject: "Subject") -> dict[str, Any]:
    import optuna

    from study.opening import identity
    from study.sampling import build_sampler

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # What peaks are predicted by is not there yet, and the first trial may as well be random.
    name = "tpe" if spec.sampler == "tpe" else "random"
    sampler = build_sampler(name, spec.seed, 0, subject.space)
    directions = [OBJECTIVES[name] for name in spec.objectives]
    trial = optuna.create_study(directions=directions, sampler=sampler).ask()
    return {
        "study": spec.study or subject.name,
        "device": subject.place,
        **identity(spec, subject, subject.budget(spec.memory_budget)),
        "n_trials": spec.n_trials,
        "sampled_trial": subject.space.suggest(trial).flat(),
    }


def _run_here(work: "Work", subject: "Subject", spec: StudySpec, arguments: Any) -> int:
    """One worker, in this process."""
    from rich.console import Console

    from study.progress import StudyProgress

    _say_where_it_starts(work.ledger, work.total, subject.place)
    for source in work.sources:
        cli.say(f"starting from {source.name}, {source.num_runs} trainings")
    console = Console(stderr=True)
    with (
        StudyProgress(work.total, console, live=console.is_terminal) as progress,
        _tracker(work.ledger, spec, arguments.command, progress.say) as tracker,
    ):
        failure = work.run(progress, tracker)
        record, report = _finish(work.ledger, tracker, spec, bool(failure or work.code))
    _print_end(record, report, tracker, spec, as_json=arguments.json)
    return _exit_code(record, failure, work.code)


def _run_supervised(spec: StudySpec, arguments: argparse.Namespace) -> int:
    """One worker process for each GPU, or several on the CPU."""
    from study.records import find
    from study.supervisor import Supervisor, places

    timeout = None if spec.timeout is None else spec.timeout.total_seconds()
    flags = {name: value for name, value in vars(arguments).items() if name != "config"}
    config = None if arguments.config is None else str(arguments.config)
    supervisor = Supervisor(places(spec), flags, config, timeout)
    with supervisor.listening():
        joined = supervisor.start()
        if joined is None:
            return supervisor.code
        for note in joined.notes:
            cli.say(f"{joined.study}: {note}")
        ledger = find(joined.study, spec.storage, spec.output_dir)
        what = "GPUs" if spec.gpus else "CPU workers"
        _say_where_it_starts(ledger, joined.total, f"{len(supervisor.slots)} {what}")
        with _tracker(ledger, spec, arguments.command, cli.say) as tracker:
            supervisor.watch(tracker.wake)
            is_cut_short = bool(supervisor.code or supervisor.failures)
            record, report = _finish(ledger, tracker, spec, is_cut_short)
    _print_end(record, report, tracker, spec, as_json=arguments.json)
    failure = ""
    if supervisor.failures and len(record.finished) < joined.total:
        failure = f"{supervisor.failures} of {len(supervisor.slots)} workers could not go on"
    return _exit_code(record, failure, supervisor.code)


def _say_where_it_starts(ledger: "Ledger", total: int, place: str) -> None:
    from study.records import read

    record = read(ledger)
    cli.say(
        f"study {record.name}: {total} trials on {place}, "
        + (f"{len(record.finished)} of them done; " if record.finished else "")
        + _budget_sentence(record)
    )


def _tracker(
    ledger: "Ledger", spec: StudySpec, command: str, say: "Callable[[str], None]"
) -> "Tracker":
    from dashboards.report import describe_study
    from study.tracking import Sight, Tracker

    folder = spec.output_dir / ledger.study.study_name
    sight = Sight(
        partial(describe_study, tracking_store=spec.tracking_store, command=command),
        partial(write_report, folder=folder, tracking_store=spec.tracking_store),
    )
    return Tracker(ledger, spec.tracking_store, spec.output_dir, say, sight)


def _finish(
    ledger: "Ledger", tracker: "Tracker", spec: StudySpec, is_cut_short: bool
) -> "tuple[StudyRecord, list[Path]]":
    """Writes what shows the study, and tells MLflow the rest."""
    from dashboards.report import save_into_study
    from study.records import read

    tracker.drain()  # so that the report can link to the runs
    record = read(ledger, curves=True)
    report = write_report(record, spec.output_dir / record.name, spec.tracking_store)
    tracker.close("KILLED" if is_cut_short else "FINISHED", report)
    save_into_study(ledger.study, record, spec.tracking_store)
    return record, report


def _print_end(
    record: "StudyRecord",
    report: list[Path],
    tracker: "Tracker",
    spec: StudySpec,
    *,
    as_json: bool,
) -> None:
    if tracker.untold:
        cli.say(
            f"MLflow was not told everything ({tracker.untold}); the values are kept, and the "
            "next python -m study.run sends them"
        )
    _print_result(record, report, spec, as_json=as_json)
    _say_what_did_not_run(record, spec)


def _exit_code(record: "StudyRecord", failure: str, stopped: int) -> int:
    if failure:
        cli.say(f"python -m study.run: {failure}; the same command continues the study")
        return cli.ERROR
    if stopped:
        return stopped
    return cli.OK if record.complete or not record.finished else cli.NOTHING_FEASIBLE


def _say_what_did_not_run(record: "StudyRecord", spec: StudySpec) -> None:
    from study.stopping import is_exhausted

    if len(record.finished) < spec.n_trials and is_exhausted(record, spec.patience):
        cli.say(
            f"the last {spec.patience} trials did not add to the front: the search has ended; "
            "a larger --patience goes on"
        )
    if record.refused:
        cli.say(
            f"{len(record.refused)} more configurations were predicted to exceed the budget, and "
            "never ran"
        )


def _budget_sentence(record: "StudyRecord") -> str:
    from study.budget import format_bytes

    source = {
        "cuda": "CUDA allocator",
        "tracked": "tracked tensor allocations, no GPU",
        "recorded": "as recorded",
    }
    measured = source[record.identity["memory_source"]]
    return f"memory budget {format_bytes(record.budget)} ({measured})"


def write_report(record: "StudyRecord", folder: Path, tracking_store: str) -> list[Path]:
    """The report, or nothing where it cannot be written: that must not cost the result."""
    from dashboards import report

    try:
        return [report.write_report(record, folder / "report.html", tracking_store)]
    except UserError as error:
        cli.say(f"python -m study.run: {error}")
        return []


def _print_result(
    record: "StudyRecord", report: list[Path], spec: StudySpec, *, as_json: bool
) -> None:
    from study.best import as_json as trial_as_json
    from study.best import front_table
    from study.stopping import expected_gain

    if as_json:
        print(
            json.dumps(
                {
                    "study": record.name,
                    "trials": len(record.finished),
                    "feasible": len(record.complete),
                    "refused": len(record.refused),
                    "repeats": len(record.repeats),
                    "expected_gain": expected_gain(record),
                    "front": [trial_as_json(trial) for trial in record.front()],
                    "baseline": record.baseline,
                    "report": str(report[0]) if report else None,
                },
                indent=2,
            )
        )
    else:
        print(front_table(record))
    for path in report:
        cli.say(f"report: {path}")
    if spec.tracking_uri is None:
        mlflow = Path(sys.executable).parent / "mlflow"
        cli.say(f"MLflow: {mlflow} ui --backend-store-uri {spec.tracking_store}")


if __name__ == "__main__":
    sys.exit(main())
