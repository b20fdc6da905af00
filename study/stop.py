"""`python -m study.stop`: ask all workers of a study to stop."""

import argparse
import sys

from study import cli


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "study.stop",
        "[--study NAME] [--now] [options]",
        "Ask the workers of a study to stop, on whichever hosts, once their trials have ended. "
        "python -m study.run goes on with it.",
    )
    cli.add_study_flags(parser)
    parser.add_argument(
        "--now",
        action="store_true",
        help="hand running trials back, to go on from their checkpoints",
    )
    return cli.main(parser, _stop, argv)


def _stop(arguments: argparse.Namespace) -> int:
    from study.records import find
    from study.workers import live_workers, order, runs_here

    ledger = find(arguments.study, arguments.storage, arguments.output_dir)
    workers = [row for row in live_workers(ledger) if runs_here(row.worker) is not False]
    if not workers:
        cli.say(f"study {ledger.study.study_name}: no worker runs it")
        return cli.OK
    order(ledger, "now" if arguments.now else "drain")
    when = "at once" if arguments.now else "once their trials have ended"
    count = f"{len(workers)} worker{'s' if len(workers) > 1 else ''}"
    cli.say(f"study {ledger.study.study_name}: {count} asked to stop {when}")
    return cli.OK


if __name__ == "__main__":
    sys.exit(main())
