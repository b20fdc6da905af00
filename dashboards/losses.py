"""Loss against loss: the best quality that each reaches within a memory limit."""

import html

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import MemoryAxis, memory_axis, value_range
from dashboards.lines import label_ends
from dashboards.queries import StudyView, TrialView
from dashboards.value import memory_front

_HEIGHT, _TOP, _BOTTOM = 420, 72, 56


def losses_of(view: StudyView) -> dict[str, list[TrialView]]:
    """The trials of each loss that the study has tried, by number; without those of none known."""
    losses: dict[str, list[TrialView]] = {}
    for trial in view.trials:
        if trial.loss:
            losses.setdefault(trial.loss, []).append(trial)
    return losses


def losses_figure(view: StudyView) -> go.Figure:
    """A step line for each loss, its own front; the legend says how many trials it has had."""
    losses = {
        loss: (trials, [trial for trial in trials if trial.quality is not None])
        for loss, trials in losses_of(view).items()
    }
    fronts = {loss: memory_front(complete) for loss, (_, complete) in losses.items() if complete}
    shown = [trial for front in fronts.values() for trial in front]
    axis = memory_axis(shown, view.budget)
    ends = value_range([trial.quality for trial in shown if trial.quality is not None])
    figure = theme.figure(
        _HEIGHT,
        margin={"t": _TOP, "b": _BOTTOM, "r": 48},
        showlegend=True,
        legend={"y": 1, "traceorder": "normal"},
        xaxis=theme.axis(**axis.layout()),
        yaxis=theme.axis(title={"text": "Validation NDCG@10"}, range=ends, nticks=6),
    )
    # The best first; what has no quality last.
    best = {loss: front[-1].quality or 0.0 for loss, front in fronts.items()}
    for loss in sorted(losses, key=lambda loss: -best.get(loss, -1.0)):
        trials, complete = losses[loss]
        name = f"{html.escape(loss)}: {len(complete)} of {len(trials)} trials complete"
        _draw(figure, fronts.get(loss, []), axis, view.budget, loss, name)
    labels = [
        (_end(front, axis, view.budget), best[loss], f" {html.escape(loss)}")
        for loss, front in fronts.items()
    ]
    label_ends(figure, labels, ends, _HEIGHT - _TOP - _BOTTOM, textposition="middle right")
    return figure


def _end(front: list[TrialView], axis: MemoryAxis, budget: int) -> float:
    """Where its line ends: at the budget, as more memory than its last trial's buys nothing."""
    return max(axis.place(min(budget, axis.high)), *axis.places(front[-1:]))


def _draw(
    figure: go.Figure,
    front: list[TrialView],
    axis: MemoryAxis,
    budget: int,
    loss: str,
    name: str,
) -> None:
    """The line of a loss with its trials on it; of one without a front the legend alone."""
    x: list[float | None] = [*axis.places(front)] or [None]
    y = [trial.quality for trial in front] or [None]
    if front:
        x.append(_end(front, axis, budget))
        y.append(y[-1])
    hovertext = [theme.full_hover(trial) for trial in front]
    figure.add_trace(
        theme.step(
            x,
            y,
            theme.LOSS_COLORS.get(loss, theme.NEUTRAL),
            mode="lines+markers",
            marker={"size": [8] * len(front) + [0], "opacity": 1, "line": {"width": 0}},
            customdata=[trial.number for trial in front],
            name=name,
            showlegend=True,
            hoverinfo="text",
            hovertext=[*hovertext, ""],
        )
    )
