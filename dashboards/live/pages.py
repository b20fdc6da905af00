"""The pages of the app."""

import urllib.parse
from collections.abc import Mapping, Sequence

from dash import dcc, html
from dash.development.base_component import Component

from dashboards.live.choice import MIB, Choice, at_budget
from dashboards.live.controls import filters, slider
from dashboards.live.figures import Figure
from dashboards.live.studies import Studies
from dashboards.live.texts import GRAPH, Texts
from dashboards.notes import notes
from dashboards.queries import StudyView
from dashboards.sections import SECTIONS, Place, Section

_LIVE = {"aria-live": "polite"}


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


def study_page(
    name: str,
    choice: Choice,
    whole: StudyView,
    parts: Texts,
    figures: Component,
    store: Mapping[str, str],
) -> list[Component]:
    """The page of a study.

    Args:
        name: The study.
        choice: What is looked at.
        whole: The study with all trials.
        parts: See `texts`.
        figures: See `figure_blocks`.
        store: What the browser keeps, by name.
    """
    kicker = notes(tuple(whole.objectives[1:]))["kicker"]
    tabs = [{"label": tab.capitalize(), "value": tab} for tab in SECTIONS]
    return [
        dcc.Store(id="study", data=name),
        *(dcc.Store(id=key, data=value) for key, value in store.items()),
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
                html.P(parts["summary"], id="summary", className="summary", **_LIVE),
                html.Div(parts["facts"], id="facts"),
            ]
        ),
        html.Section(
            [
                html.H2("What fits"),
                slider(whole, choice),
                html.Div(parts["recommended"], id="recommended", **_LIVE),
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
                html.H2("The trials of the front" if len(whole.objectives) > 1 else "The best"),
                html.Div(parts["table"], id="table", className="long"),
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


def section_blocks(sections: Sequence[Section], figures: Mapping[str, Figure]) -> list[Component]:
    """The sections of a tab; words stand where a figure has nothing to show yet."""
    return [
        html.Section(
            [
                html.H2(section.title),
                html.P(
                    section.note, id={"type": "note", "title": section.title}, className="note"
                ),
                html.Div(
                    [
                        _figure(key, place, figures[key])
                        if key in figures
                        else html.P(place.otherwise, className="none")
                        for key, place in section.places.items()
                    ],
                    className="small" if section.columns > 1 else "",
                    style={"--columns": section.columns},
                ),
            ]
        )
        for section in sections
    ]


def _figure(key: str, place: Place, figure: Figure) -> Component:
    return html.Div(
        dcc.Graph(
            id={"type": "figure", "key": key},
            figure=figure,
            config=GRAPH,
            responsive=True,
            style={"height": f"{figure['layout']['height']}px"},
        ),
        id={"type": "place", "key": key},
        className="figure",
        role="img",
        **{"aria-label": place.label},
    )


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
