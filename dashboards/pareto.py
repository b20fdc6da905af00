"""Quality against peak memory: the figure that the study is about."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import MemoryAxis, memory_axis, value_range
from dashboards.duration import color_by_time
from dashboards.limits import draw_budget, draw_cards
from dashboards.queries import WORDS, Group, StudyView, TrialView
from study.front import pareto_front

_PANE, _ROW, _GAP = 360, 26, 22
"""Pixels: the plot of quality, a row of the strip below it, and what is between them."""

_TOP, _BOTTOM = 68, 56
_LOSS_ROW = 19
"""Pixels of a row of the legend of losses, of three on a phone."""
_SCALE = 34
"""Pixels above the legend, where colours say what trials took."""

_OTHERS: tuple[Group, ...] = ("dominated", "infeasible")
"""Trials with a quality that are not on the front; over budget those beyond what is looked at."""

_NUMBER_SPACING = 0.06
"""Share of the axis between two trials of the front whose numbers do not overlap on a phone."""


def pareto_figure(view: StudyView, log: bool | None = None) -> go.Figure:
    """The front and every trial whose memory is known.

    Trials without a quality stand in a strip below, a row per outcome, at the memory that they
    took, were predicted to take, or took at least. Where a study has several losses, colours tell
    them apart, unless they say how long trials took.

    Args:
        view: The study.
        log: Whether the axis of memory is logarithmic (default: as `memory_axis` has it).
    """
    axis = memory_axis(view.measured, view.budget, log)
    below = [trial for trial in view.measured if trial.quality is None]
    rows = [group for group in WORDS if any(trial.group == group for trial in below)]
    pane = _PANE if view.complete else 0
    gap = _GAP if view.complete and rows else 0
    plot = pane + gap + _ROW * len(rows) or _PANE
    timed = view.front and {"memory", "time"} <= set(view.objectives)
    top = _TOP + (_SCALE if timed else 0)
    losses = [] if timed else drawn_losses(view)
    bottom = _BOTTOM + (_LOSS_ROW * -(-len(losses) // 3) + 8 if losses else 0)
    figure = theme.figure(
        plot + top + bottom,
        margin={"t": top, "b": bottom},
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
        _draw_front(figure, view, axis, losses)
    if losses:
        _explain_losses(figure, view, losses, plot)
    if timed:
        color_by_time(figure, view, 1 + _TOP / plot)
    _draw_others(figure, view, axis, losses)
    for row, group in enumerate(rows):
        trials = [trial for trial in below if trial.group == group]
        figure.add_trace(
            theme.points(
                group,
                trials,
                axis.places(trials),
                [row] * len(trials),
                _colors(trials, losses),
                yaxis="y2",
                showlegend=False,
                **theme.hovers(trials),
            )
        )
    if rows:
        figure.layout.yaxis2 = theme.axis(
            domain=[0, _ROW * len(rows) / plot],
            range=[len(rows) - 0.5, -0.5],
            tickvals=list(range(len(rows))),
            ticktext=[WORDS[group] for group in rows],
            showgrid=False,
            fixedrange=True,
        )
    return figure


def _draw_others(
    figure: go.Figure, view: StudyView, axis: MemoryAxis, losses: Sequence[str]
) -> None:
    for group in _OTHERS:
        trials = [trial for trial in view.of(group) if trial.quality is not None]
        if trials:
            figure.add_trace(
                theme.points(
                    group,
                    trials,
                    axis.places(trials),
                    [trial.quality for trial in trials],
                    _colors(trials, losses),
                    showlegend=not losses,
                    **_error_bars(trials),
                    **theme.hovers(trials),
                )
            )


def drawn_losses(view: StudyView) -> list[str]:
    """The losses of the trials that are drawn, in the order of their colours; none of only one."""
    found = {trial.loss for trial in view.measured}
    losses = [loss for loss in theme.LOSS_COLORS if loss in found]
    return losses if len(losses) > 1 else []


def _colors(trials: Sequence[TrialView], losses: Sequence[str]) -> list[str] | None:
    if not losses:
        return None
    return [theme.LOSS_COLORS.get(trial.loss, theme.NEUTRAL) for trial in trials]


def _explain_losses(figure: go.Figure, view: StudyView, losses: Sequence[str], plot: int) -> None:
    """Legends of traces without points: of the shapes, in no loss's colour, and of the losses."""
    nowhere: dict[str, Any] = {"x": [None], "y": [None], "mode": "markers"}
    for group in ("front", "dominated"):
        if view.of(group):
            mark = theme.MARKS[group]
            marker = {"symbol": mark.symbol, "size": mark.size, "color": theme.NEUTRAL}
            figure.add_scatter(name=WORDS[group], marker=marker, **nowhere)
    for loss in losses:
        marker = {"symbol": "square", "size": 11, "color": theme.LOSS_COLORS[loss]}
        figure.add_scatter(name=loss, marker=marker, legend="legend2", **nowhere)
    figure.update_layout(
        showlegend=True,
        legend={"traceorder": "normal", "itemclick": False, "itemdoubleclick": False},
        legend2={
            "orientation": "h",
            "x": 0,
            "y": -50 / plot,
            "yanchor": "top",
            "entrywidth": 32,
            "itemclick": False,
            "itemdoubleclick": False,
        },
    )


def _draw_front(
    figure: go.Figure, view: StudyView, axis: MemoryAxis, losses: Sequence[str]
) -> None:
    front = sorted(view.front, key=lambda trial: trial.memory or 0)
    x = axis.places(front)
    y = [trial.quality or 0.0 for trial in front]
    if "memory" in view.objectives:
        # Beyond its last trial more memory buys nothing: the line goes on to the budget.
        end = max(axis.place(min(view.budget, axis.high)), x[-1])
        best = pareto_front(list(zip(y, x, strict=True)))
        steps = [*(x[index] for index in best), end]
        color = theme.NEUTRAL if losses else theme.MARKS["front"].color
        if any(front[index].qualities for index in best):
            _draw_attainment(figure, [front[index] for index in best], steps)
        figure.add_trace(theme.step(steps, [*(y[index] for index in best), y[best[-1]]], color))
    figure.add_trace(
        theme.points(
            front[0].group,
            front,
            x,
            y,
            _colors(front, losses),
            showlegend=not losses,
            mode="markers+text",
            textfont={"size": 11},
            **_numbers(front, axis),
            **_error_bars(front),
            **theme.hovers(front),
        )
    )


def _draw_attainment(
    figure: go.Figure, front: Sequence[TrialView], steps: Sequence[float]
) -> None:
    """A band between the fronts of the worst and of the best training of every trial."""
    for worst in (True, False):
        reached = accumulate(
            (
                (min if worst else max)(trial.qualities or (trial.quality or 0.0,))
                for trial in front
            ),
            max,
        )
        line = list(reached)
        figure.add_trace(
            theme.step(
                steps,
                [*line, line[-1]],
                theme.NEUTRAL,
                line_width=0,
                fill=None if worst else "tonexty",
                fillcolor="rgba(138, 148, 160, 0.25)",
            )
        )


def _ends(trial: TrialView) -> tuple[float, float]:
    """Quality less and plus its standard deviation, and that of every training between them."""
    assert trial.quality is not None
    spread = trial.spread or 0.0
    all_of_it = trial.quality - spread, trial.quality + spread, *trial.qualities
    return min(all_of_it), max(all_of_it)


def _error_bars(trials: Sequence[TrialView]) -> dict[str, Any]:
    """One standard deviation to both sides, where there were several trainings."""
    if not any(trial.spread for trial in trials):
        return {}
    # Without caps, which a trial without several trainings would have, too.
    return {
        "error_y": {
            "array": [trial.spread or 0 for trial in trials],
            "thickness": 2,
            "width": 0,
            "color": theme.NEUTRAL,
        }
    }


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
