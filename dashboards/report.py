"""`python -m dashboards.report`: the report of a study as one HTML file, or its trials as data."""

import argparse
import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.errors import UserError
from study import cli
from study.credentials import hide_password
from study.spec import StudySpec

if TYPE_CHECKING:
    import optuna

    from dashboards.queries import StudyView
    from study.records import StudyRecord

SUFFIXES = (".html", ".csv", ".json", ".png", ".svg")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.build_parser(
        "dashboards.report",
        "[--study NAME] [--output FILE] [options]",
        "Write the report of a study: one HTML file that needs no network. Or its trials, or its "
        "front.",
    )
    cli.add_study_flags(parser, several=True)
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help="where to write it, .html; or the trials as .csv or .json, or the figure of the "
        "front as .png or .svg (default: report.html in the study's folder)",
    )
    cli.add_tracking_flag(parser)
    return cli.main(parser, _report, argv)


def _report(arguments: argparse.Namespace) -> int:
    from study.records import find, read

    path: Path | None = arguments.output
    if path is not None and path.suffix not in SUFFIXES:
        raise UserError(
            f"--output {path}: its suffix says what is written; use one of {', '.join(SUFFIXES)}"
        )
    records = [
        read(find(study, arguments.storage, arguments.output_dir), curves=True)
        for study in dict.fromkeys(arguments.study or [None])
    ]
    if len(records) > 1:
        _refuse_incomparable(records, path)
    tracking_store = StudySpec(
        output_dir=arguments.output_dir,
        tracking_uri=arguments.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"),
    ).tracking_store
    if len(records) > 1:
        path = path or arguments.output_dir / "comparison.html"
        print(write_comparison(records, path, tracking_store))
    else:
        path = path or arguments.output_dir / records[0].name / "report.html"
        print(write_report(records[0], path, tracking_store))
    return cli.OK


def _refuse_incomparable(records: Sequence["StudyRecord"], path: Path | None) -> None:
    """One figure of qualities, or peaks, that do not mean the same would mislead."""
    from dashboards.compare import COLORS
    from dashboards.words import MEMORY_SOURCES

    if path is not None and path.suffix != ".html":
        raise UserError(f"--output {path}: of several studies there is a page alone (.html)")
    if len(records) > len(COLORS):
        raise UserError(
            f"--study: {len(records)} studies; at most {len(COLORS)} can be told apart"
        )
    first, *others = records
    for other in others:
        if _data(first) != _data(other):
            raise UserError(
                f"--study {other.name}: qualities can be compared on the same data and split "
                f"alone; {first.name} is on {_data(first)}, {other.name} on {_data(other)}"
            )
        sources = [MEMORY_SOURCES[each.identity["memory_source"]] for each in (first, other)]
        if sources[0] != sources[1]:
            raise UserError(
                f"--study {other.name}: its peaks are of {sources[1]}, those of {first.name} of "
                f"{sources[0]}: these cannot be compared"
            )


def _data(record: "StudyRecord") -> str:
    data = record.identity["data"]
    return f"{data['name']} ({data['split']}, digest {data['digest'][:8]})"


def write_report(record: "StudyRecord", path: Path, tracking_store: str) -> Path:
    """Writes a study as the suffix of the path says, whole or not at all, and returns the path.

    Args:
        record: The study as it stands.
        path: The file, of one of `SUFFIXES`; one that exists is replaced.
        tracking_store: URI of the MLflow store that the runs are in.

    Raises:
        UserError: The file cannot be written.
    """
    from dashboards.queries import build_view

    return write_whole(path, _content(build_view(record, tracking_store), path.suffix))


def write_comparison(records: Sequence["StudyRecord"], path: Path, tracking_store: str) -> Path:
    """Writes the page of several studies side by side; see `write_report`."""
    from dashboards.compare_page import render_comparison
    from dashboards.queries import build_view

    views = [build_view(record, tracking_store) for record in records]
    return write_whole(path, render_comparison(views).encode())


def describe_study(record: "StudyRecord", tracking_store: str, command: str) -> str:
    """What the study has found, in Markdown, for its run in MLflow.

    Args:
        record: The study as it stands.
        tracking_store: URI of the MLflow store that the runs are in.
        command: What goes on with it.
    """
    from dashboards.queries import build_view
    from dashboards.words import markdown

    shown = shlex.join(map(hide_password, shlex.split(command)))
    return markdown(build_view(record, tracking_store), shown)


def save_into_study(study: "optuna.Study", record: "StudyRecord", tracking_store: str) -> None:
    """Saves figures for optuna-dashboard into the study; see `dashboards.optuna_dashboard`."""
    from dashboards.optuna_dashboard import save_figures
    from dashboards.queries import build_view

    save_figures(study, build_view(record, tracking_store))


def write_whole(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all, and returns its path.

    Raises:
        UserError: It cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(content)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"the report {path} cannot be written ({error.strerror})") from error
    return path


def _content(view: "StudyView", suffix: str) -> bytes:
    from dashboards import export, page

    match suffix:
        case ".csv":
            return export.as_csv(view).encode()
        case ".json":
            return export.as_json(view).encode()
        case ".png" | ".svg":
            return export.as_image(view, suffix)
        case _:
            return page.render(view).encode()


if __name__ == "__main__":
    sys.exit(main())
