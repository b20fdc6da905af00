"""The fronts of several studies: quality against peak memory, in one figure."""

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import memory_axis, value_range
from dashboards.queries import StudyView
from study.front import pareto_front

COLORS = ("#1f7ac4", "#d98200", "#2a9d7f", "#b0679f", "#cf4a2c", "#7f8ea0")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")


def compare_figure(views: Sequence[StudyView]) -> go.Figure:
    """A step line and its trials for each study, told apart by colour and by shape."""
    trials = [trial for view in views for trial in view.front]
    budget = max(view.budget for view in views)
    axis = memory_axis(trials, budget)
    figure = theme.figure(440)
    figure.update_layout(
        margin={"t": 48},
        showlegend=True,
        legend={"y": 1.02},
        xaxis=theme.axis(**axis.layout()),
        yaxis=theme.axis(
            title={"text": "Validation NDCG@10"},
            range=value_range([trial.quality or 0.0 for trial in trials]),
        ),
    )
    for index, view in enumerate(views):
        color = COLORS[index % len(COLORS)]
        places = axis.places(view.front)
        qualities = [trial.quality or 0.0 for trial in view.front]
        best = pareto_front(list(zip(qualities, places, strict=True)))
        line = [(places[each], qualities[each]) for each in best]
        if line:
            # Beyond its last trial more memory buys nothing: the line goes on to the budget.
            line.append((max(axis.place(min(view.budget, axis.high)), line[-1][0]), line[-1][1]))
        figure.add_trace(theme.step([x for x, _ in line], [y for _, y in line], color))
        figure.add_scatter(
            x=places,
            y=qualities,
            mode="markers",
            name=html.escape(view.name),
            marker={"color": color, "size": 9, "symbol": _SYMBOLS[index % len(_SYMBOLS)]},
            customdata=[trial.number for trial in view.front],
            hovertemplate=f"<b>{html.escape(view.name)}</b>, trial %{{customdata}}<br>"
            f"NDCG@10 %{{y:.4f}}<br>peak memory %{{x:.4~g}} {axis.unit_name}<extra></extra>",
        )
    return figure
