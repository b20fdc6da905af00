"""Parallel coordinates: what trials have in common, setting by setting."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from dashboards import theme
from dashboards.lines import Places, draw_lines, thinned
from dashboards.queries import StudyView, TrialView
from study.budget import format_bytes
from study.progress import short

_ROW, _TOP, _BOTTOM = 56, 44, 20

_NONE = -0.2
"""Where a trial stands that does not have a setting; values are from 0 to 1."""


@dataclass(frozen=True)
class _Axis:
    """An axis, which lies, so that its words have room on a phone.

    Attributes:
        title: What is on it.
        text: A trial's value for people.
        place: Where a trial stands, from 0 to 1.
        ticks: Places and what is there.
    """

    title: str
    text: Callable[[TrialView], str]
    place: Callable[[TrialView], float]
    ticks: Sequence[tuple[float, str]]


def parallel_figure(view: StudyView) -> go.Figure:
    """A line for each complete trial, from its settings down to its memory and its quality.

    Those on the front are bold, and coloured by loss.
    """
    others, front = thinned(view.of("dominated")), thinned(view.front)
    trials = others + front
    axes = [_setting(view, name, trials) for name in view.open]
    axes.append(_numbers("peak memory", trials, lambda trial: trial.memory, format_bytes))
    axes.append(_numbers("NDCG@10", trials, lambda trial: trial.quality, "{:.4f}".format))
    top = _TOP if len({trial.loss for trial in front}) > 1 else _BOTTOM
    ticks = [(place, row, text) for row, axis in enumerate(axes) for place, text in axis.ticks]
    left = min(place for place, _, _ in ticks)
    figure = theme.figure(
        _ROW * len(axes) + top + _BOTTOM,
        margin={"t": top, "b": _BOTTOM, "r": 8},
        showlegend=True,
        legend={"y": 1},
        xaxis=theme.axis(visible=False, range=[left - 0.1, 1.1], fixedrange=True),
        yaxis=theme.axis(
            range=[len(axes) - 0.4, -0.4],
            tickvals=list(range(len(axes))),
            ticktext=[html.escape(axis.title) for axis in axes],
            fixedrange=True,
        ),
    )

    def path(trial: TrialView) -> Places:
        return [
            (round(axis.place(trial), 4), row, html.escape(f"{axis.title} {axis.text(trial)}"))
            for row, axis in enumerate(axes)
        ]

    draw_lines(figure, others, front, path, "%{text}")
    figure.add_scatter(
        x=[place for place, _, _ in ticks],
        y=[row + 0.1 for _, row, _ in ticks],
        text=[html.escape(text) for _, _, text in ticks],
        mode="text",
        textposition="bottom center",
        # Of the page's colour, so that it can be read on lines.
        textfont={"size": 11, "shadow": "auto"},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )
    return figure


def _setting(view: StudyView, name: str, trials: Sequence[TrialView]) -> _Axis:
    """An axis of numbers, or of words; at its left end are trials without the setting."""
    values = [trial.params[name] for trial in trials if name in trial.params]
    if all(isinstance(value, int | float) for value in values):
        axis = _numbers(name, trials, lambda trial: trial.params.get(name), short)
    else:
        words = dict.fromkeys(map(str, [*view.space.get(name, ()), *values]))
        shares = {word: _share(index, 0, len(words) - 1) for index, word in enumerate(words)}
        axis = _Axis(
            name,
            lambda trial: str(trial.params.get(name, "none")),
            lambda trial: shares[str(trial.params[name])] if name in trial.params else _NONE,
            [(share, word) for word, share in shares.items()],
        )
    if len(values) == len(trials):
        return axis
    return _Axis(axis.title, axis.text, axis.place, [(_NONE, "none"), *axis.ticks])


def _numbers(
    title: str,
    trials: Sequence[TrialView],
    value_of: Callable[[TrialView], Any],
    text_of: Callable[[Any], str],
) -> _Axis:
    """An axis from the least to the most, logarithmic where these are a factor 10 apart."""
    values = sorted({value for value in map(value_of, trials) if value is not None})
    low, high = (values[0], values[-1]) if values else (0, 0)
    log = 0 < low * 10 < high
    middle = math.sqrt(low * high) if log else (low + high) / 2
    middle = round(middle) if all(isinstance(value, int) for value in values) else middle
    ticks = values if len(values) <= 4 else [low, middle, high]

    def place(value: Any) -> float:
        if value is None:
            return _NONE
        scale = math.log if log else float
        return _share(scale(value), scale(low), scale(high))

    return _Axis(
        title,
        lambda trial: "none" if value_of(trial) is None else text_of(value_of(trial)),
        lambda trial: place(value_of(trial)),
        [(place(tick), text_of(tick)) for tick in ticks],
    )


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if low < high else 0.5
