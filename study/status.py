"""`python -m study.status`: how far a study is."""

import argparse
import json
import sys
from collections import Counter

from study import cli


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "study.status", "[--study NAME] [options]", "Show how far a study is."
    )
    cli.add_study_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the status as JSON")
    return cli.main(parser, _status, argv)


def _status(arguments: argparse.Namespace) -> int:
    from study.best import as_json, front_table
    from study.budget import format_bytes
    from study.records import find, read
    from study.stopping import expected_gain

    ledger = find(arguments.study, arguments.storage, arguments.output_dir)
    record = read(ledger)
    outcomes = Counter(
        "refused" if trial.was_refused else trial.outcome
        for trial in record.trials
        if trial.repeat_of is None
    )
    gain = expected_gain(record)
    running = [
        (trial.number, ledger.epochs(trial.number))
        for trial in record.trials
        if trial.outcome == "running"
    ]
    if arguments.json:
        best = record.best()
        print(
            json.dumps(
                {
                    "study": record.name,
                    "memory_budget_bytes": record.budget,
                    "finished": len(record.finished),
                    "refused": len(record.refused),
                    "outcomes": dict(outcomes),
                    "repeats": len(record.repeats),
                    "expected_gain": gain,
                    "running": [
                        {"trial": number, "epochs": len(epochs)} for number, epochs in running
                    ],
                    "best": None if best is None else as_json(best),
                    "front": [trial.number for trial in record.front()],
                },
                indent=2,
            )
        )
        return cli.OK
    shown = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    print(f"study {record.name}: {len(record.finished)} trials finished ({shown or 'none yet'})")
    print(f"memory budget {format_bytes(record.budget)}")
    for number, epochs in running:
        print(f"trial {number} is running, {len(epochs)} epochs done")
    if record.repeats:
        print(f"{len(record.repeats)} more trials repeat configurations of the front")
    if gain is not None:
        print(f"as many trials again may add {gain:.1%} to the hypervolume of the front")
    print(front_table(record))
    return cli.OK


if __name__ == "__main__":
    sys.exit(main())
