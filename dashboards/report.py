"""`python -m dashboards.report`: the report of a study as one HTML file."""

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.errors import UserError
from study import cli
from study.spec import StudySpec

if TYPE_CHECKING:
    from study.records import StudyRecord


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "dashboards.report",
        "[--study NAME] [--output FILE] [options]",
        "Write the report of a study: one HTML file that needs no network.",
    )
    cli.add_study_flags(parser)
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="where to write it (default: report.html in the study's folder)",
    )
    cli.add_tracking_flag(parser)
    return cli.main(parser, _report, argv)


def _report(arguments: argparse.Namespace) -> int:
    from study.records import find, read

    record = read(find(arguments.study, arguments.storage, arguments.output_dir), curves=True)
    path = arguments.output or arguments.output_dir / record.name / "report.html"
    tracking_store = StudySpec(
        output_dir=arguments.output_dir,
        tracking_uri=arguments.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
    ).tracking_store
    print(write_report(record, path, tracking_store))
    return cli.OK


def write_report(record: "StudyRecord", path: Path, tracking_store: str) -> Path:
    """Writes the report of a study, whole or not at all, and returns its path.

    Args:
        record: The study as it stands.
        path: The HTML file; one that exists is replaced.
        tracking_store: URI of the MLflow store that the runs are in.

    Raises:
        UserError: The file cannot be written.
    """
    from dashboards.page import render
    from dashboards.queries import build_view

    page = render(build_view(record, tracking_store))
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_text(page, encoding="utf-8")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"the report {path} cannot be written ({error.strerror})") from error
    return path


if __name__ == "__main__":
    sys.exit(main())
