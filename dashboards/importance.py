"""What mattered: by how much each open setting decides quality, and peak memory."""

import html
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

from dashboards import theme
from dashboards.queries import StudyView, TrialView

_LEAST_TRIALS = 10
"""Complete trials below which importances are chance."""

_BEST, _LEAST_BEST = 0.25, 5
"""The best trials are this share of all, and at least so many."""

_BINS = 6
"""Numbers of more values than this are told apart by so many parts of about as many trials."""


def importances(view: StudyView, of: Literal["quality", "memory"] = "quality") -> dict[str, float]:
    """Shares, which add up to 1, of the open settings in what the best complete trials have.

    PED-ANOVA (arXiv:2304.10255, of conditional settings 2601.20800): how far the values of a
    setting among the best quarter are from those among all. It compares histograms, less what
    any quarter would differ by. Optuna's kernel densities of the best tenth take chance for
    importance in studies of a few dozen trials (docs/log.md).

    Args:
        view: The study.
        of: Quality, to be high, or peak memory, to be low.

    Returns:
        Setting -> share, the largest first; nothing where trials are too few or too much alike, or
        fewer than two settings are open.
    """
    trials = view.complete
    if len(trials) < _LEAST_TRIALS or len(view.open) < 2:
        return {}
    costs = np.array([_cost(trial, of) for trial in trials])
    last = max(math.ceil(_BEST * len(trials)), _LEAST_BEST) - 1
    best = costs <= np.partition(costs, last)[last]
    found = {name: _divergence(name, trials, best) for name in view.open}
    total = sum(found.values())
    if total == 0:
        return {}
    shares = ((name, value / total) for name, value in found.items())
    return dict(sorted(shares, key=lambda share: -share[1]))


def _cost(trial: TrialView, of: Literal["quality", "memory"]) -> float:
    if of == "quality":
        return -(trial.quality or 0.0)
    return float(trial.memory or 0)


def _divergence(name: str, trials: Sequence[TrialView], best: Any) -> float:
    """The Pearson divergence of a setting's values among the best from those among all.

    Of the trials that have the setting; weighted by how many these are.
    """
    having = np.array([name in trial.params for trial in trials])
    num_all, num_best = having.sum(), (having & best).sum()
    if num_all < 2 or not num_best:
        return 0.0
    parts = _parts([trial.params[name] for trial in trials if name in trial.params])
    of_all = np.bincount(parts) / num_all
    of_best = np.bincount(parts[best[having]], minlength=len(of_all)) / num_best
    divergence = ((of_best - of_all) ** 2 / of_all).sum()
    chance = (len(of_all) - 1) / num_best * (num_all - num_best) / (num_all - 1)
    weight = having[best].mean() ** 2 / having.mean()
    return max(0.0, float(weight * (divergence - chance)))


def _parts(values: Sequence[Any]) -> Any:
    """Where each value stands among the parts of a histogram, none of which is empty."""
    if not all(isinstance(value, int | float) for value in values):
        values = [str(value) for value in values]
    distinct, places = np.unique(values, return_inverse=True)
    if len(distinct) > _BINS and distinct.dtype.kind != "U":
        edges = np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])
        places = np.unique(np.searchsorted(edges, values), return_inverse=True)[1]
    return places


def why_none(view: StudyView) -> str:
    """What to say where there are no importances."""
    if len(view.open) < 2:
        return "Fewer than two settings are open: there is nothing to weigh against each other."
    if len(view.complete) < _LEAST_TRIALS:
        return (
            f"What mattered can be said from {_LEAST_TRIALS} trials on that trained to their end; "
            f"there are {len(view.complete)}."
        )
    return "No setting tells the best trials from the others."


def importance_figure(view: StudyView) -> go.Figure:
    """A pair of bars for each open setting: its share for quality and for peak memory."""
    quality, memory = importances(view, "quality"), importances(view, "memory")
    names = list(quality or memory)
    figure = theme.figure(
        56 + 44 * len(names),
        margin={"t": 40, "b": 16, "r": 48},
        bargap=0.3,
        showlegend=True,
        legend={"y": 1},
        xaxis=theme.axis(visible=False, range=[0, max([*quality.values(), *memory.values()])]),
        yaxis=theme.axis(
            range=[len(names) - 0.5, -0.5], showgrid=False, fixedrange=True, ticklabelstandoff=6
        ),
    )
    for title, shares, color in (
        ("for quality", quality, theme.MARKS["front"].color),
        ("for peak memory", memory, theme.NEUTRAL),
    ):
        if shares:
            figure.add_bar(
                orientation="h",
                name=title,
                x=[shares[name] for name in names],
                y=[html.escape(name) for name in names],
                text=[f"{shares[name]:.0%}" for name in names],
                textposition="outside",
                cliponaxis=False,
                marker={"color": color},
                hoverinfo="skip",
            )
    return figure
