"""Trials as lines, some bold and by loss, before others in grey; and words at their ends."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboards import theme
from dashboards.queries import WORDS, TrialView

Places = Sequence[tuple[float, float | None, str]]
"""Where the line of a trial goes, with a gap at None, and what is said there."""

_MOST = 100
_LETTERS = 14
"""Pixels from one line of small text to the next."""


def thinned(trials: Sequence[TrialView]) -> list[TrialView]:
    """A hundred trials at most, evenly over the study."""
    step = max(1.0, len(trials) / _MOST)
    return [trials[int(step * index)] for index in range(min(len(trials), _MOST))]


def draw_lines(
    figure: go.Figure,
    grey: Sequence[TrialView],
    bold: Sequence[TrialView],
    path: Callable[[TrialView], Places],
    hover: str,
) -> None:
    """Draws the lines; the legend names the losses, if there are several.

    Args:
        figure: Where to draw.
        grey: Trials in the background.
        bold: Trials before these.
        path: Of a trial.
        hover: Template of what is said at a point, after the trial's number.
    """
    _draw(figure, grey, path, hover, theme.NEUTRAL, width=1, opacity=0.45)
    losses = sorted({trial.loss for trial in bold})
    for loss in losses:
        several = len(losses) > 1
        blue = theme.MARKS["front"].color
        color = theme.LOSS_COLORS.get(loss, theme.NEUTRAL) if several else blue
        first = len(figure.data)
        trials = [trial for trial in bold if trial.loss == loss]
        _draw(figure, trials, path, hover, color, width=2, opacity=1)
        figure.data[first].update(name=html.escape(loss), showlegend=several)


def _draw(
    figure: go.Figure,
    trials: Sequence[TrialView],
    path: Callable[[TrialView], Places],
    hover: str,
    color: str,
    width: int,
    opacity: float,
) -> None:
    """The lines of each group as one with gaps: hundreds are drawn at once."""
    for group in reversed(WORDS):
        x: list[float | None] = []
        y: list[float | None] = []
        texts: list[str] = []
        numbers: list[int] = []
        for trial in trials:
            if trial.group == group:
                for place, height, text in path(trial):
                    x.append(place)
                    y.append(height)
                    texts.append(text)
                x.append(None)
                y.append(None)
                texts.append("")
                numbers += [trial.number] * (len(x) - len(numbers))
        if x:
            figure.add_trace(
                theme.scatter(
                    x=x,
                    y=y,
                    text=texts if any(texts) else None,
                    customdata=numbers,
                    mode="lines",
                    line={"width": width, "color": color},
                    opacity=opacity,
                    showlegend=False,
                    hovertemplate=theme.template(group, hover),
                )
            )


def label_ends(
    figure: go.Figure,
    labels: Sequence[tuple[float, float, str]],
    ends: Sequence[float],
    pixels: float,
    **properties: Any,
) -> None:
    """Words at the ends of lines, as near to these as can be, none over another.

    Args:
        figure: Where the lines are drawn.
        labels: Where each line ends, and what to say there.
        ends: Of the vertical axis; what has no room between them is left out.
        pixels: Between these.
        **properties: Of the trace.
    """
    apart = _LETTERS * (ends[1] - ends[0]) / pixels
    aside = 0.1 * max((x for x, _, _ in labels), default=0.0)
    columns: list[list[tuple[float, float, str]]] = []
    for label in sorted(labels):
        if not columns or label[0] - columns[-1][-1][0] > aside:
            columns.append([])
        columns[-1].append(label)
    placed = []
    for column in columns:
        column.sort(key=lambda label: label[1])
        heights = _spread([y for _, y, _ in column], apart)
        for (x, _, text), y in zip(column, heights, strict=True):
            if ends[0] <= y <= ends[1]:
                placed.append((x, y, text))
    if placed:
        xs, ys, texts = zip(*placed, strict=True)
        figure.add_scatter(
            x=xs,
            y=ys,
            text=texts,
            mode="text",
            textfont={"size": 11},
            cliponaxis=False,
            hoverinfo="skip",
            showlegend=False,
            **properties,
        )


def _spread(values: Sequence[float], apart: float) -> list[float]:
    """The nearest values that are so far apart, of rising ones: an isotonic regression."""
    blocks: list[tuple[float, int]] = []
    for index, value in enumerate(values):
        mean, count = value - index * apart, 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    means = [mean for mean, count in blocks for _ in range(count)]
    return [mean + index * apart for index, mean in enumerate(means)]
