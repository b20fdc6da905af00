"""What a page says beside its figures."""

import json
import shlex
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html
from dash._utils import to_json
from dash.development.base_component import Component

from dashboards import theme, words
from dashboards.live.choice import MIB
from dashboards.live.figures import Figure
from dashboards.live.studies import Studies
from dashboards.queries import WORDS, StudyView, TrialView
from study.budget import format_bytes
from study.progress import short

GRAPH = {"displayModeBar": False, "responsive": True}

Texts = dict[str, Any]
"""By the id of their place on the page."""


def texts(name: str, studies: Studies, view: StudyView, at: StudyView) -> Texts:
    """What the page says beside its figures, by the id of the place.

    Args:
        name: The study.
        studies: Where it is.
        view: The trials that are chosen.
        at: The same at the budget that is looked at.
    """
    return {
        "summary": words.summary(view),
        "facts": _facts(view),
        "recommended": _recommended(name, studies, at),
        "table": _front(view, at),
    }


def table(head: Sequence[str], body: Sequence[Component], label: str) -> Component:
    """A table that scrolls by itself where it is too wide."""
    return html.Div(
        html.Table([html.Thead(html.Tr([html.Th(text) for text in head])), html.Tbody(body)]),
        className="scroll",
        tabIndex=0,
        role="region",
        **{"aria-label": label},
    )


def path_of(name: str) -> str:
    """Where the page of a study is."""
    return f"/study/{urllib.parse.quote(name, safe='')}"


def list_table(rows: Sequence[Mapping[str, Any]]) -> Component:
    """A row for a study: its name, and what is known of it."""
    head = ["Study", "Data set", "Trials", "NDCG@10, validation", "Peak memory", "State"]
    body = [
        html.Tr(
            [
                html.Td(dcc.Link(row["name"], href=path_of(row["name"])), className="text"),
                *(html.Td(row.get(key, "")) for key in ("data", "trials", "quality", "memory")),
                html.Td(row["state"]),
            ]
        )
        for row in rows
    ]
    return html.Div(
        [
            table(head, body, "Table of studies"),
            html.P(dcc.Link("Compare studies", href="/compare"), className="after"),
        ]
    )


def _recommended(name: str, studies: Studies, at: StudyView) -> list[Component]:
    best = at.best
    limit = format_bytes(at.budget)
    if best is None:
        return [html.P(f"No complete trial fits {limit}.", className="none")]
    settings = ", ".join(f"{key} {short(value)}" for key, value in best.params.items())
    command = ["python", "-m", "study.best", "--study", name, *studies.flags]
    command += ["--budget", f"{at.budget // MIB}MiB", "--toml", "best.toml"]
    return [
        html.P(
            [
                f"Within {limit}: ",
                _trial_button(best.number, f"trial {best.number}"),
                f", NDCG@10 {best.quality_text}, peak memory {best.memory_text}.",
            ]
        ),
        html.P(settings, className="note"),
        html.Div(
            [
                html.Code(shlex.join(command), id="command"),
                html.Button("Copy", id="copy", type="button"),
            ],
            className="command",
        ),
    ]


def _trial_button(number: int, text: str) -> Component:
    return html.Button(
        text, id={"type": "open", "trial": number}, type="button", className="as-link"
    )


def _facts(view: StudyView) -> Component:
    counts = Counter(trial.group for trial in view.trials)
    marks = [
        html.Li(
            [
                html.Span(className="dot", style={"background": theme.MARKS[group].color}),
                f"{counts[group]} {word}",
            ]
        )
        for group, word in WORDS.items()
        if counts[group]
    ]
    return html.Dl(
        [
            *(html.Div([html.Dt(name), html.Dd(text)]) for name, text in words.facts(view)),
            html.Div(
                [
                    html.Dt(f"Trials, {len(view.trials)} in all"),
                    html.Dd(html.Ul(marks or [html.Li("none yet")], className="marks")),
                ],
                className="wide",
            ),
        ]
    )


def _front(view: StudyView, at: StudyView) -> Component:
    if not at.front:
        return html.P("No trial has trained to its end within the budget.", className="none")
    head = ["Trial", "Peak memory", "NDCG@10, validation", "NDCG@10, test", "Seconds", *view.open]
    body = []
    for trial in at.front:
        test = trial.metrics.get("test/ndcg_at_10")
        cells = [
            trial.memory_text,
            trial.quality_text,
            "-" if test is None else f"{test:.4f}",
            "-" if trial.seconds is None else f"{trial.seconds:.1f}",
            *(short(trial.params.get(name, "-")) for name in view.open),
        ]
        number = html.Td(_trial_button(trial.number, str(trial.number)), className="text")
        row = [number, *map(html.Td, cells)]
        best = at.best is not None and trial.number == at.best.number
        body.append(html.Tr(row, className="best" if best else ""))
    return table(head, body, "Table of trials")


def trial_detail(trial: TrialView, curve: Figure | None, mlflow_answers: bool) -> list[Component]:
    """All that is known of a trial; a link to its run where that would lead somewhere."""
    facts = [(name, text) for name, text in trial.facts if name != "MLflow run"]
    run: list[Component] = []
    if trial.run_url is not None and not mlflow_answers:
        run = [html.P("Its run in MLflow, which does not answer", className="off")]
    elif trial.run_url is not None:
        link = html.A("Its run in MLflow", href=trial.run_url, target="_blank", rel="noopener")
        run = [html.P(link)]
    elif trial.run is not None:
        run = [html.P(["Its run in MLflow: ", html.Code(trial.run)])]
    parts = sorted(trial.memory_parts.items(), key=lambda part: -part[1])
    return [
        html.Button("Close", id="close", type="button"),
        html.H2(f"Trial {trial.number}, {WORDS[trial.group]}"),
        *run,
        _pairs(facts),
        *([html.H3("Learning curve"), _small(curve)] if curve else []),
        *(
            [
                html.H3("Predicted memory"),
                _pairs([(name, format_bytes(part)) for name, part in parts]),
            ]
            if parts
            else []
        ),
        *(
            [
                html.H3("Configuration"),
                _pairs([(name, short(value)) for name, value in trial.config.items()]),
            ]
            if trial.config
            else []
        ),
    ]


def _small(figure: Figure) -> Component:
    graph = dcc.Graph(
        figure=figure, config={**GRAPH, "staticPlot": True}, style={"height": "200px"}
    )
    label = {"aria-label": "Validation NDCG@10 after each epoch"}
    return html.Div(graph, className="figure", role="img", **label)


def _pairs(pairs: Sequence[tuple[str, str]]) -> Component:
    return html.Dl(
        [html.Div([html.Dt(name), html.Dd(text)]) for name, text in pairs], className="pairs"
    )


def as_json(component: Any) -> str:
    """A component as it travels, by which two are compared."""
    return str(to_json(component)) if not isinstance(component, str) else json.dumps(component)
