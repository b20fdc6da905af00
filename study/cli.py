"""What the commands share: sentences instead of stack traces, and how a study is named."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from objectives.errors import UserError
from study.credentials import hide_password

OK, ERROR, USAGE, NOTHING_FEASIBLE = 0, 1, 2, 3
INTERRUPTED, TERMINATED = 130, 143


class Parser(argparse.ArgumentParser):
    """Answers a wrong flag with one sentence."""

    def error(self, message: str) -> NoReturn:
        """Prints the sentence and exits with 2."""
        self.exit(USAGE, f"{self.prog}: {hide_password(message)}; see --help\n")


def build_parser(command: str, usage: str, description: str) -> Parser:
    """A parser with the flags that every command has."""
    parser = Parser(
        prog=f"python -m {command}",
        usage=f"python -m {command} {usage}",
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=100),
    )
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return parser


def add_study_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds the flags that choose an existing study, or several."""
    parser.add_argument(
        "--study",
        metavar="NAME",
        action="append" if several else "store",
        help="the study (default: the only one)"
        + ("; again for another beside it" if several else ""),
    )
    add_storage_flags(parser)


def add_storage_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where studies are."""
    parser.add_argument(
        "--output-dir",
        metavar="FOLDER",
        type=Path,
        default=Path(os.environ.get("PARETOCUT_OUTPUT_DIR", "runs")),
        help="folder of the studies (default: runs)",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        default=os.environ.get("PARETOCUT_STORAGE") or os.environ.get("OPTUNA_STORAGE"),
        help="database of the study; also OPTUNA_STORAGE (default: in the study's folder)",
    )


def add_tracking_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says where MLflow has the runs."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or store that the runs are in; also MLFLOW_TRACKING_URI (default: "
        "SQLite in the output folder)",
    )


def main(
    parser: Parser, command: Callable[[argparse.Namespace], int], argv: list[str] | None
) -> int:
    """Runs a command: 2 and one sentence for what the user can mend, 1 for what is our fault."""
    arguments = parser.parse_args(argv)
    try:
        return command(arguments)
    except UserError as error:
        if arguments.debug:
            raise
        say(f"{parser.prog}: {hide_password(str(error))}")
        return USAGE
    except BrokenPipeError:
        sys.stderr.close()
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if arguments.debug:
            raise
        say(f"{parser.prog}: {sentence(error)} (--debug shows where)")
        return ERROR


def sentence(error: Exception) -> str:
    """An error that is nobody's, in one line; of a database what it said itself."""
    cause = error.__cause__ if type(error).__name__ == "StorageInternalError" else None
    cause = getattr(cause, "orig", None) or cause or error
    return f"{type(error).__name__}: {hide_password(' '.join(str(cause).split()))}"


def say(message: str) -> None:
    """A line for people, on standard error."""
    print(message, file=sys.stderr, flush=True)


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """A table, its columns as wide as their widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
