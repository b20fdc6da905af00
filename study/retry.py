"""`python -m study.retry`: try trials again that were given up."""

import argparse
import sys

from objectives.errors import UserError
from study import cli


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "study.retry",
        "[TRIAL ...] [--study NAME] [options]",
        "Queue trials again that the machine failed too often, as after it was mended; the next "
        "python -m study.run, or a worker that runs, takes them.",
    )
    parser.add_argument(
        "trials", metavar="TRIAL", nargs="*", type=int, help="their numbers (default: all)"
    )
    cli.add_study_flags(parser)
    return cli.main(parser, _retry, argv)


def _retry(arguments: argparse.Namespace) -> int:
    from study.records import find, read
    from study.recovery import try_again

    ledger = find(arguments.study, arguments.storage, arguments.output_dir)
    with ledger.claiming():
        given_up = {trial.number: trial for trial in read(ledger).open_failures}
        for number in arguments.trials:
            if number not in given_up:
                known = ", ".join(map(str, given_up)) or "none"
                raise UserError(f"trial {number}: it was not given up; those that were: {known}")
        chosen = arguments.trials or list(given_up)
        for number in dict.fromkeys(chosen):
            try_again(ledger, given_up[number], retries=0)
    shown = ", ".join(map(str, chosen)) or "none was given up"
    cli.say(f"study {ledger.study.study_name}: trials queued again: {shown}")
    return cli.OK


if __name__ == "__main__":
    sys.exit(main())
