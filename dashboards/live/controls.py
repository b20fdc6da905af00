"""What a page is asked with: the budget and the filters."""

from collections.abc import Mapping
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from dashboards.live.choice import MIB, Choice, numeric
from dashboards.queries import StudyView
from study.progress import short

_OUTCOMES = {
    "complete": "complete",
    "infeasible": "over budget",
    "pruned": "pruned",
    "diverged": "diverged",
    "failed": "failed",
    "running": "running",
}


def slider(whole: StudyView, choice: Choice) -> Component:
    """From the least peak of a complete trial up to the study's budget, in MiB."""
    most = whole.budget // MIB
    least = min((trial.memory or 0 for trial in whole.complete), default=0) // MIB
    return html.Label(
        [
            html.Span("Memory that you have"),
            dcc.Input(
                id="budget",
                type="range",
                min=min(least, most - 1),
                max=most,
                step=max(1, (most - least) // 400),
                value=most if choice.budget is None else choice.budget,
            ),
        ],
        className="slider",
    )


def filters(whole: StudyView, choice: Choice) -> Component:
    """Which trials are shown: by outcome, by loss and by every open parameter."""
    outcomes = list(_OUTCOMES)
    groups = [
        _checks("outcomes", "Outcome", _OUTCOMES, list(choice.outcomes or outcomes)),
    ]
    losses = sorted({trial.loss for trial in whole.trials if trial.loss})
    chosen = list(choice.losses or losses)
    groups.append(_checks("losses", "Loss", {loss: loss for loss in losses}, chosen))
    for name in whole.open:
        space = whole.space.get(name, ())
        if name == "loss":
            continue
        if numeric(space):
            low, high = choice.spans.get(name, (None, None))
            ends = {"low": (low, min(space)), "high": (high, max(space))} if space else {}
            groups.append(
                html.Fieldset(
                    [
                        html.Legend(name),
                        *(
                            html.Label(
                                [
                                    html.Span({"low": "from", "high": "to"}[end]),
                                    dcc.Input(
                                        id={"type": end, "name": name},
                                        type="number",
                                        step="any",
                                        value=value,
                                        placeholder=short(known),
                                        debounce=True,
                                    ),
                                ]
                            )
                            for end, (value, known) in ends.items()
                        ),
                    ]
                )
            )
        else:
            options = {str(word): str(word) for word in space}
            chosen = list(choice.words.get(name, tuple(options)))
            groups.append(_checks({"type": "words", "name": name}, name, options, chosen))
    return html.Details(
        [html.Summary("Filter"), html.Div(groups, className="filters")],
        open=choice.filters != Choice(),
    )


def _checks(id_: Any, name: str, options: Mapping[str, str], chosen: list[str]) -> Component:
    shown = [{"label": label, "value": value} for value, label in options.items()]
    return html.Fieldset(
        [html.Legend(name), dcc.Checklist(shown, chosen, id=id_, className="checks")],
        hidden=not options,
    )
