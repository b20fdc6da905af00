"""What all pages share: the frame around the figures, and the pieces of which a page is made."""

import html
import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from dashboards import words
from dashboards.queries import StudyView


def frame(
    title: str,
    body: str,
    figures: Mapping[str, go.Figure],
    *,
    hovers: Mapping[int, str] | None = None,
    runs: Mapping[int, str] | None = None,
    csv: str = "",
    switches: Mapping[str, Any] | None = None,
) -> str:
    """A page that needs no other file and no network.

    Args:
        title: Of the window, and of the files that are saved from the page; not escaped.
        body: HTML, with a `place` for each figure.
        figures: By the name of their place.
        hovers: What the page says of a trial, by its number, where a figure shows it.
        runs: Addresses of the trials' runs, which a click opens.
        switches: What of a figure its button for the scale of memory changes, by its name.
        csv: What a button of the body with the id save-csv saves.
    """
    template = string.Template(Path(__file__).with_name("frame.html").read_text("utf-8"))
    hovers = hovers or {}
    return template.substitute(
        title=html.escape(title),
        body=body,
        figures=_script_text({key: _compact(figure, hovers) for key, figure in figures.items()}),
        hovers=_script_text(hovers),
        runs=_script_text(runs or {}),
        csv=_script_text(csv),
        switches=_script_text(switches or {}),
        file=_script_text(re.sub(r"[^\w.-]+", "-", title)),
        plotly=plotly_script(),
    )


def plotly_script() -> str:
    """Plotly without the function around it, for which a browser would read it once more."""
    wrapped = r"\A(/\*.*?\*/\n).*?=> \{\n(.*)window\.Plotly = Plotly;\nreturn Plotly;\n.*\Z"
    return re.sub(wrapped, r"\1\2", get_plotlyjs(), flags=re.DOTALL)


def place(figures: Mapping[str, go.Figure], key: str, label: str, otherwise: str) -> str:
    """Where the script draws a figure, or words where there is none."""
    if key not in figures:
        return f'<p class="none">{html.escape(otherwise)}</p>'
    # The height is kept free, so that the page does not jump while the figures are drawn.
    height = figures[key].layout.height
    label = html.escape(label)
    buttons = "".join(
        f'<button type="button" data-saves="{key}" data-format="{kind}" '
        f'aria-label="Download the figure as {kind.upper()}: {label}">{kind.upper()}</button>'
        for kind in ("svg", "png")
    )
    return (
        f'<div class="drawn"><div class="figure" id="figure-{key}" role="img" '
        f'aria-label="{label}" style="height: {height}px"></div>'
        f'<p class="save">{buttons}</p></div>'
    )


def answers(view: StudyView, level: int) -> str:
    """What people ask next of a study, under headings of that level."""
    shown = ""
    for title, sentences in words.answers(view).items():
        text = [words.with_flags(html.escape(each), "<code>", "</code>") for each in sentences]
        paragraphs = "".join(f"<p>{each}</p>" for each in text)
        shown += f"<div><h{level}>{title}</h{level}>{paragraphs}</div>"
    return f'<div class="answers">{shown}</div>' if shown else ""


def _script_text(value: Any) -> str:
    """JSON that cannot end the script that it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", r"\u003c")


def _compact(figure: go.Figure, hovers: Mapping[int, str]) -> dict[str, Any]:
    """A figure in six digits, and without the hover texts that the page has of every trial."""
    compact: dict[str, Any] = json.loads(
        figure.to_json(), parse_float=lambda digits: float(f"{float(digits):.6g}")
    )
    for trace in compact["data"]:
        if "hovertext" in trace and trace["hovertext"] == [
            hovers.get(number) for number in trace.get("customdata", [])
        ]:
            del trace["hovertext"]
    return compact
