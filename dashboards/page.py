"""The report of a study as one page of HTML."""

import html
import string
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from dashboards import words
from dashboards.export import as_csv
from dashboards.frame import answers, frame, place
from dashboards.notes import notes
from dashboards.pareto import pareto_figure
from dashboards.queries import WORDS, StudyView, TrialView
from dashboards.sections import SECTIONS, Section
from dashboards.theme import MARKS, full_hover
from study.progress import short


def render(view: StudyView) -> str:
    """The page; it needs no other file and no network."""
    sections = [section for of in SECTIONS.values() for section in of(view)]
    figures = {
        key: place.figure()
        for section in sections
        for key, place in section.places.items()
        if place.figure
    }
    shown = [_section(section, figures) for section in sections]
    texts = notes(view.objectives[1:])
    template = string.Template(Path(__file__).with_name("template.html").read_text("utf-8"))
    body = template.substitute(
        name=html.escape(view.name),
        kicker=texts["kicker"],
        summary=html.escape(words.summary(view)),
        answers=answers(view, 2),
        facts=_facts(view),
        front=shown[0],
        sections="\n".join(shown[1:]),
        table_title=texts["table_title"],
        table_note=texts["table_note"],
        table=_front_table(view),
    )
    return frame(
        view.name,
        body,
        figures,
        hovers={trial.number: full_hover(trial) for trial in view.trials},
        runs={trial.number: trial.run_url for trial in view.trials if trial.run_url is not None},
        csv=as_csv(view),
        switches=_switches(view, figures),
    )


def _section(section: Section, figures: Mapping[str, go.Figure]) -> str:
    places = "".join(
        place(figures, key, where.label, where.otherwise) for key, where in section.places.items()
    )
    if section.columns > 1 and places:
        places = f'<div class="small" style="--columns: {section.columns}">{places}</div>'
    switch = _switch(figures) if "front" in section.places else ""
    return (
        f"<section>\n<h2>{section.title}</h2>\n"
        f'<p class="note">{html.escape(section.note, quote=False)}</p>\n'
        f"{switch}{places}\n</section>\n"
    )


def _is_log(figure: go.Figure) -> bool:
    return bool(figure.layout.xaxis.type == "log")


def _switch(figures: Mapping[str, go.Figure]) -> str:
    """A button that changes the scale of the front's axis of memory."""
    if "front" not in figures:
        return ""
    pressed = str(_is_log(figures["front"])).lower()
    return (
        f'<p class="switches"><button type="button" aria-pressed="{pressed}" data-figure="front">'
        "Logarithmic memory</button></p>"
    )


def _switches(view: StudyView, figures: Mapping[str, go.Figure]) -> dict[str, Any]:
    """What of a figure is another where the scale of its axis of memory is."""
    if "front" not in figures:
        return {}
    other = pareto_figure(view, log=not _is_log(figures["front"]))
    layout = other.layout.to_plotly_json()
    return {
        "front": {
            "layout": {part: layout.get(part, []) for part in ("xaxis", "annotations", "shapes")},
            "labels": [
                {"text": trace.text, "textposition": trace.textposition}
                for trace in other.data
                if trace.mode == "markers+text"
            ],
        }
    }


def _facts(view: StudyView) -> str:
    counts = Counter(trial.group for trial in view.trials)
    marks = "".join(
        f'<li><span class="dot" style="background: {MARKS[group].color}"></span>'
        f"{counts[group]} {word}</li>"
        for group, word in WORDS.items()
        if counts[group]
    )
    shown = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in words.facts(view)
    )
    marks = f'<ul class="marks">{marks or "<li>none yet</li>"}</ul>'
    total = f'<div class="wide"><dt>Trials, {len(view.trials)} in all</dt><dd>{marks}</dd></div>'
    store = _link(view.tracking_store, view.tracking_store)
    return f'<dl>{shown}{total}<div class="wide"><dt>MLflow</dt><dd>{store}</dd></div></dl>'


def _link(text: str, url: str | None) -> str:
    shown = f"<code>{html.escape(text)}</code>"
    if url is None or not url.startswith(("http://", "https://")):
        return shown
    return f'<a href="{html.escape(url)}" target="_blank" rel="noopener noreferrer">{shown}</a>'


def _front_table(view: StudyView) -> str:
    if not view.front:
        return '<p class="none">No trial has trained to its end within the budget.</p>'
    header = [
        "Trial",
        *(["Configuration"] if _has_toml(view) else []),
        "Peak memory",
        "NDCG@10, validation",
        *(f"{name}, test" for name in _tested(view)),
        "Seconds",
        *view.open,
    ]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    rows = "".join(_row(view, trial) for trial in view.front)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of trials">'
        f'<table><thead><tr>{head}<th class="text">MLflow run</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_configurations(view)}"
    )


def _row(view: StudyView, trial: TrialView) -> str:
    cells = [
        trial.memory_text,
        trial.quality_text,
        *(_decimals(trial.metrics.get(key), 4) for key in _tested(view).values()),
        _decimals(trial.seconds, 1),
        *(short(trial.params.get(name, "-")) for name in view.open),
    ]
    first = f"<td>{trial.number}</td>"
    if _has_toml(view):
        first += f"<td>{_copy_button(trial) if trial.toml else '-'}</td>"
    shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    run = _link(trial.run, trial.run_url) if trial.run is not None else "-"
    best = ' class="best"' if trial == view.best else ""
    return f'<tr{best}>{first}{shown}<td class="text">{run}</td></tr>'


def _tested(view: StudyView) -> dict[str, str]:
    """The test metrics that the front's trials have, by their names for people."""
    names = {"NDCG@10": "test/ndcg_at_10", "HitRate@10": "test/hit_rate_at_10"}
    known = {key for trial in view.front for key in trial.metrics}
    return {name: key for name, key in names.items() if key in known}


def _has_toml(view: StudyView) -> bool:
    return any(trial.toml for trial in view.front)


def _copy_button(trial: TrialView) -> str:
    return (
        f'<button type="button" data-copies="toml-{trial.number}" '
        f'aria-label="Copy the configuration of trial {trial.number}">copy</button>'
    )


def _configurations(view: StudyView) -> str:
    """The texts that the buttons copy."""
    if not _has_toml(view):
        return ""
    data = " --data FILE" if view.memory_source == "recorded" else ""
    texts = "".join(
        f'<pre id="toml-{trial.number}" tabindex="0">{html.escape(trial.toml)}</pre>'
        for trial in view.front
        if trial.toml
    )
    return (
        '<p class="note copied">A configuration is copied as TOML. As trial.toml, '
        f"<code>python -m study.run --config trial.toml{data}</code> trains it, with its seed. "
        '<span role="status"></span></p>'
        f"<details><summary>The configurations as text</summary>{texts}</details>"
    )


def _decimals(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
