"""The pages of the app."""

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from dashboards.live.choice import MIB, Choice, at_budget
from dashboards.live.controls import filters, slider
from dashboards.live.figures import TABS, Figure, figures_of, note_of
from dashboards.live.studies import Studies
from dashboards.live.texts import GRAPH, Texts, table
from dashboards.notes import notes
from dashboards.queries import StudyView

_LIVE = {"aria-live": "polite"}


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


def study_page(
    name: str,
    version: str,
    choice: Choice,
    view: StudyView,
    whole: StudyView,
    texts: Texts,
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
                slider(whole, choice),
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
                filters(whole, choice),
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
