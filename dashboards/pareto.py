"""Quality against peak memory: the figure that the study is about."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import MemoryAxis, memory_axis, value_range
from dashboards.duration import color_by_time
from dashboards.limits import draw_budget, draw_cards
from dashboards.queries import WORDS, StudyView, TrialView
from study.front import pareto_front

_PANE, _ROW, _GAP = 360, 26, 22
"""Pixels: the plot of quality, a row of the strip below it, and what is between them."""

_TOP, _BOTTOM = 58, 56
_SCALE = 34
"""Pixels above the legend, where colours say what trials took."""

_NUMBER_SPACING = 0.06
"""Share of the axis between two trials of the front whose numbers do not overlap on a phone."""


def pareto_figure(view: StudyView) -> go.Figure:
    """The front and every trial whose memory is known.

    Trials without a quality stand in a strip below, a row per outcome, at the memory that they
    took, were predicted to take, or took at least.
    """
    axis = memory_axis(view.measured, view.budget)
    below = [trial for trial in view.measured if trial.quality is None]
    rows = [group for group in WORDS if any(trial.group == group for trial in below)]
    pane = _PANE if view.complete else 0
    gap = _GAP if view.complete and rows else 0
    plot = pane + gap + _ROW * len(rows) or _PANE
    timed = view.front and {"memory", "time"} <= set(view.objectives)
    top = _TOP + (_SCALE if timed else 0)
    figure = theme.figure(plot + top + _BOTTOM)
    figure.update_layout(
        margin={"t": top, "b": _BOTTOM},
        xaxis=theme.axis(**axis.layout(), anchor="y2" if rows else "y"),
        yaxis=theme.axis(
            title={"text": "Validation NDCG@10"},
            domain=[1 - pane / plot, 1],
            range=value_range([end for trial in view.complete for end in _ends(trial)]),
            visible=bool(view.complete),
        ),
        showlegend=bool(view.of("dominated")),
        legend={"y": 1 + 26 / plot},
    )
    draw_cards(figure, view.budget, axis)
    draw_budget(figure, view.budget, axis)
    if view.front:
        _draw_front(figure, view, axis)
    if timed:
        color_by_time(figure, view, 1 + _TOP / plot)
    dominated = view.of("dominated")
    if dominated:
        quality = [trial.quality for trial in dominated]
        figure.add_trace(
            theme.points(
                "dominated",
                dominated,
                axis.places(dominated),
                quality,
                **_error_bars(dominated),
                **theme.hovers(dominated),
            )
        )
    for row, group in enumerate(rows):
        trials = [trial for trial in below if trial.group == group]
        figure.add_trace(
            theme.points(
                group,
                trials,
                axis.places(trials),
                [row] * len(trials),
                yaxis="y2",
                showlegend=False,
                **theme.hovers(trials),
            )
        )
    if rows:
        figure.update_layout(
            yaxis2=theme.axis(
                domain=[0, _ROW * len(rows) / plot],
                range=[len(rows) - 0.5, -0.5],
                tickvals=list(range(len(rows))),
                ticktext=[WORDS[group] for group in rows],
                showgrid=False,
                fixedrange=True,
            )
        )
    return figure


def _draw_front(figure: go.Figure, view: StudyView, axis: MemoryAxis) -> None:
    front = sorted(view.front, key=lambda trial: trial.memory or 0)
    x = axis.places(front)
    y = [trial.quality or 0.0 for trial in front]
    if "memory" in view.objectives:
        # Beyond its last trial more memory buys nothing: the line goes on to the budget.
        end = max(axis.place(min(view.budget, axis.high)), x[-1])
        best = pareto_front(list(zip(y, x, strict=True)))
        figure.add_trace(
            theme.step(
                [*(x[index] for index in best), end],
                [*(y[index] for index in best), y[best[-1]]],
                theme.MARKS["front"].color,
            )
        )
    figure.add_trace(
        theme.points(
            front[0].group,
            front,
            x,
            y,
            mode="markers+text",
            textfont={"size": 11},
            **_numbers(front, axis),
            **_error_bars(front),
            **theme.hovers(front),
        )
    )


def _ends(trial: TrialView) -> tuple[float, float]:
    """Quality less and plus its standard deviation."""
    assert trial.quality is not None
    spread = trial.spread or 0.0
    return trial.quality - spread, trial.quality + spread


def _error_bars(trials: Sequence[TrialView]) -> dict[str, Any]:
    """One standard deviation to both sides, where there were several trainings."""
    if not any(trial.spread for trial in trials):
        return {}
    return {"error_y": {"array": [trial.spread or 0 for trial in trials], "thickness": 1.5}}


def _numbers(front: Sequence[TrialView], axis: MemoryAxis) -> dict[str, Any]:
    """The front's trial numbers, on the side that is free; without one, none is shown."""
    shares = [-math.inf, *(axis.share(trial.memory or 0) for trial in front), math.inf]
    gaps = [right - left for left, right in pairwise(shares)]
    lefts = [gap >= _NUMBER_SPACING for gap in gaps[:-1]]
    # To the right there must be room for the number of the next trial, too.
    rights = [gap >= 2 * _NUMBER_SPACING for gap in gaps[1:]]
    return {
        "text": [
            str(trial.number) if left or right else ""
            for trial, left, right in zip(front, lefts, rights, strict=True)
        ],
        "textposition": ["top left" if left else "top right" for left in lefts],
    }
