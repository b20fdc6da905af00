"""Learning curves: the quality of trials after each of their epochs."""

import html
import math
from collections.abc import Collection, Sequence

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import value_range
from dashboards.queries import WORDS, StudyView, TrialView

_HEIGHT, _TOP, _BOTTOM = 440, 52, 52
_MOST = 100
"""Curves that are drawn of the chosen trials, and of the others."""


def curves_figure(view: StudyView, chosen: Collection[int] | None = None) -> go.Figure:
    """Curves of the chosen trials, by loss, before some of all others, grey.

    Args:
        view: The study, read with curves.
        chosen: Numbers of trials (default: those on the front).
    """
    if chosen is None:
        chosen = {trial.number for trial in view.front}
    curves = [trial for trial in view.trials if trial.curve]
    others = _thinned([trial for trial in curves if trial.number not in chosen])
    picked = _thinned([trial for trial in curves if trial.number in chosen])
    last = max((len(trial.curve) for trial in others + picked), default=1)
    ends = value_range(
        [value for trial in others + picked for value in trial.curve if math.isfinite(value)]
    )
    figure = theme.figure(_HEIGHT)
    figure.update_layout(
        margin={"t": _TOP, "b": _BOTTOM, "r": 24},
        showlegend=True,
        legend={"y": 1},
        xaxis=theme.axis(
            title={"text": "Epoch"},
            range=[1 - 0.03 * last, 1.03 * last],
            dtick=1 if last <= 10 else None,
        ),
        yaxis=theme.axis(title={"text": "Validation NDCG@10"}, range=ends, nticks=6),
    )
    _draw(figure, others, theme.NEUTRAL, width=1, opacity=0.45)
    losses = sorted({trial.loss for trial in picked})
    for loss in losses:
        several = len(losses) > 1
        color = theme.LOSS_COLORS.get(loss) if several else theme.MARKS["front"].color
        first = len(figure.data)
        bold = [trial for trial in picked if trial.loss == loss]
        _draw(figure, bold, color or theme.NEUTRAL, width=2, opacity=1)
        figure.data[first].update(name=html.escape(loss), showlegend=several)
    _mark_ends(figure, others + picked)
    labels = [(*end, f" {trial.number}") for trial in picked if (end := _end(trial)) is not None]
    theme.label_ends(figure, labels, ends, _HEIGHT - _TOP - _BOTTOM, textposition="middle right")
    return figure


def _thinned(trials: Sequence[TrialView]) -> list[TrialView]:
    """At most so many as are drawn, evenly over the study."""
    step = max(1.0, len(trials) / _MOST)
    return [trials[int(step * index)] for index in range(min(len(trials), _MOST))]


def _draw(
    figure: go.Figure, trials: Sequence[TrialView], color: str, width: int, opacity: float
) -> None:
    """The curves of each group as one line with gaps."""
    for group in reversed(WORDS):
        places: list[tuple[int | None, float | None, int]] = []
        for trial in trials:
            if trial.group == group:
                for epoch, value in enumerate(trial.curve, 1):
                    places.append((epoch, value if math.isfinite(value) else None, trial.number))
                places.append((None, None, trial.number))
        if places:
            x, y, numbers = zip(*places, strict=True)
            figure.add_scatter(
                x=x,
                y=y,
                customdata=numbers,
                mode="lines",
                line={"width": width, "color": color},
                opacity=opacity,
                showlegend=False,
                hovertemplate=theme.template(group, "after epoch %{x}: NDCG@10 %{y:.4f}"),
            )


def _mark_ends(figure: go.Figure, trials: Sequence[TrialView]) -> None:
    """Marks where a trial ended before its time; of one epoch the line would not be seen."""
    for group in WORDS:
        ended = [
            (trial, end)
            for trial in trials
            if trial.group == group
            and (trial.quality is None or len(trial.curve) == 1)
            and (end := _end(trial)) is not None
        ]
        if ended:
            shown = [trial for trial, _ in ended]
            epochs, values = zip(*(end for _, end in ended), strict=True)
            figure.add_trace(theme.points(group, shown, epochs, values, **theme.hovers(shown)))


def _end(trial: TrialView) -> tuple[int, float] | None:
    """The last epoch of which something is known, and the quality after it."""
    known = [each for each in enumerate(trial.curve, 1) if math.isfinite(each[1])]
    return known[-1] if known else None
