"""Learning curves: the quality of trials after each of their epochs."""

import math
from collections.abc import Collection, Sequence

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import value_range
from dashboards.lines import Places, draw_lines, label_ends, thinned
from dashboards.queries import WORDS, StudyView, TrialView

_HEIGHT, _TOP, _BOTTOM = 440, 52, 52


def curves_figure(view: StudyView, chosen: Collection[int] | None = None) -> go.Figure:
    """Curves of the chosen trials, by loss, before those of others, grey; a hundred of each.

    Args:
        view: The study, read with curves.
        chosen: Numbers of trials (default: those on the front).
    """
    if chosen is None:
        chosen = {trial.number for trial in view.front}
    curves = [trial for trial in view.trials if trial.curve]
    others = thinned([trial for trial in curves if trial.number not in chosen])
    picked = thinned([trial for trial in curves if trial.number in chosen])
    last = max((len(trial.curve) for trial in others + picked), default=1)
    ends = value_range(
        [value for trial in others + picked for value in trial.curve if math.isfinite(value)]
    )
    figure = theme.figure(
        _HEIGHT,
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
    draw_lines(figure, others, picked, _path, "after epoch %{x}: NDCG@10 %{y:.4f}")
    _mark_ends(figure, others + picked)
    labels = [(*end, f" {trial.number}") for trial in picked if (end := _end(trial)) is not None]
    label_ends(figure, labels, ends, _HEIGHT - _TOP - _BOTTOM, textposition="middle right")
    return figure


def with_lines(view: StudyView) -> list[TrialView]:
    """Trials whose curves are enough for the figure: the front, and others that have trained."""
    front = {trial.number for trial in view.front}
    others = [
        trial
        for trial in view.trials
        if trial.number not in front and trial.group not in ("infeasible", "waiting")
    ]
    return thinned(view.front) + thinned(others)


def _path(trial: TrialView) -> Places:
    return [
        (epoch, value if math.isfinite(value) else None, "")
        for epoch, value in enumerate(trial.curve, 1)
    ]


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
