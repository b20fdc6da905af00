"""How trials and figures look: one mark per group of trials, told apart by shape and colour."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from dashboards.queries import WORDS, Group, TrialView

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True)
class Mark:
    """How the trials of a group are drawn."""

    color: str
    symbol: str
    size: int


# After Okabe and Ito's colour-blind safe palette, at a lightness that light and dark pages bear.
MARKS: dict[Group, Mark] = {
    "front": Mark("#1f7ac4", "circle", 10),
    "best": Mark("#1f7ac4", "circle", 10),
    "dominated": Mark("#7f8ea0", "circle-open", 8),
    "infeasible": Mark("#d37e00", "diamond", 8),
    "diverged": Mark("#cf4a2c", "x", 8),
    "pruned": Mark("#b0679f", "line-ns-open", 12),
    "failed": Mark("#8a8f98", "cross-thin-open", 9),
    "running": Mark("#2a9d7f", "circle-dot", 8),
    "waiting": Mark("#8a8f98", "circle-open", 6),
}
_LINE = 14
"""Pixels from one line of small text to the next."""
NEUTRAL = "#8a94a0"
LOSS_COLORS = {
    "cce-": "#3567d7",
    "cce": "#cd8215",
    "bce": "#15a3a0",
    "bce+": "#ce395b",
    "gbce": "#934d98",
    "sce": "#9e81e5",
    "rece": "#536c09",
}
"""Found by search: as far apart as can be for every kind of colour vision, on light and dark."""


def figure(height: int) -> go.Figure:
    """An empty figure in the style of the page, which sets text and grid colours itself."""
    made = go.Figure()
    made.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13},
        margin={"l": 64, "r": 16, "t": 16, "b": 52},
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 13}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "bottom"},
    )
    return made


def axis(**properties: Any) -> dict[str, Any]:
    """An axis in the style of the page."""
    style = {
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": 12},
        "automargin": True,
    }
    title = {"title": {"standoff": 12, "font": {"size": 13}} | properties.pop("title", {})}
    return style | title | properties


def points(
    group: Group,
    trials: Sequence[TrialView],
    x: Sequence[Any],
    y: Sequence[Any],
    **properties: Any,
) -> go.Scatter:
    """The trials of one group at the given places, each with its number as custom data."""
    mark = MARKS[group]
    # A bound from below points to where the true peak is.
    symbols = ["triangle-right" if trial.at_least else mark.symbol for trial in trials]
    return go.Scatter(
        x=x,
        y=y,
        name=WORDS[group],
        customdata=[trial.number for trial in trials],
        marker={
            "color": mark.color,
            "size": mark.size,
            "symbol": symbols,
            "opacity": 0.9,
            "line": {"width": 2 if mark.symbol.endswith("open") else 0, "color": mark.color},
        },
        **({"mode": "markers"} | properties),
    )


def step(x: Sequence[Any], y: Sequence[Any], color: str, **properties: Any) -> go.Scatter:
    """A line that goes to the right, then up or down."""
    return go.Scatter(
        x=x,
        y=y,
        line={"shape": "hv", "width": 2, "color": color},
        **({"mode": "lines", "hoverinfo": "skip", "showlegend": False} | properties),
    )


def full_hover(trial: TrialView) -> str:
    """All that is known of a trial, in the subset of HTML that Plotly understands."""
    lines = [line for name, text in trial.facts for line in textwrap.wrap(f"{name} {text}", 44)]
    shown = [f"<b>Trial {trial.number}</b>, {WORDS[trial.group]}", *map(html.escape, lines)]
    if trial.run_url is not None:
        shown.append("<i>a click opens its run</i>")
    return "<br>".join(shown)


def hovers(trials: Sequence[TrialView]) -> dict[str, Any]:
    """The properties of a trace whose points say all that is known of their trials."""
    return {"hoverinfo": "text", "hovertext": [full_hover(trial) for trial in trials]}


def template(group: Group, *lines: str) -> str:
    """A hover text that Plotly fills in: the trial's number, then these lines."""
    head = f"<b>Trial %{{customdata}}</b>, {WORDS[group]}"
    return "<br>".join([head, *lines]) + "<extra></extra>"


def label_ends(
    figure: go.Figure,
    labels: Sequence[tuple[float, float, str]],
    ends: Sequence[float],
    pixels: float,
    **properties: Any,
) -> None:
    """Words at the ends of lines, as near to these as can be, none over another.

    Args:
        figure: Where the lines are drawn.
        labels: Where each line ends, and what to say there.
        ends: Of the vertical axis; what has no room between them is left out.
        pixels: Between these.
        **properties: Of the trace.
    """
    apart = _LINE * (ends[1] - ends[0]) / pixels
    aside = 0.1 * max((x for x, _, _ in labels), default=0.0)
    columns: list[list[tuple[float, float, str]]] = []
    for label in sorted(labels):
        if not columns or label[0] - columns[-1][-1][0] > aside:
            columns.append([])
        columns[-1].append(label)
    placed = []
    for column in columns:
        column.sort(key=lambda label: label[1])
        heights = _spread([y for _, y, _ in column], apart)
        for (x, _, text), y in zip(column, heights, strict=True):
            if ends[0] <= y <= ends[1]:
                placed.append((x, y, text))
    if placed:
        xs, ys, texts = zip(*placed, strict=True)
        figure.add_scatter(
            x=xs,
            y=ys,
            text=texts,
            mode="text",
            textfont={"size": 11},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
            **properties,
        )


def _spread(values: Sequence[float], apart: float) -> list[float]:
    """The nearest values that are so far apart, of rising ones: an isotonic regression."""
    blocks: list[tuple[float, int]] = []
    for index, value in enumerate(values):
        mean, count = value - index * apart, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return [mean + index * apart for index, mean in enumerate(means)]
