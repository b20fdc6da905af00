"""What happens when a trial ends, and when somebody moves something."""

import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dash
from dash import ALL, Input, Output, State, ctx, dcc, html, no_update

from dashboards import theme
from dashboards.axes import value_range
from dashboards.compare import compare_figure
from dashboards.live import pages
from dashboards.live.choice import Choice
from dashboards.live.figures import Figure, changes, draw
from dashboards.live.studies import Shelf, Studies
from dashboards.live.texts import GRAPH, Texts, as_json, list_table, texts, trial_detail
from dashboards.sections import SECTIONS, Section
from objectives.errors import UserError
from objectives.trial import QUALITY

_REMEMBERED = 6
"""What browsers were told, by which the next message is told to be short."""


@dataclass(frozen=True)
class Told:
    """What a browser was told.

    Attributes:
        token: By which the browser says what it has.
        version: Of the study.
        sections: Those of the tab.
        figures: Their figures, by key.
        parts: What stands beside them, by place.
    """

    token: str
    version: str
    sections: Sequence[Section]
    figures: Mapping[str, Figure]
    parts: Texts

    @property
    def shape(self) -> list[Any]:
        """Where which figure is: where this has changed all of them are told."""
        return [
            (section.title, section.columns, *section.places.keys()) for section in self.sections
        ] + [(key, figure["layout"]["height"]) for key, figure in self.figures.items()]


class Teller:
    """What is told to browsers: figures and texts, whole at first, then what has changed."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._told = Shelf(_REMEMBERED)

    def page(self, name: str, search: str) -> list[Any]:
        """The page of a study."""
        choice = Choice.parse(search)
        _, whole = self._studies.view(name, Choice())
        told = self._tell(name, choice)
        figures = pages.section_blocks(told.sections, told.figures)
        store = {"drawn": told.token, "version": told.version}
        return pages.study_page(name, choice, whole, told.parts, figures, store)

    def news(self, name: str, choice: Choice, token: str, counts: Sequence[int]) -> list[Any]:
        """What has changed since a token.

        Args:
            name: The study.
            choice: What is looked at.
            token: What the browser has.
            counts: How many figures and notes these are.

        Returns:
            The sections where there are others; else figures, labels and notes; then parts, where
            the trials are as CSV, and the new token.
        """
        told = self._tell(name, choice)
        if told.token == token:
            raise dash.exceptions.PreventUpdate
        before: Told | None = self._told.get(token)
        parts = [
            no_update if before and as_json(before.parts[place]) == as_json(part) else part
            for place, part in told.parts.items()
        ]
        rest = [*parts, pages.csv_path(name, choice), told.token]
        if before is None or before.shape != told.shape:
            figures, notes = ([no_update] * count for count in counts)
            sections = pages.section_blocks(told.sections, told.figures)
            return [sections, figures, figures, notes, *rest]
        patches = [
            changes(before.figures[key], figure) or no_update
            for key, figure in told.figures.items()
        ]
        labels = [
            place.label
            for section in told.sections
            for key, place in section.places.items()
            if key in told.figures
        ]
        return [no_update, patches, labels, [section.note for section in told.sections], *rest]

    def _tell(self, name: str, choice: Choice) -> Told:
        version, view = self._studies.view(name, choice)
        token = "|".join((name, version, replace(choice, trial=None).query))
        told: Told | None = self._told.get(token)
        if told is None:
            at = pages.at_choice(view, choice)
            # The budget that is looked at is one of the front; the search had the study's.
            shown = at if choice.tab == "front" else view
            if choice.tab == "curves":
                shown = self._studies.with_curves(name, view)
            sections = list(SECTIONS[choice.tab](shown))
            parts = texts(name, self._studies, view, at)
            told = Told(token, version, sections, draw(sections), parts)
        self._told.keep(token, told)
        return told

    def detail(self, name: str, number: int) -> Any:
        """A trial, with its curve as far as it is."""
        _, view = self._studies.view(name, Choice())
        trial = next((trial for trial in view.trials if trial.number == number), None)
        if trial is None:
            return [
                html.Button("Close", id="close", type="button"),
                html.P(f"Study {name} has no trial {number}.", className="none"),
            ]
        reached = [each.get(QUALITY) for each in self._studies.curve(name, number)]
        curve = _curve([value for value in reached if value is not None])
        return trial_detail(trial, curve, self._studies.mlflow_answers())


def _curve(values: list[float]) -> Figure | None:
    if len(values) < 2:
        return None
    figure = theme.figure(
        200,
        margin={"t": 8, "b": 44},
        xaxis=theme.axis(title={"text": "Epoch"}),
        yaxis=theme.axis(range=value_range(values), nticks=5),
    )
    figure.add_scatter(
        x=list(range(1, len(values) + 1)),
        y=values,
        mode="lines",
        line={"color": theme.MARKS["front"].color, "width": 2},
    )
    made: Figure = figure.to_plotly_json()
    return made


def add_callbacks(app: dash.Dash, studies: Studies) -> None:
    """Tells the app what to do."""
    teller = Teller(studies)
    _navigate(app, studies, teller)
    _follow(app, studies, teller)
    _choose(app)
    _list(app, studies)
    _compare(app, studies)


def _navigate(app: dash.Dash, studies: Studies, teller: Teller) -> None:
    @app.callback(Output("page", "children"), Input("url", "pathname"), State("url", "search"))
    def show(pathname: str, search: str) -> Any:
        try:
            if pathname in ("/", None):
                return pages.list_page(studies)
            if pathname == "/compare":
                asked = urllib.parse.parse_qs((search or "").removeprefix("?"))
                return pages.compare_page(studies.names(), asked.get("study", []))
            if pathname.startswith("/study/"):
                name = urllib.parse.unquote(pathname.removeprefix("/study/"))
                return teller.page(name, search or "")
        except UserError as error:
            return [pages.problem(str(error)), html.P(dcc.Link("Studies", href="/"))]
        return [pages.problem("There is no such page."), html.P(dcc.Link("Studies", href="/"))]


def _follow(app: dash.Dash, studies: Studies, teller: Teller) -> None:
    @app.callback(
        Output("version", "data"),
        Output("problem", "children"),
        Input("tick", "n_intervals"),
        State("study", "data"),
        State("version", "data"),
        State("problem", "children"),
        prevent_initial_call=True,
    )
    def look(_: int, name: str, version: str, shown: Any) -> Any:
        try:
            now = studies.version(name)
        except UserError as error:
            return no_update, pages.problem(str(error))
        if now == version and not shown:
            raise dash.exceptions.PreventUpdate
        return (no_update if now == version else now), None

    @app.callback(
        Output("figures", "children"),
        Output({"type": "figure", "key": ALL}, "figure"),
        Output({"type": "place", "key": ALL}, "aria-label"),
        Output({"type": "note", "title": ALL}, "children"),
        Output("summary", "children"),
        Output("facts", "children"),
        Output("recommended", "children"),
        Output("table", "children"),
        Output("csv", "href"),
        Output("drawn", "data"),
        Input("version", "data"),
        Input("choice", "data"),
        State("study", "data"),
        State("drawn", "data"),
        State({"type": "figure", "key": ALL}, "id"),
        State({"type": "note", "title": ALL}, "id"),
        prevent_initial_call=True,
    )
    def tell(_: str, query: str, name: str, drawn: str, *shown: list[Any]) -> Any:
        try:
            return teller.news(name, Choice.parse(query), drawn, list(map(len, shown)))
        except UserError:
            raise dash.exceptions.PreventUpdate from None

    @app.callback(
        Output("detail", "children"),
        Input("trial", "data"),
        Input("version", "data"),
        State("study", "data"),
    )
    def detail(number: int | None, _: str, name: str) -> Any:
        if number is None:
            return None
        try:
            return teller.detail(name, number)
        except UserError as error:
            return [
                html.Button("Close", id="close", type="button"),
                pages.problem(str(error)),
            ]


def _choose(app: dash.Dash) -> None:
    """What the browser does by itself; the code is in assets/live.js."""

    def in_browser(name: str, *what: Any, **more: Any) -> None:
        function = dash.ClientsideFunction("live", name)
        app.clientside_callback(function, *what, **more)

    in_browser(
        "choose",
        Output("choice", "data"),
        Input("tab", "value"),
        Input("budget", "value"),
        Input("outcomes", "value"),
        Input("losses", "value"),
        Input({"type": "low", "name": ALL}, "value"),
        Input({"type": "high", "name": ALL}, "value"),
        Input({"type": "words", "name": ALL}, "value"),
        Input("trial", "data"),
        State("budget", "max"),
        State("outcomes", "options"),
        State("losses", "options"),
        State({"type": "low", "name": ALL}, "id"),
        State({"type": "words", "name": ALL}, "id"),
        State({"type": "words", "name": ALL}, "options"),
        prevent_initial_call=True,
    )
    in_browser(
        "pick",
        Output("trial", "data"),
        Input({"type": "figure", "key": ALL}, "clickData"),
        Input({"type": "open", "trial": ALL}, "n_clicks"),
        Input("find", "value"),
        prevent_initial_call=True,
    )
    in_browser(
        "close",
        Output("trial", "data", allow_duplicate=True),
        Input("close", "n_clicks"),
        prevent_initial_call=True,
    )
    in_browser(
        "copy",
        Output("copy", "children"),
        Input("copy", "n_clicks"),
        State("command", "children"),
        prevent_initial_call=True,
    )


def _list(app: dash.Dash, studies: Studies) -> None:
    @app.callback(
        Output("list", "children"),
        Output("listed", "data"),
        Input("list-tick", "n_intervals"),
        State("listed", "data"),
    )
    def show(_: int, shown: str | None) -> Any:
        try:
            rows = studies.rows()
        except UserError as error:
            rows, table = [], pages.problem(str(error))
        else:
            table = (
                list_table(rows)
                if rows
                else pages.problem(
                    f"{studies.where}: there is no study; start one with python -m study.run"
                )
            )
        now = as_json(table)
        if now == shown:
            raise dash.exceptions.PreventUpdate
        return table, now


def _compare(app: dash.Dash, studies: Studies) -> None:
    @app.callback(
        Output("comparison", "children"),
        Output("compare-problem", "children"),
        Output("compare-version", "data"),
        Input("compared", "value"),
        Input("compare-tick", "n_intervals"),
        State("compare-version", "data"),
    )
    def compare(chosen: list[str], _: int, shown: list[str] | None) -> Any:
        try:
            found = [(name, *studies.view(name, Choice())) for name in chosen]
        except UserError as error:
            return no_update, pages.problem(str(error)), no_update
        now = [f"{name} {version}" for name, version, _ in found]
        if now == shown and ctx.triggered_id != "compared":
            raise dash.exceptions.PreventUpdate
        views = [view for *_, view in found if view.front]
        if not views:
            return html.P("Choose studies that have a front.", className="none"), None, now
        graph = dcc.Graph(figure=compare_figure(views), config=GRAPH, style={"height": "440px"})
        label = {"aria-label": "The fronts of the chosen studies"}
        return html.Div(graph, className="figure", role="img", **label), None, now

    app.clientside_callback(
        dash.ClientsideFunction("live", "compare"),
        Output("compared", "className"),
        Input("compared", "value"),
        prevent_initial_call=True,
    )
