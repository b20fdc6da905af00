"""`python -m study.best`: chooses a trial, and makes the model of it that serves."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from objectives.config import TrialConfig
from objectives.errors import UserError
from study import cli
from study.choice import at_knee, by_weight
from study.production import add_flags, check_flags, is_asked, produce

if TYPE_CHECKING:
    from study.records import StudyRecord, TrialRecord


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code; 3 if no trial is within the budget."""
    parser = cli.build_parser(
        "study.best",
        "[--study NAME] [--budget SIZE | --knee | --weight W] [options]",
        "Show the best trial of a study under a memory budget; train it on all data, register it.",
    )
    cli.add_study_flags(parser)
    choice = parser.add_argument_group("which trial")
    choice.add_argument(
        "--budget", metavar="SIZE", help="memory limit, such as 6GiB (default: the study's)"
    )
    choice.add_argument(
        "--seconds", metavar="N", help="what the trial may have taken (default: any time)"
    )
    choice.add_argument(
        "--knee",
        action="store_true",
        help="in place of limits: where a doubling of the memory begins to buy less than on "
        "average",
    )
    choice.add_argument(
        "--weight",
        metavar="W",
        help="in place of limits: the most of W q - (1 - W) m, with W from 0 (least memory) to 1 "
        "(best quality), and q the NDCG@10 and m the logarithm of the peak, each from 0 to 1 over "
        "the front",
    )
    parser.add_argument("--json", action="store_true", help="print the trial as JSON")
    parser.add_argument(
        "--toml",
        metavar="FILE",
        help="write the configuration for study.run --config; - prints it",
    )
    add_flags(parser)
    return cli.main(parser, _best, argv)


def _best(arguments: argparse.Namespace) -> int:
    from study.budget import format_bytes
    from study.records import find, read

    _check_choice(arguments)
    check_flags(arguments)
    budget = parse_budget(arguments.budget)
    seconds = _parse_seconds(arguments.seconds)
    record = read(find(arguments.study, arguments.storage, arguments.output_dir))
    if arguments.knee:
        trial = at_knee(record)
        limit = "at a knee; use --budget or --weight"
    elif arguments.weight is not None:
        trial = by_weight(record, _parse_weight(arguments.weight))
        limit = "there"
    else:
        trial = record.best(budget, seconds)
        limit = f"in {format_bytes(record.budget if budget is None else budget)}"
        limit += "" if arguments.seconds is None else f" and {seconds:g} s"
    if trial is None:
        cli.say(f"study {record.name}: of {len(record.complete)} complete trials none is {limit}")
        return cli.NOTHING_FEASIBLE
    if arguments.toml is not None:
        text = as_toml(record, trial)
        if arguments.toml == "-":
            print(text, end="")
            return cli.OK
        try:
            Path(arguments.toml).write_text(text)
        except OSError as error:
            raise UserError(
                f"--toml {arguments.toml}: cannot be written ({error.strerror})"
            ) from error
    made: dict[str, Any] = {}
    if is_asked(arguments):
        made = produce(arguments, record, trial, [as_json(each) for each in record.front()])
    # A champion that goes on has a trial of its own.
    goes_on = arguments.since is not None
    if arguments.json:
        print(json.dumps(made if goes_on else {**as_json(trial), **made}, indent=2))
        return cli.OK
    if arguments.toml is None and not goes_on:
        print(trial_table(trial))
    for path in made.get("models", ()):
        print(path)
    return cli.OK


def _check_choice(arguments: argparse.Namespace) -> None:
    limits = ["--budget"] * (arguments.budget is not None)
    limits += ["--seconds"] * (arguments.seconds is not None)
    chosen = ["--knee"] * arguments.knee + ["--weight"] * (arguments.weight is not None)
    if len(chosen) > 1 or (chosen and limits):
        given = " and ".join([*chosen, *limits])
        raise UserError(f"{given}: each chooses a trial in its own way; leave all but one out")


def _parse_weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise UserError(f"--weight {text}: write a number from 0 (least memory) to 1 (quality)")
    return weight


def parse_budget(text: str | None) -> int | None:
    """A memory limit in bytes; None where none is given.

    Raises:
        UserError: It is no size.
    """
    if text is None:
        return None
    try:
        budget = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        budget = ByteSize(0)
    if budget <= 0:
        raise UserError(f"--budget {text}: write a size such as 6GiB or 800MiB")
    return budget


def _parse_seconds(text: str | None) -> float:
    try:
        seconds = math.inf if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"--seconds {text}: write a number of seconds greater than 0, such as 90")
    return seconds


def as_json(trial: "TrialRecord") -> dict[str, Any]:
    """A complete trial for machines; memory in bytes, figures of all its trainings."""
    return {
        "trial": trial.number,
        "ndcg_at_10": trial.quality,
        "ndcg_at_10_std": trial.spread,
        "trainings": trial.trainings,
        "peak_memory_bytes": trial.peak_memory,
        "seconds": trial.seconds,
        "params": dict(trial.params),
        "config": dict(trial.config),
        "metrics": dict(trial.metrics),
        "mlflow_run": trial.mlflow_run,
    }


def as_toml(record: "StudyRecord", trial: "TrialRecord") -> str:
    """A specification for `study.run --config` that trains this configuration alone."""
    request = dict(record.identity["request"])
    # A recorded run is trained on data that are yet to be named.
    request.pop("recorded", None)
    lines = [f"# Trial {trial.number} of study {record.name}"]
    lines += [
        f"study = {json.dumps(f'{record.name}-trial-{trial.number}')}",
        *(
            f"{key} = {json.dumps(value)}"
            for key, value in request.items()
            if not isinstance(value, dict)
        ),
        "n_trials = 1",
        f"seed = {trial.tags['seed']}",
        f'memory_budget = "{record.budget}B"',
    ]
    for key, value in request.items():
        if isinstance(value, dict) and value:
            lines += [
                "",
                f"[{key}]",
                *(f"{name} = {json.dumps(inner)}" for name, inner in value.items()),
            ]
    # Earlier versions kept settings that the trial's loss does not have.
    config = TrialConfig.from_flat(trial.config).flat()
    lines += [
        "",
        "[space]",
        *(f"{name} = {json.dumps(value)}" for name, value in config.items()),
    ]
    return "\n".join(lines) + "\n"


def trial_table(trial: "TrialRecord") -> str:
    """A trial for people: what it reached, then how."""
    from study.budget import format_bytes
    from study.progress import short

    assert trial.peak_memory is not None
    rows = [
        ("trial", str(trial.number)),
        ("NDCG@10, validation", trial.quality_text),
        (
            "NDCG@10, test",
            f"{trial.metrics['test/ndcg_at_10']:.4f}"
            if "test/ndcg_at_10" in trial.metrics
            else "-",
        ),
        ("peak memory", format_bytes(trial.peak_memory)),
        ("seconds", f"{trial.seconds:.1f}"),
        *((name, short(value)) for name, value in trial.config.items()),
    ]
    return cli.aligned(rows)


def front_table(record: "StudyRecord") -> str:
    """The front for people: one row per trial, by rising memory, or time."""
    from study.budget import format_bytes
    from study.progress import short

    front = record.front()
    if not front:
        if not record.finished:
            return f"study {record.name} has no finished trial yet"
        return f"no trial of study {record.name} trained to its end within the budget"
    names = list(dict.fromkeys(name for trial in front for name in trial.params))
    timed = "time" in record.objectives
    header = ("trial", "memory", *(["seconds"] if timed else []), "NDCG@10", "test", *names)
    rows = [
        (
            str(trial.number),
            format_bytes(trial.peak_memory or 0),
            *([f"{trial.seconds:.1f}"] if timed else []),
            trial.quality_text,
            f"{test:.4f}" if (test := trial.metrics.get("test/ndcg_at_10")) is not None else "-",
            *(short(trial.params.get(name, "-")) for name in names),
        )
        for trial in front
    ]
    popular = record.baseline.get("ndcg_at_10")
    note = "" if popular is None else f"\nmost popular items: test NDCG@10 {popular:.4f}"
    title = "Pareto front" if len(record.objectives) > 1 else "Best trial"
    return f"{title} of study {record.name}\n" + cli.aligned([header, *rows]) + note


if __name__ == "__main__":
    sys.exit(main())
