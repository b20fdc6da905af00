"""Where the memory goes: the parts of the predicted peak of the front's trials."""

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import linear_memory_axis
from dashboards.limits import draw_budget
from dashboards.queries import StudyView, TrialView
from study.budget import format_bytes
from study.estimate_table import PARTS

_COLORS = (
    *("#1d5f9e", "#4b93d8", "#8fc4f2"),
    *("#a85f00", "#f0a52e"),
    *("#5f6871", "#8f979f", "#b7bec5"),
)
"""Of the parts: blue for what the model keeps, amber for what a step needs, grey for the rest."""
_MEASURED = "#ce395b"

_ROW, _TOP, _BOTTOM = 34, 28, 160
"""Pixels: a bar, and the margins; in the lower one the legend has five lines on a phone."""
_MOST_ROWS = 12


def dissected(view: StudyView) -> list[TrialView]:
    """The trials of the front whose parts are known; of many as many as a figure has rows.

    These are evenly spread over the front, its ends included.
    """
    trials = [trial for trial in view.front if trial.memory_parts]
    if len(trials) <= _MOST_ROWS:
        return trials
    step = (len(trials) - 1) / (_MOST_ROWS - 1)
    return [trials[round(row * step)] for row in range(_MOST_ROWS)]


def anatomy_figure(view: StudyView) -> go.Figure:
    """A bar of the predicted parts for each trial, and a mark at its measured peak."""
    trials = dissected(view)
    predicted = [sum(trial.memory_parts.values()) for trial in trials]
    measured = [trial.memory or 0 for trial in trials]
    axis = linear_memory_axis(max(predicted + measured), view.budget)
    names = [f"trial {trial.number}" for trial in trials]
    plot = _ROW * len(trials)
    figure = theme.figure(
        _TOP + plot + _BOTTOM,
        barmode="stack",
        bargap=0.35,
        margin={"t": _TOP, "r": 60, "b": _BOTTOM},
        xaxis=theme.axis(**axis.layout()),
        yaxis=theme.axis(
            type="category",
            categoryarray=names,
            range=[len(names) - 0.5, -0.5],
            showgrid=False,
            fixedrange=True,
        ),
        showlegend=True,
        legend={
            "y": -54 / plot,
            "yanchor": "top",
            "traceorder": "normal",
            "font": {"size": 12},
            "entrywidth": 64,
        },
    )
    draw_budget(figure, view.budget, axis)
    for part, color in zip(PARTS, _COLORS, strict=True):
        sizes = [trial.memory_parts.get(part, 0) for trial in trials]
        if any(sizes):
            figure.add_bar(
                orientation="h",
                name=part,
                x=[axis.place(size) for size in sizes],
                y=names,
                customdata=[trial.number for trial in trials],
                marker={"color": color},
                hoverinfo="text",
                hovertext=[
                    f"<b>Trial {trial.number}</b><br>{part} {format_bytes(size)}, "
                    f"{size / whole:.0%} of the prediction"
                    for trial, size, whole in zip(trials, sizes, predicted, strict=True)
                ],
            )
    figure.add_scatter(
        name="measured",
        x=axis.places(trials),
        y=names,
        mode="markers",
        customdata=[trial.number for trial in trials],
        marker={
            "symbol": "line-ns-open",
            "size": 22,
            "color": _MEASURED,
            "line": {"width": 3},
        },
        **theme.hovers(trials),
    )
    for name, guess, peak in zip(names, predicted, measured, strict=True):
        figure.add_annotation(
            text=f"{peak / guess - 1:+.1%}",
            xref="paper",
            x=1,
            y=name,
            xanchor="left",
            xshift=8,
            showarrow=False,
            font_size=12,
        )
    return figure
