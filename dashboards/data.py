"""`python -m dashboards.data`: a log of interactions as one page of HTML, before a study of it."""

import argparse
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from dashboards import theme
from dashboards.frame import frame, place
from dashboards.report import write_whole
from objectives.errors import UserError
from study import cli
from study.data import Look, advice, build_parser, look, rows

if TYPE_CHECKING:
    from objectives.data.facts import LogFacts

_HEIGHT, _MOST_POINTS = 340, 300
_COLOR = theme.MARKS["front"].color


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = build_parser(
        "dashboards.data",
        "Draw a log of interactions, with what python -m study.data says of it: one HTML file "
        "that needs no network.",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("data.html"),
        help="where to write it (default: data.html)",
    )
    return cli.main(parser, _draw, argv)


def _draw(arguments: argparse.Namespace) -> int:
    if arguments.output.suffix != ".html":
        raise UserError(f"--output {arguments.output}: it is a page; name it .html")
    print(write_whole(arguments.output, render(look(arguments)).encode()))
    return cli.OK


def render(seen: Look) -> str:
    """The page; it needs no other file and no network."""
    figures = {
        "lengths": lengths_figure(seen.log),
        "popularity": popularity_figure(seen.log),
    }
    if (activity := activity_figure(seen.log)) is not None:
        figures["activity"] = activity
    facts = rows(seen)
    start = advice(seen)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in seen.notes)
    body = (
        '<header>\n<p class="kicker">ParetoCut: a log of interactions</p>\n'
        f"<h1>{html.escape(seen.name)}</h1>\n</header>\n"
        f"<section>\n<h2>What it holds</h2>\n{_table(facts)}</section>\n"
    )
    if start:
        body += f"<section>\n<h2>Where to start</h2>\n{_table(start)}</section>\n"
    for key, (title, note) in _SECTIONS.items():
        drawn = place(figures, key, title, "The log has no times.")
        body += f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{drawn}\n</section>\n'
    if notes:
        body += f"<section>\n<h2>Notes</h2>\n{notes}</section>\n"
    return frame(seen.name, body, figures)


_SECTIONS = {
    "lengths": ("Interactions of a user", "How many users have at least so many interactions."),
    "popularity": (
        "Popularity of items",
        "Interactions of each item, the most popular first; both axes are logarithmic, so that a "
        "straight line is a power law.",
    ),
    "activity": ("Interactions over time", "In each of a hundred equal parts of the time."),
}


def _table(pairs: list[tuple[str, str]]) -> str:
    cells = "".join(
        f'<div class="wide"><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>'
        for name, text in pairs
    )
    return f"<dl>{cells}</dl>\n"


def lengths_figure(log: "LogFacts") -> go.Figure:
    """The share of users that have at least so many interactions."""
    lengths, firsts = np.unique(log.lengths, return_index=True)
    chosen = _thinned(len(lengths))
    shares = 1 - firsts[chosen] / len(log.lengths)
    figure = theme.figure(
        _HEIGHT,
        xaxis=theme.axis(title={"text": "Interactions"}, type="log"),
        yaxis=theme.axis(title={"text": "Share of users"}, tickformat=".0%", rangemode="tozero"),
    )
    hover = "%{y:.1%} of the users have %{x:,} or more<extra></extra>"
    figure.add_trace(_line(lengths[chosen].tolist(), shares.tolist(), hover))
    return figure


def popularity_figure(log: "LogFacts") -> go.Figure:
    """Interactions of items over their rank."""
    chosen = _thinned(len(log.counts))
    figure = theme.figure(
        _HEIGHT,
        xaxis=theme.axis(title={"text": "Rank of the item"}, type="log"),
        yaxis=theme.axis(title={"text": "Interactions"}, type="log"),
    )
    hover = "item %{x:,}: %{y:,} interactions<extra></extra>"
    figure.add_trace(_line((chosen + 1).tolist(), log.counts[chosen].tolist(), hover))
    return figure


def activity_figure(log: "LogFacts") -> go.Figure | None:
    """Interactions over time, or None without times."""
    from objectives.data.facts import PARTS

    if log.activity is None or log.first is None or log.last is None:
        return None
    middles = log.first + (np.arange(PARTS) + 0.5) * (log.last - log.first) / PARTS
    figure = theme.figure(
        _HEIGHT,
        xaxis=theme.axis(type="date" if log.has_dates else "linear"),
        yaxis=theme.axis(title={"text": "Interactions"}, rangemode="tozero"),
    )
    x = (middles * 1000 if log.has_dates else middles).tolist()
    figure.add_trace(_line(x, log.activity.tolist(), "%{x}: %{y:,} interactions<extra></extra>"))
    return figure


def _line(x: Sequence[float], y: Sequence[float], hover: str) -> dict[str, object]:
    line = {"width": 2, "color": _COLOR}
    mode = "lines" if len(x) > 1 else "markers"
    return theme.scatter(x=x, y=y, mode=mode, line=line, hovertemplate=hover)


def _thinned(size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Places of a curve that are enough to draw it on a logarithmic axis."""
    if size <= _MOST_POINTS:
        return np.arange(size)
    return np.unique(np.geomspace(1, size, _MOST_POINTS).astype(np.int64)) - 1


if __name__ == "__main__":
    sys.exit(main())
