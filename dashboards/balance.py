"""The balance of negatives and batch size: quality over both, with lines of equal memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from dashboards import theme
from dashboards.axes import powers_of_two
from dashboards.queries import WORDS, StudyView, TrialView
from study.budget import format_bytes

_MOST_SLICES = 4
_LEAST_TRIALS = 8
"""Trials of a slice that a fit of four coefficients needs."""
_MOST_ERROR = 0.1
"""Share of the memory that a fit may be off by, for nine trials of ten, to be drawn."""
_CURVE = 60
"""Points of a line; one of which less than a tenth is within the range of trials is not drawn."""


@dataclass(frozen=True)
class Slice:
    """Trials of one sequence length, or of neighbouring ones, whose memory is known.

    Attributes:
        title: Which lengths; empty where there is one only.
        trials: Those with negatives.
        full: Those of the full softmax, which has no negatives.
    """

    title: str
    trials: tuple[TrialView, ...]
    full: tuple[TrialView, ...]


def slices(view: StudyView) -> list[Slice]:
    """The trials by sequence length.

    None unless the search chose negatives and batch size, and a trial has a quality.
    """
    if not view.complete or not {"negatives", "batch_size"} <= set(view.open):
        return []
    sampled = [trial for trial in view.measured if _value(trial, "negatives")]
    full = [trial for trial in view.measured if trial.loss == "cce"]
    lengths = sorted({_value(trial, "max_length") for trial in sampled})
    count = len(lengths) if len(lengths) <= _MOST_SLICES else 3
    cut = []
    for part in np.array_split(lengths, count) if lengths else ():
        low, high = int(part[0]), int(part[-1])
        title = f"max_length {low}" if low == high else f"max_length {low} to {high}"
        chosen, others = (
            tuple(trial for trial in trials if low <= _value(trial, "max_length") <= high)
            for trials in (sampled, full)
        )
        cut.append(Slice(title if len(lengths) > 1 else "", chosen, others))
    return cut


def _value(trial: TrialView, name: str) -> int:
    """A setting of a trial; 0 where it has none."""
    return int(trial.params.get(name, trial.config.get(name, 0)))


def memory_fit(part: Slice) -> tuple[float, ...] | None:
    """Coefficients of a trial's peak in bytes: of 1, batch size, negatives, and their product.

    By least squares of the relative error, none below zero. None where there are too few trials
    or the fit is off by too much, as where another setting decides.
    """
    trials = [trial for trial in part.trials if not trial.at_least]
    if len(trials) < _LEAST_TRIALS:
        return None
    batch, negatives = (
        np.array([_value(trial, name) for trial in trials], dtype=float)
        for name in ("batch_size", "negatives")
    )
    memory = np.array([trial.memory or 1 for trial in trials], dtype=float)
    terms = np.stack([np.ones_like(batch), batch, negatives, batch * negatives], axis=1)
    scale = terms.max(axis=0)
    coefficients = _positive_fit(terms / scale / memory[:, None]) / scale
    errors = np.abs(terms @ coefficients / memory - 1)
    if np.quantile(errors, 0.9) > _MOST_ERROR or not coefficients[1:].any():
        return None
    return tuple(map(float, coefficients))


def _positive_fit(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of which none is below zero, with which the terms come closest to one.

    Those that are not zero are a fit of their terms alone: the best of all such fits. For four
    terms these are 15; `scipy.optimize`, which has a better way, takes a second to load.
    """
    ones = np.ones(len(terms))
    best, least = np.zeros(terms.shape[1]), float(len(terms))
    for chosen in product([False, True], repeat=terms.shape[1]):
        solved = np.zeros(terms.shape[1])
        solved[list(chosen)] = np.linalg.lstsq(terms[:, chosen], ones)[0]
        error = float(((terms @ solved - 1) ** 2).sum())
        if (solved >= 0).all() and error < least:
            best, least = solved, error
    return best


def levels(view: StudyView) -> list[int]:
    """Powers of two, in bytes, that cut the peaks of the trials into bands."""
    memories = [trial.memory or 1 for part in slices(view) for trial in part.trials]
    return powers_of_two(min(memories), max(memories))


def band_winners(view: StudyView, part: Slice) -> list[TrialView]:
    """The best trial of each band of memory between two levels."""
    edges = levels(view)
    best: dict[int, TrialView] = {}
    complete = [trial for trial in part.trials + part.full if trial.quality is not None]
    for trial in complete:
        band = sum(edge < (trial.memory or 0) for edge in edges)
        if band not in best or (trial.quality or 0) > (best[band].quality or 0):
            best[band] = trial
    return [best[band] for band in sorted(best)]


def balance_figure(view: StudyView, part: Slice) -> go.Figure:
    """One of the slices: trials in the colour of their quality, and lines of equal memory."""
    everything = slices(view)
    negatives = [_value(trial, "negatives") for each in everything for trial in each.trials]
    batches = [
        _value(trial, "batch_size") for each in everything for trial in each.trials + each.full
    ]
    has_full = any(each.full for each in everything)
    # Beyond the most negatives, as far as they are apart.
    right = max(negatives) * 4
    x_axis = _axis(negatives, right if has_full else max(negatives))
    if has_full:
        x_axis["tickvals"].append(right)
        x_axis["ticktext"].append("all")
    figure = theme.figure(
        400,
        margin={"t": 76, "l": 58, "r": 12},
        xaxis=theme.axis(title={"text": "Negatives"}, **x_axis),
        yaxis=theme.axis(title={"text": "Batch size"}, **_axis(batches, max(batches))),
    )
    _draw_lines(figure, view, part)
    winners = band_winners(view, part)
    _draw_trials(figure, view, [*part.trials, *part.full], right, winners)
    # One scale is for all of them.
    figure.data[-1].marker.showscale = part == everything[0]
    if part.title:
        figure.add_annotation(
            text=part.title,
            xref="paper",
            x=1,
            xanchor="right",
            yref="paper",
            y=1,
            yanchor="bottom",
            yshift=30,
            showarrow=False,
        )
    return figure


def _axis(values: Sequence[int], last: int) -> dict[str, Any]:
    low, high = min(values), max(values)
    ticks = powers_of_two(low, high) or sorted({low, high})
    margin = max(last / low, 2) ** 0.1
    return {
        "type": "log",
        "range": [math.log10(low / margin), math.log10(last * margin)],
        "tickvals": ticks,
        "ticktext": [str(tick) for tick in ticks],
    }


def _draw_lines(figure: go.Figure, view: StudyView, part: Slice) -> None:
    fit = memory_fit(part)
    if fit is None:
        return
    base, per_batch, per_negative, per_pair = fit
    columns = [_value(trial, "negatives") for trial in part.trials]
    rows = [_value(trial, "batch_size") for trial in part.trials]
    x = np.geomspace(min(columns), max(columns), _CURVE)
    for level in levels(view):
        with np.errstate(divide="ignore"):
            y = (level - base - per_negative * x) / (per_batch + per_pair * x)
        inside = (y >= min(rows)) & (y <= max(rows))
        if inside.sum() < _CURVE / 10:
            continue
        figure.add_scatter(
            x=x[inside].tolist(),
            y=y[inside].tolist(),
            mode="lines",
            line={"width": 1.2, "color": theme.NEUTRAL, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_annotation(
            text=format_bytes(level).replace(".0 ", " ").replace(".00 ", " "),
            x=math.log10(x[inside][0]),
            y=math.log10(y[inside][0]),
            xanchor="left",
            yanchor="bottom",
            showarrow=False,
            font_size=11,
        )


def _draw_trials(
    figure: go.Figure,
    view: StudyView,
    trials: Sequence[TrialView],
    right: int,
    winners: Sequence[TrialView],
) -> None:
    qualities = view.qualities
    # A quarter of the trials may be so bad that the others would all look the same.
    low, high = float(np.quantile(qualities, 0.25)), max(qualities)
    rest = [trial for trial in trials if trial.quality is None]
    figure.add_trace(
        theme.scatter(
            x=[_value(trial, "negatives") or right for trial in rest],
            y=[_value(trial, "batch_size") for trial in rest],
            mode="markers",
            customdata=[trial.number for trial in rest],
            marker={"size": 6, "symbol": "circle-open", "color": theme.NEUTRAL},
            showlegend=False,
            **_hovers(rest),
        )
    )
    # The best on top.
    shown = sorted(
        (trial for trial in trials if trial.quality is not None),
        key=lambda trial: trial.quality or 0.0,
    )
    best = {trial.number for trial in winners}
    figure.add_trace(
        theme.scatter(
            x=[_value(trial, "negatives") or right for trial in shown],
            y=[_value(trial, "batch_size") for trial in shown],
            mode="markers+text",
            customdata=[trial.number for trial in shown],
            text=[str(trial.number) if trial.number in best else "" for trial in shown],
            textposition="top center",
            textfont={"size": 11},
            cliponaxis=False,
            showlegend=False,
            marker={
                "size": [15 if trial.number in best else 10 for trial in shown],
                "color": [trial.quality for trial in shown],
                "cmin": low,
                "cmax": high,
                "opacity": 1,
                "colorscale": theme.SHADES,
                "line": {
                    "width": [3 if t.number in best else 1 for t in shown],
                    "color": theme.MARKS["front"].color,
                },
                "colorbar": theme.color_scale(
                    [f"{low:.4f} or less", f"{high:.4f}"], (low, high), 1.02
                ),
            },
            **_hovers(shown),
        )
    )


def _hovers(trials: Sequence[TrialView]) -> dict[str, Any]:
    texts = [
        f"<b>Trial {trial.number}</b>, {WORDS[trial.group]}<br>"
        + (f"NDCG@10 {trial.quality_text}<br>" if trial.quality is not None else "")
        + f"negatives {_value(trial, 'negatives') or 'all'}, "
        f"batch size {_value(trial, 'batch_size')}<br>peak memory {trial.memory_text}"
        for trial in trials
    ]
    return {"hoverinfo": "text", "hovertext": texts}
