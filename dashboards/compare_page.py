"""The report of several studies side by side, as one page of HTML."""

import html
import string
from collections.abc import Sequence
from pathlib import Path

from dashboards import words
from dashboards.compare import compare_figure, limits
from dashboards.frame import answers, frame, place
from dashboards.queries import StudyView, TrialView
from dashboards.value import best_within
from study.budget import format_bytes


def render_comparison(views: Sequence[StudyView]) -> str:
    """The page of studies whose qualities, and whose peaks, are of the same kind."""
    title = ", ".join(view.name for view in views)
    figures = {"compare": compare_figure(views)} if any(view.complete for view in views) else {}
    template = string.Template(Path(__file__).with_name("compare.html").read_text("utf-8"))
    body = template.substitute(
        name=html.escape(title),
        summary=html.escape(words.comparison(views)),
        data=html.escape(f"{views[0].data}, {views[0].split}"),
        compare=place(
            figures,
            "compare",
            "Best validation NDCG@10 of each study within a memory limit",
            "No trial has trained to its end within the budget.",
        ),
        table=_table(views),
        studies="".join(map(_study, views)),
    )
    return frame(title, body, figures)


def _table(views: Sequence[StudyView]) -> str:
    head = "".join(f"<th>{html.escape(view.name)}</th>" for view in views)
    rows = "".join(_row(views, limit) for limit in limits(views))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of memory limits">'
        f"<table><thead><tr><th>Memory limit</th>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(views: Sequence[StudyView], limit: int) -> str:
    trials = [best_within(view, limit) for view in views]
    most = max((trial.quality or 0.0 for trial in trials if trial is not None), default=0.0)
    cells = "".join(
        f"<td>{_cell(trial, view, limit, most)}</td>"
        for trial, view in zip(trials, views, strict=True)
    )
    return f"<tr><td>{format_bytes(limit)}</td>{cells}</tr>"


def _cell(trial: TrialView | None, view: StudyView, limit: int, most: float) -> str:
    if limit > view.budget:
        return "not searched"
    if trial is None:
        return "-"
    text = html.escape(f"{trial.quality_text}, trial {trial.number}")
    return f"<strong>{text}</strong>" if trial.quality == most else text


def _study(view: StudyView) -> str:
    return (
        f"<section><h2>{html.escape(view.name)}</h2>"
        f'<p class="note">{html.escape(words.searched(view))}</p>'
        f'<p class="summary">{html.escape(words.summary(view))}</p>{answers(view, 3)}</section>'
    )
