"""`python -m study.run`: a study from start to report. The composition root."""

import argparse
import json
import shlex
import sys
from functools import partial
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import UserError
from study import cli
from study.front import OBJECTIVES, objectives_of
from study.spec import StudySpec, add_spec_flags, load_spec

if TYPE_CHECKING:
    from study.ledger import Ledger
    from study.pruning import Pruner
    from study.records import StudyRecord
    from study.subject import Subject
    from study.warm_start import Source

_DESCRIPTION = """\
Search negatives, batch size and learning rate of a sequential recommender under a memory budget.
The same command continues a study that was interrupted; a larger --n-trials extends it."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    0: done. 1: the machine failed. 2: the request cannot be met. 3: no trial trained to its
    end within the budget. 130 and 143: stopped by Ctrl-C or SIGTERM; the same command continues.
    """
    parser = cli.build_parser(
        "study.run", "[--data NAME|PATH] [--memory-budget SIZE] [options]", _DESCRIPTION
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

    from study.subject import build_subject

    subject = build_subject(spec)
    for note in subject.notes:
        cli.say(f"{subject.name}: {note}")
    if arguments.dry_run:
        print(json.dumps(_dry_run(spec, subject), indent=2))
        return cli.OK
    return _run_study(spec, subject, arguments.command, as_json=arguments.json)


def _identity(spec: StudySpec, subject: "Subject", budget: int) -> dict[str, Any]:
    """What makes a study the same study: one may be continued only if all of it agrees."""
    space = subject.space
    return {
        "space": space.as_dict(),
        "open": sorted({**space.open, **space.spent}),
        "spend_budget": spec.spend_budget,
        "memory_budget": budget,
        "memory_source": subject.memory_source,
        "objectives": list(spec.objectives),
        "seed": spec.seed,
        **subject.identity,
    }


def _dry_run(spec: StudySpec, subject: "Subject") -> dict[str, Any]:
    import optuna

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
        **_identity(spec, subject, subject.budget(spec.memory_budget)),
        "n_trials": spec.n_trials,
        "sampled_trial": subject.space.suggest(trial).flat(),
    }


def _run_study(spec: StudySpec, subject: "Subject", command: str, *, as_json: bool) -> int:
    from rich.console import Console

    from dashboards.report import describe_study, save_into_study
    from study.ledger import default_storage
    from study.progress import StudyProgress
    from study.records import read
    from study.sampling import GridSampler, build_sampler, choose_sampler
    from study.tracking import Sight, Tracker, check_server
    from study.worker import MachineFailedError, NothingFitsError, Stop, Worker

    name = spec.study or subject.name
    check_server(spec.tracking_store)
    objective, space = subject.objective, subject.space
    if spec.spend_budget and not objective.predicts:
        raise UserError(
            f"--spend-budget {spec.spend_budget}: what fits is predicted for a GPU with Triton, "
            f"and this study runs on {subject.place}; leave it out"
        )
    sampler = choose_sampler(spec.sampler, subject, spec.objectives, spec.warm_start)
    sources = _find_sources(spec, name) if spec.warm_start else []
    folder = spec.output_dir / name
    storage_url = spec.storage or default_storage(spec.output_dir, name)
    ledger = _open_study(spec, storage_url, name, subject)
    before = read(ledger)
    ledger.study.sampler = build_sampler(
        sampler,
        spec.seed,
        len(before.trials),
        space,
        partial(objective.predicted_peak, budget=before.budget) if objective.predicts else None,
        before.budget,
        spec.objectives,
        sources,
    )
    total = spec.n_trials
    if isinstance(ledger.study.sampler, GridSampler):
        total = min(total, len(ledger.study.sampler.cells))
    cli.say(
        f"study {name}: {total} trials on {subject.place}, "
        + (f"{len(before.finished)} of them done; " if before.finished else "")
        + _budget_sentence(before)
    )
    for source in sources:
        cli.say(f"starting from {source.name}, {source.num_runs} trainings")

    console = Console(stderr=True)
    tags = subject.tags()
    failure = ""
    sight = Sight(
        partial(describe_study, tracking_store=spec.tracking_store, command=command),
        partial(_write_report, folder=folder, tracking_store=spec.tracking_store),
    )
    with (
        StudyProgress(total, console, live=console.is_terminal) as progress,
        Tracker(
            ledger, spec.tracking_store, spec.output_dir, tags, progress.say, sight
        ) as tracker,
    ):
        stop = Stop(progress.say)
        worker = Worker(
            ledger,
            space,
            objective,
            seed=spec.seed,
            tags=tags,
            folder=folder / "checkpoints",
            progress=progress,
            tracker=tracker,
            stop=stop,
            gate=objective.check,
            # Trials of one configuration are there to be compared.
            pruner=_pruner(spec, ledger) if space.open else None,
        )
        try:
            with stop.listening():
                timeout = None if spec.timeout is None else spec.timeout.total_seconds()
                worker.run(total, timeout, spec.patience, spec.confirm or 1)
        except (MachineFailedError, NothingFitsError) as error:
            failure = str(error)
        except KeyboardInterrupt:
            progress.say("stopped; the running trial will be tried again")
        tracker.drain()  # so that the report can link to the runs
        record = read(ledger, curves=True)
        report = _write_report(record, folder, spec.tracking_store)
        tracker.close("KILLED" if failure or stop.code else "FINISHED", report)
        save_into_study(ledger.study, record, spec.tracking_store)
    if tracker.untold:
        cli.say(
            f"MLflow was not told everything ({tracker.untold}); the values are kept, and the "
            "next python -m study.run sends them"
        )
    _print_result(record, report, spec, as_json=as_json)
    _say_what_did_not_run(record, spec)
    if failure:
        cli.say(f"python -m study.run: {failure}; the same command continues the study")
        return cli.ERROR
    if stop.code:
        return stop.code
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


def _find_sources(spec: StudySpec, name: str) -> "list[Source]":
    # It imports scikit-learn, in a second.
    from study.warm_start import find_sources

    return find_sources(spec, name)


def _pruner(spec: StudySpec, ledger: "Ledger") -> "Pruner | None":
    from study.pruning import Pruner

    if spec.pruning == "none":
        return None
    return Pruner(ledger, spec.objectives)


def _open_study(spec: StudySpec, storage_url: str, name: str, subject: "Subject") -> "Ledger":
    """The study of that name, checked to be the same, or a new one; nothing is written before."""
    from study.ledger import Ledger, connect, sqlite_file

    budget = subject.budget(spec.memory_budget)
    file = sqlite_file(storage_url)
    if file is None or file.is_file():
        storage = connect(storage_url)
        ledger = Ledger.open(storage, name)
        if ledger is not None:
            known = ledger.identity["memory_budget"]
            is_share = not isinstance(spec.memory_budget, int)
            # A share may differ a little after a reboot.
            if spec.memory_budget is None or (is_share and isclose(budget, known, rel_tol=1e-3)):
                budget = known
            asked = _identity(spec, subject, budget)
            stored = {
                **ledger.identity,
                "space": _of_this_version(ledger.identity["space"], asked["space"]),
                "objectives": objectives_of(ledger.identity),
            }
            _refuse_difference(name, stored, asked)
            _make_folder(spec.output_dir / name)
            return ledger
    subject.check_floor(budget)
    baseline = subject.baseline()
    if file is not None:
        _make_folder(file.parent)
        storage = connect(storage_url)
    _make_folder(spec.output_dir / name)
    ledger = Ledger.create(storage, name, _identity(spec, subject, budget))
    ledger.study.set_user_attr("baseline", baseline)
    return ledger


def _of_this_version(stored: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """A stored space of the losses that are asked for, with the settings that they have now.

    Those that an earlier version did not know were what their defaults are now; those that it
    kept although no loss has them never counted.
    """
    from objectives.config import SETTINGS
    from objectives.loss_config import CHOICES

    if any(stored.get(name, value) != asked.get(name, value) for name, value in CHOICES.items()):
        return stored
    return {name: stored.get(name, SETTINGS[name].default) for name in asked}


def _refuse_difference(name: str, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    differences = []
    for key, value in asked.items():
        if key == "request":  # the data's digest says whether it is the same
            continue
        old = stored.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            names = dict.fromkeys([*old, *value])
            pairs = [(f"{key}.{part}", old.get(part), value.get(part)) for part in names]
        else:
            pairs = [(key, old, value)]
        differences += [f"{part} was {a}, is {b}" for part, a, b in pairs if a != b]
    if differences:
        raise UserError(
            f"--study {name}: it was started differently ({'; '.join(differences)}); use the same "
            "flags to continue it, or another --study to start anew"
        )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output-dir {path}: the folder cannot be made ({error.strerror}); name another"
        ) from error


def _budget_sentence(record: "StudyRecord") -> str:
    from study.budget import format_bytes

    source = {
        "cuda": "CUDA allocator",
        "tracked": "tracked tensor allocations, no GPU",
        "recorded": "as recorded",
    }
    measured = source[record.identity["memory_source"]]
    return f"memory budget {format_bytes(record.budget)} ({measured})"


def _write_report(record: "StudyRecord", folder: Path, tracking_store: str) -> list[Path]:
    """The report, or nothing where it cannot be written: that must not cost the result."""
    from dashboards.report import write_report

    try:
        return [write_report(record, folder / "report.html", tracking_store)]
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
