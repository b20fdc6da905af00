"""The time of trials, where a study searches for it: against quality, and as a colour."""

import math

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dashboards import theme
from dashboards.axes import time_axis, value_range
from dashboards.queries import Group, StudyView
from study.front import pareto_front


def duration_figure(view: StudyView) -> go.Figure:
    """Complete trials by what they took; the line is the best quality within a time limit."""
    seconds = [trial.seconds for trial in view.timed if trial.seconds is not None]
    figure = theme.figure(
        320,
        xaxis=theme.axis(**time_axis(seconds)),
        yaxis=theme.axis(
            title={"text": "Validation NDCG@10"}, range=value_range(view.qualities), nticks=6
        ),
    )
    points = list(zip(view.qualities, seconds, strict=True))
    best = [points[index] for index in pareto_front(points)]
    color = theme.MARKS["front"].color
    # Beyond the last trial more time buys nothing.
    ends = [(best[-1][0], max(seconds))]
    figure.add_trace(
        theme.step([x for _, x in best + ends], [quality for quality, _ in best + ends], color)
    )
    groups: tuple[Group, ...] = ("dominated", "front")
    for group in groups:
        trials = [trial for trial in view.timed if trial.group == group]
        figure.add_trace(
            theme.points(
                group,
                trials,
                [trial.seconds for trial in trials],
                [trial.quality for trial in trials],
                **theme.hovers(trials),
            )
        )
    return figure


def color_by_time(figure: go.Figure, view: StudyView, y: float) -> None:
    """Colours the trials of the front, already drawn, by their seconds, and adds the scale.

    Args:
        figure: Where they are drawn.
        view: The study.
        y: Where the scale stands, as a share of the plot's height.
    """
    seconds = [trial.seconds or 0.0 for trial in view.front]
    ends = min(seconds), max(seconds)
    scale = math.log10 if 0 < 10 * ends[0] < ends[1] else float
    low, high = scale(ends[0]), scale(ends[1])
    shares = [(scale(each) - low) / ((high - low) or 1.0) for each in seconds]
    figure.update_traces(
        marker={
            "color": sample_colorscale(theme.SHADES, shares),
            "opacity": 1,
            "line": {"width": 1.5, "color": theme.MARKS["front"].color},
        },
        selector={"name": "on the front"},
    )
    # Of a point that is not there: the legend could not show a mark of many colours.
    figure.add_scatter(
        x=[None],
        y=[None],
        showlegend=False,
        marker={
            "color": [low],
            "cmin": low,
            "cmax": high,
            "colorscale": theme.SHADES,
            "colorbar": theme.color_scale([f"{end:.3g} s" for end in ends], (low, high), y),
        },
    )
