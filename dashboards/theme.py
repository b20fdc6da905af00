"""How trials and figures look: one mark per group of trials, told apart by shape and colour."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
NEUTRAL = "#8a94a0"
SHADES = ["#cfe5f7", "#0b3f73"]
"""Of a low value and of a high one; a mark's rim is seen on any page."""
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

MANY = 2_000
"""Points of a trace above which they are drawn and described in a shorter way."""


def figure(height: int, **layout: Any) -> go.Figure:
    """An empty figure in the style of the page, which sets text and grid colours itself.

    Args:
        height: Pixels.
        layout: What else it has.
    """
    style: dict[str, Any] = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 13},
        "margin": {"l": 64, "r": 16, "t": 16, "b": 52},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 13}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "bottom"},
    }
    for part in ("margin", "legend"):
        style[part] |= layout.pop(part, {})
    # At once: each update of a layout takes Plotly ten times as long.
    return go.Figure(layout={"height": height, **style, **layout})


def on_white(figure: go.Figure) -> go.Figure:
    """The figure, made to stand by itself, as the page shows it where that is light."""
    figure.update_layout(paper_bgcolor="#ffffff", font_color="#1c2430")
    figure.update_xaxes(gridcolor="#e6e9ed")
    figure.update_yaxes(gridcolor="#e6e9ed")
    return figure


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


def scatter(**properties: Any) -> dict[str, Any]:
    """A trace of points or lines; of a graph object Plotly would check each point twice."""
    return {"type": "scatter", **properties}


def points(
    group: Group,
    trials: Sequence[TrialView],
    x: Sequence[Any],
    y: Sequence[Any],
    colors: Sequence[str] | None = None,
    upwards: bool = False,
    **properties: Any,
) -> dict[str, Any]:
    """A trace of the trials of one group at the given places, with their numbers as custom data.

    Args:
        group: Their group, which has a shape and a colour.
        trials: The trials.
        x: Their places.
        y: Their places.
        colors: Of each, where the colour says something else.
        upwards: Whether memory rises upwards and not to the right.
        properties: Of the trace.
    """
    mark = MARKS[group]
    across = mark.symbol.replace("line-ns", "line-ew") if upwards else mark.symbol
    symbol: str | list[str] = across
    if any(trial.at_least for trial in trials):
        # A bound from below points to where the true peak is.
        bound = "triangle-up" if upwards else "triangle-right"
        symbol = [bound if trial.at_least else across for trial in trials]
    made = {
        "mode": "markers",
        "x": x,
        "y": y,
        "name": WORDS[group],
        "customdata": [trial.number for trial in trials],
        "marker": {
            **({"color": mark.color} if colors is None else _colored(colors)),
            "size": mark.size,
            "symbol": symbol,
            "opacity": 0.9,
            "line": {"width": 2 if mark.symbol.endswith("open") else 0, "color": mark.color},
        },
    }
    return scatter(**(made | properties))


def _colored(colors: Sequence[str]) -> dict[str, Any]:
    """A marker's colours; many are numbers on a scale, since Plotly checks every text."""
    palette = list(dict.fromkeys(colors))
    if len(colors) <= MANY or len(palette) == 1:
        return {"color": colors}
    last = len(palette) - 1
    return {
        "color": np.array([palette.index(color) for color in colors], dtype=np.uint8),
        "cmin": 0,
        "cmax": last,
        "colorscale": [[number / last, color] for number, color in enumerate(palette)],
    }


def step(x: Sequence[Any], y: Sequence[Any], color: str, **properties: Any) -> dict[str, Any]:
    """A trace of a line that goes to the right, then up or down."""
    return scatter(
        x=x,
        y=y,
        line={"shape": "hv", "width": 2, "color": color},
        **({"mode": "lines", "hoverinfo": "skip", "showlegend": False} | properties),
    )


def color_scale(texts: Sequence[str], ends: Sequence[float], y: float) -> dict[str, Any]:
    """A scale of colours in the style of the page.

    Args:
        texts: Its low and its high end for people.
        ends: Their values.
        y: Where it stands, as a share of the plot's height.
    """
    return {
        "orientation": "h",
        "thickness": 8,
        "lenmode": "pixels",
        "len": 160,
        "x": 0,
        "xanchor": "left",
        "xpad": 0,
        "y": y,
        "yanchor": "bottom",
        "ypad": 0,
        "outlinewidth": 0,
        "tickvals": list(ends) if ends[0] < ends[1] else [ends[0]],
        "ticktext": list(texts),
    }


def full_hover(trial: TrialView) -> str:
    """All that is known of a trial, in the subset of HTML that Plotly understands."""
    facts = (f"{name} {text}" for name, text in trial.facts)
    # Few are long, and wrapping takes most of the time of a figure.
    wrapped = ([fact] if len(fact) <= 44 else textwrap.wrap(fact, 44) for fact in facts)
    lines = [line for each in wrapped for line in each]
    shown = [f"<b>Trial {trial.number}</b>, {WORDS[trial.group]}", *map(html.escape, lines)]
    if trial.run_url is not None:
        shown.append("<i>a click opens its run</i>")
    return "<br>".join(shown)


def hovers(trials: Sequence[TrialView]) -> dict[str, Any]:
    """The properties of a trace whose points say all that is known of their trials.

    Of many trials they say where they stand: as much text again as there is data is slow.
    """
    if len(trials) > MANY:
        return {"hovertemplate": template(trials[0].group, "NDCG@10 %{y:.4f}", "at %{x:.4~g}")}
    return {"hoverinfo": "text", "hovertext": [full_hover(trial) for trial in trials]}


def template(group: Group, *lines: str) -> str:
    """A hover text that Plotly fills in: the trial's number, then these lines."""
    head = f"<b>Trial %{{customdata}}</b>, {WORDS[group]}"
    return "<br>".join([head, *lines]) + "<extra></extra>"
