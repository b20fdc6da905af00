"""Several studies of the same data: their fronts in one figure, and what each has at a limit."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import memory_axis, value_range
from dashboards.queries import StudyView, TrialView
from dashboards.value import memory_front

COLORS = ("#1f7ac4", "#d98200", "#2a9d7f", "#b0679f", "#cf4a2c", "#7f8ea0")
"""Of studies; after Okabe and Ito, as in `dashboards.theme`."""

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")


def limits(views: Sequence[StudyView]) -> list[int]:
    """Memory limits to compare at, rising: the budgets, and halvings of the smallest.

    Down to the last at which any study has a trial.
    """
    budgets = {view.budget for view in views}
    least = min((trial.memory or 0 for view in views for trial in view.complete), default=0)
    limit, found = min(budgets), set(budgets)
    while least and limit // 2 >= least:
        limit //= 2
        found.add(limit)
    return sorted(found)


def compare_figure(views: Sequence[StudyView]) -> go.Figure:
    """The best quality of each study within a memory limit; a mark is the trial that has it."""
    fronts = [memory_front(view.complete) for view in views]
    trials = [trial for front in fronts for trial in front]
    budget = max(view.budget for view in views)
    axis = memory_axis(trials, budget)
    figure = theme.figure(
        440,
        margin={"t": 56},
        showlegend=True,
        legend={"y": 1.02},
        xaxis=theme.axis(**axis.layout()),
        yaxis=theme.axis(
            title={"text": "Validation NDCG@10"},
            range=value_range([trial.quality or 0.0 for trial in trials]),
        ),
    )
    for place, (view, front) in enumerate(zip(views, fronts, strict=True)):
        if not front:
            continue
        color = COLORS[place % len(COLORS)]
        # Where studies agree, a thinner one lies on a thicker one.
        above = len(views) - 1 - place
        x = axis.places(front)
        # Beyond its last trial more memory buys nothing: the line goes on to the study's budget.
        end = max(axis.place(min(view.budget, axis.high)), x[-1])
        y = [trial.quality or 0.0 for trial in front]
        name = html.escape(view.name)
        figure.add_trace(
            theme.step([*x, end], [*y, y[-1]], color, legendgroup=name, line_width=2 + 1.5 * above)
        )
        figure.add_scatter(
            x=x,
            y=y,
            name=name,
            legendgroup=name,
            mode="markers",
            customdata=[trial.number for trial in front],
            marker={
                "color": color,
                "symbol": _SYMBOLS[place % len(_SYMBOLS)],
                "size": 9 + 2.5 * above,
            },
            hoverinfo="text",
            hovertext=[_hover(name, trial) for trial in front],
        )
    return figure


def _hover(name: str, trial: TrialView) -> str:
    return f"<b>{name}</b><br>" + theme.full_hover(trial)
