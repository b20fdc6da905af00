"""The app as a server: its pages, who may see them, and trials as CSV."""

import hmac
import re
from pathlib import Path

import dash
import flask
import plotly
from dash import dcc, html

from dashboards.export import as_csv
from dashboards.frame import plotly_script
from dashboards.live.callbacks import add_callbacks
from dashboards.live.choice import Choice
from dashboards.live.studies import Studies
from objectives.errors import UserError

_COOKIE = "paretocut-token"

# Plotly is read while the first answers are under way, not after them.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
{%metas%}
<meta name="color-scheme" content="light dark">
<title>{%title%}</title>
{%favicon%}
<style>STYLE</style>
{%css%}
</head>
<body>
{%app_entry%}
<footer hidden>{%config%}{%scripts%}{%renderer%}</footer>
<script defer src="/plotly.js"></script>
</body>
</html>"""


def build_app(studies: Studies, token: str | None = None) -> dash.Dash:
    """The app over some studies.

    Args:
        studies: What is shown.
        token: What a browser must know to be shown it; None: nothing.
    """
    app = dash.Dash(
        __name__,
        title="ParetoCut",
        update_title="",
        suppress_callback_exceptions=True,
        serve_locally=True,
    )
    # The style of the report.
    report = Path(__file__).parent.with_name("frame.html").read_text("utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", report, re.DOTALL)
    app.index_string = _PAGE.replace("STYLE", style)
    app.layout = html.Main([dcc.Location(id="url", refresh=False), html.Div(id="page")])
    add_callbacks(app, studies)
    _guard(app.server, token)
    _serve_csv(app.server, studies)
    _serve_plotly(app.server)
    return app


def _guard(server: flask.Flask, token: str | None) -> None:
    @server.before_request
    def admit() -> flask.typing.ResponseReturnValue | None:
        if token is None:
            return None
        given = flask.request.args.get("token")
        if given is not None and _equal(given, token):
            # From here on the browser has it, and the address no longer.
            answer = flask.redirect(flask.request.path)
            answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
            return answer
        if _equal(flask.request.cookies.get(_COOKIE, ""), token):
            return None
        return "Open the address that python -m dashboards.app printed, with its token.\n", 403

    @server.after_request
    def close(answer: flask.Response) -> flask.Response:
        # Nothing is loaded from elsewhere; WebGL's shaders are made by evaluated code.
        answer.headers["Content-Security-Policy"] = (
            "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
        )
        answer.headers["Referrer-Policy"] = "no-referrer"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _serve_csv(server: flask.Flask, studies: Studies) -> None:
    @server.get("/csv/<path:name>")
    def download(name: str) -> flask.typing.ResponseReturnValue:
        query = flask.request.query_string.decode()
        try:
            _, view = studies.view(name, Choice.parse(query))
        except UserError as error:
            return f"{error}\n", 404
        answer = flask.Response(as_csv(view), mimetype="text/csv")
        answer.headers.set("Content-Disposition", "attachment", filename=f"{name}.csv")
        return answer


def _serve_plotly(server: flask.Flask) -> None:
    script = plotly_script().encode()

    @server.get("/plotly.js")
    def send() -> flask.typing.ResponseReturnValue:
        answer = flask.Response(script, mimetype="text/javascript")
        answer.set_etag(plotly.__version__)
        return answer.make_conditional(flask.request)
