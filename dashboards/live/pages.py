"""The pages of the app."""

import json
import shlex
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from dashboards import theme, words
from dashboards.live.choice import MIB, Choice, at_budget, numeric
from dashboards.live.figures import TABS, Figure, figures_of, note_of
from dashboards.live.studies import Studies
from dashboards.notes import notes
from dashboards.queries import WORDS, StudyView, TrialView
from study.budget import format_bytes
from study.progress import short

OUTCOMES = {
    "complete": "complete",
    "infeasible": "over budget",
    "pruned": "pruned",
    "diverged": "diverged",
    "failed": "failed",
    "running": "running",
}
GRAPH = {"displayModeBar": False, "responsive": True}


def path_of(name: str) -> str:
    """Where the page of a study is."""
    return f"/study/{urllib.parse.quote(name, safe='')}"


def problem(sentence: str) -> Component:
    """What went wrong, in place of a page or above it."""
    return html.P(sentence, className="problem", role="alert") if sentence else html.Span()


def list_page(studies: Studies) -> list[Component]:
    """All studies; their rows are filled in as they are read."""
    return [
        html.Header(
            [
                html.P("ParetoCut", className="kicker"),
                html.H1("Studies"),
                html.P(["In ", html.Code(studies.where)], className="note"),
            ]
        ),
        html.Div(id="list"),
        dcc.Store(id="listed"),
        dcc.Interval(id="list-tick", interval=2000),
    ]


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


def table(head: Sequence[str], body: Sequence[Component], label: str) -> Component:
    """A table that scrolls by itself where it is too wide."""
    return html.Div(
        html.Table([html.Thead(html.Tr([html.Th(text) for text in head])), html.Tbody(body)]),
        className="scroll",
        tabIndex=0,
        role="region",
        **{"aria-label": label},
    )


def study_page(
    name: str,
    version: str,
    choice: Choice,
    view: StudyView,
    whole: StudyView,
    texts: "Texts",
    figures: Component,
    drawn: str,
) -> list[Component]:
    """The page of a study.

    Args:
        name: The study.
        version: As of when it is.
        choice: What is looked at.
        view: The trials that are chosen.
        whole: All of them.
        texts: See `texts`.
        figures: See `figure_blocks`.
        drawn: What is remembered of what is drawn.
    """
    kicker = notes(tuple(view.objectives[1:]))["kicker"]
    tabs = [{"label": label, "value": tab} for tab, label in TABS.items()]
    return [
        dcc.Store(id="study", data=name),
        dcc.Store(id="version", data=version),
        dcc.Store(id="drawn", data=drawn),
        dcc.Store(id="trial", data=choice.trial),
        dcc.Store(id="choice", data=choice.query),
        dcc.Interval(id="tick", interval=1000),
        html.Header(
            [
                html.P(
                    [dcc.Link("Studies", href="/"), f" · {kicker}"],
                    className="kicker",
                ),
                html.H1(name),
                html.Div(id="problem"),
                html.P(texts["summary"], id="summary", className="summary", **_LIVE),
                html.Div(texts["facts"], id="facts"),
            ]
        ),
        html.Section(
            [
                html.H2("What fits"),
                _slider(whole, choice),
                html.Div(texts["recommended"], id="recommended", **_LIVE),
            ]
        ),
        html.Section(
            [
                html.Div(
                    [
                        dcc.RadioItems(tabs, choice.tab, id="tab", className="tabs", inline=True),
                        html.Div(
                            [
                                html.A("CSV", id="csv", href=csv_path(name, choice)),
                                dcc.Link(
                                    "Compare",
                                    href=f"/compare?{urllib.parse.urlencode({'study': name})}",
                                ),
                            ],
                            className="links",
                        ),
                    ],
                    className="bar",
                ),
                _filters(whole, choice),
                html.Div(figures, id="figures"),
            ]
        ),
        html.Section(
            [
                html.H2("The trials of the front" if len(view.objectives) > 1 else "The best"),
                html.Div(texts["table"], id="table", className="long"),
                html.Label(
                    [
                        html.Span("Show trial"),
                        dcc.Input(id="find", type="number", min=0, debounce=True, value=None),
                    ],
                    className="find",
                ),
            ]
        ),
        html.Aside(id="detail", className="detail", **{"aria-label": "Trial"}),
    ]


_LIVE: dict[str, str] = {"aria-live": "polite"}

Texts = dict[str, Any]


def texts(
    name: str, studies: Studies, choice: Choice, view: StudyView, at: StudyView
) -> "Texts":
    """What the page says beside its figures, by the id of the place.

    Args:
        name: The study.
        studies: Where it is.
        choice: What is looked at.
        view: The trials that are chosen.
        at: The same at the budget that is looked at.
    """
    return {
        "summary": words.summary(view),
        "facts": _facts(view),
        "recommended": _recommended(name, studies, choice, at),
        "table": _front(view, at),
    }


def at_choice(view: StudyView, choice: Choice) -> StudyView:
    """The view at the budget that is looked at."""
    return view if choice.budget is None else at_budget(view, choice.budget * MIB)


def figure_blocks(view: StudyView, tab: str, figures: Mapping[str, Figure]) -> Component:
    """The figures of a tab with their notes."""
    blocks: list[Component] = []
    for key, shown in figures_of(view, tab).items():
        if note := note_of(view, shown):
            blocks.append(html.P(note, className="note"))
        figure = figures[key]
        blocks.append(
            html.Div(
                dcc.Graph(
                    id={"type": "figure", "key": key},
                    figure=figure,
                    config=GRAPH,
                    responsive=True,
                    style={"height": f"{figure['layout']['height']}px"},
                ),
                className="figure",
                role="img",
                **{"aria-label": shown.label},
            )
        )
    if not blocks:
        blocks.append(html.P("The study has no open parameter.", className="none"))
    return html.Div(blocks, className=f"tab-{tab}")


def csv_path(name: str, choice: Choice) -> str:
    """Where the chosen trials are to be had."""
    return f"/csv/{urllib.parse.quote(name, safe='')}{choice.filters.query}"


def _slider(whole: StudyView, choice: Choice) -> Component:
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
                debounce=0.1,
            ),
        ],
        className="slider",
    )


def _recommended(name: str, studies: Studies, choice: Choice, at: StudyView) -> list[Component]:
    best = at.best
    limit = format_bytes(at.budget)
    if best is None:
        return [html.P(f"No complete trial fits {limit}.", className="none")]
    settings = ", ".join(f"{key} {short(value)}" for key, value in best.params.items())
    command = ["python", "-m", "study.best", "--study", name]
    command += (
        ["--output-dir", str(studies.output_dir)]
        if studies.storage is None
        else ["--storage", studies.where]
    )
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


def _filters(whole: StudyView, choice: Choice) -> Component:
    outcomes = list(OUTCOMES)
    groups = [
        _checks("outcomes", "Outcome", OUTCOMES, list(choice.outcomes or outcomes)),
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
    facts = [
        ("Data set", view.data),
        ("Split", view.split),
        ("Memory budget", format_bytes(view.budget)),
        ("Memory figures from", words.MEMORY_SOURCES[view.memory_source]),
    ]
    if len(view.objectives) > 1 and view.history:
        facts.append(("Hypervolume", f"{view.history[-1].hypervolume:.4f}"))
    return html.Dl(
        [
            *(html.Div([html.Dt(name), html.Dd(value)]) for name, value in facts),
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


def trial_detail(trial: TrialView, curve: Figure | None) -> list[Component]:
    """All that is known of a trial."""
    facts = [(name, text) for name, text in trial.facts if name != "MLflow run"]
    run: list[Component] = []
    if trial.run_url is not None:
        run = [
            html.P(html.A("Its run in MLflow", href=trial.run_url, target="_blank", rel="noopener"))
        ]
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


def compare_page(names: Sequence[str], chosen: Sequence[str]) -> list[Component]:
    """Fronts of several studies in one figure."""
    options = [{"label": name, "value": name} for name in names]
    return [
        html.Header(
            [
                html.P([dcc.Link("Studies", href="/"), " · compare"], className="kicker"),
                html.H1("Studies beside each other"),
                html.P(
                    "The lines are the best quality that a memory limit can buy, in each study.",
                    className="note",
                ),
                html.Div(id="compare-problem"),
            ]
        ),
        html.Fieldset(
            [
                html.Legend("Studies"),
                dcc.Checklist(options, list(chosen), id="compared", className="checks"),
            ],
            className="compared",
        ),
        html.Div(id="comparison"),
        dcc.Store(id="compare-version"),
        dcc.Interval(id="compare-tick", interval=2000),
    ]


def as_json(component: Any) -> str:
    """A component as it travels, by which two are compared."""
    from dash._utils import to_json

    return str(to_json(component)) if not isinstance(component, str) else json.dumps(component)
