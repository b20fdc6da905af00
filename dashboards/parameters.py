"""One figure per parameter that the search chose: against quality, and against peak memory."""

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import memory_axis, number_axis, value_range
from dashboards.queries import WORDS, StudyView, TrialView


def parameter_figure(view: StudyView, name: str) -> go.Figure:
    """Trials by their value of a parameter, with their quality above and their memory below."""
    trials = [trial for trial in view.measured if name in trial.params]
    memory = memory_axis(trials, view.budget)
    values = [trial.params[name] for trial in trials]
    numeric = all(isinstance(value, int | float) for value in values)
    complete = any(trial.quality is not None for trial in trials)
    figure = theme.figure(
        460 if complete else 280,
        margin={"l": 58, "r": 8},
        xaxis=theme.axis(
            title={"text": html.escape(name)},
            anchor="y2",
            **(number_axis(values) if numeric else _category_axis(view.space[name])),
        ),
        yaxis=theme.axis(
            title={"text": "Validation NDCG@10"},
            domain=[0.54, 1],
            range=value_range(view.qualities),
            nticks=6,
            visible=complete,
        ),
        yaxis2=theme.axis(**memory.layout(), domain=[0, 0.46 if complete else 1], nticks=6),
    )
    value = f"{html.escape(name)} %{{x{':.3~g' if numeric else ''}}}"

    def draw(trials: Sequence[TrialView], y: Sequence[Any], text: str, to: str) -> None:
        if trials:
            x = [trial.params[name] for trial in trials]
            x = x if numeric else [_category(choice) for choice in x]
            hover = theme.template(trials[0].group, value, text)
            properties = {"hovertemplate": hover, "yaxis": to}
            figure.add_trace(
                theme.points(trials[0].group, trials, x, y, upwards=to == "y2", **properties)
            )

    for group in reversed(WORDS):  # the front on top
        here = [trial for trial in trials if trial.group == group]
        good = [trial for trial in here if trial.quality is not None]
        draw(good, [trial.quality for trial in good], "NDCG@10 %{y:.4f}", "y")
        for bound in ("", "at least "):
            known = [trial for trial in here if trial.at_least == bool(bound)]
            peak = f"peak memory {bound}%{{y:.4~g}} {memory.unit_name}"
            draw(known, memory.places(known), peak, "y2")
    return figure


def _category_axis(choices: Sequence[Any]) -> dict[str, Any]:
    names = [_category(value) for value in choices]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names,
        "range": [-0.5, len(names) - 0.5],
    }


def _category(value: Any) -> str:
    return html.escape(str(value))
