"""What happens when a trial ends, and when somebody moves something."""

import urllib.parse
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import dash
from dash import ALL, Input, Output, State, ctx, dcc, html, no_update

from dashboards import theme
from dashboards.axes import value_range
from dashboards.compare import compare_figure
from dashboards.live import pages, texts
from dashboards.live.choice import Choice
from dashboards.live.figures import Figure, changes, draw
from dashboards.live.studies import Studies
from objectives.errors import UserError
from objectives.trial import QUALITY

_REMEMBERED = 12
"""What browsers were told, by which the next message is told to be short."""

Told = tuple[dict[str, Figure], dict[str, str]]


class Teller:
    """What is told to browsers: figures and texts, whole at first, then what has changed."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._told: OrderedDict[str, Told] = OrderedDict()

    def page(self, name: str, search: str) -> list[Any]:
        """The page of a study, drawn."""
        choice = Choice.parse(search)
        version, whole = self._studies.view(name, Choice())
        _, view = self._studies.view(name, choice)
        at = pages.at_choice(view, choice)
        said = texts.texts(name, self._studies, view, at)
        figures, drawn = self.tab(name, choice.query)
        return pages.study_page(name, version, choice, view, whole, said, figures, drawn)

    def tab(self, name: str, query: str) -> tuple[Any, str]:
        """The figures of a tab, and what is remembered of them."""
        choice = Choice.parse(query)
        token, (figures, _) = self._draw(name, choice)
        _, view = self._studies.view(name, choice)
        return pages.figure_blocks(view, choice.tab, figures), token

    def news(self, name: str, query: str, drawn: str, keys: list[str]) -> list[Any]:
        """What has changed since something was drawn: figures by key, texts, and the token."""
        choice = Choice.parse(query)
        before = self._told.get(drawn)
        token, (figures, said) = self._draw(name, choice)
        if token == drawn or set(keys) - figures.keys():
            raise dash.exceptions.PreventUpdate
        old_figures, old_texts = before or ({}, {})
        told = [
            (changes(old_figures[key], figures[key]) or no_update)
            if key in old_figures
            else figures[key]
            for key in keys
        ]
        _, view = self._studies.view(name, choice)
        parts = texts.texts(name, self._studies, view, pages.at_choice(view, choice))
        shown = [
            no_update if old_texts.get(key) == text else parts[key] for key, text in said.items()
        ]
        return [told, *shown, pages.csv_path(name, choice), token]

    def _draw(self, name: str, choice: Choice) -> tuple[str, Told]:
        version, view = self._studies.view(name, choice)
        token = "|".join((name, version, replace(choice, trial=None).query))
        if token not in self._told:
            at = pages.at_choice(view, choice)
            said = texts.texts(name, self._studies, view, at)
            # The budget that is looked at is one of the front; the search had the study's.
            figures = draw(at if choice.tab == "front" else view, choice.tab)
            self._told[token] = figures, {key: texts.as_json(part) for key, part in said.items()}
            while len(self._told) > _REMEMBERED:
                self._told.popitem(last=False)
        return token, self._told[token]

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
        return texts.trial_detail(trial, curve)


def _curve(values: list[float]) -> Figure | None:
    if len(values) < 2:
        return None
    figure = theme.figure(200)
    figure.update_layout(
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
        Output("drawn", "data"),
        Input("tab", "value"),
        State("study", "data"),
        State("choice", "data"),
        prevent_initial_call=True,
    )
    def draw_tab(tab: str, name: str, query: str) -> Any:
        return teller.tab(name, replace(Choice.parse(query), tab=tab).query)

    @app.callback(
        Output({"type": "figure", "key": ALL}, "figure"),
        Output("summary", "children"),
        Output("facts", "children"),
        Output("recommended", "children"),
        Output("table", "children"),
        Output("csv", "href"),
        Output("drawn", "data", allow_duplicate=True),
        Input("version", "data"),
        Input("choice", "data"),
        State("study", "data"),
        State("drawn", "data"),
        State({"type": "figure", "key": ALL}, "id"),
        prevent_initial_call=True,
    )
    def tell(_: str, query: str, name: str, drawn: str | None, ids: list[dict[str, str]]) -> Any:
        if drawn is None:
            raise dash.exceptions.PreventUpdate
        try:
            return teller.news(name, query, drawn, [each["key"] for each in ids])
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
                pages.list_table(rows)
                if rows
                else pages.problem(
                    f"{studies.where}: there is no study; start one with python -m study.run"
                )
            )
        now = texts.as_json(table)
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
        graph = dcc.Graph(
            figure=compare_figure(views), config=texts.GRAPH, style={"height": "440px"}
        )
        label = {"aria-label": "The fronts of the chosen studies"}
        return html.Div(graph, className="figure", role="img", **label), None, now

    app.clientside_callback(
        dash.ClientsideFunction("live", "compare"),
        Output("compared", "className"),
        Input("compared", "value"),
        prevent_initial_call=True,
    )
