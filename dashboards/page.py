"""The report of a study as one page of HTML."""

import html
import string
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from dashboards import words
from dashboards.anatomy import anatomy_figure, dissected
from dashboards.balance import balance_figure, slices
from dashboards.curves import curves_figure
from dashboards.duration import duration_figure
from dashboards.export import as_csv
from dashboards.frame import answers, frame, place
from dashboards.history import history_figure
from dashboards.importance import importance_figure, importances, why_none
from dashboards.losses import losses_figure, losses_of
from dashboards.notes import notes
from dashboards.parallel import parallel_figure
from dashboards.parameters import parameter_figure
from dashboards.pareto import pareto_figure
from dashboards.queries import WORDS, StudyView, TrialView
from dashboards.theme import MARKS, full_hover
from dashboards.timeline import timeline_figure
from dashboards.value import value_figure
from study.budget import format_bytes
from study.progress import short


def render(view: StudyView) -> str:
    """The page; it needs no other file and no network."""
    figures = _figures(view)
    texts = notes(view.objectives[1:])
    template = string.Template(Path(__file__).with_name("template.html").read_text("utf-8"))
    body = template.substitute(
        name=html.escape(view.name),
        summary=html.escape(words.summary(view)),
        answers=answers(view, 2),
        facts=_facts(view),
        switch=_switch(figures),
        front=place(
            figures,
            "front",
            "Validation NDCG@10 of every trial against its peak memory",
            "No trial has a known peak memory yet.",
        ),
        duration=place(
            figures,
            "duration",
            "Validation NDCG@10 of complete trials against their seconds",
            "No trial has trained to its end within the budget, so none has a quality.",
        )
        if "time" in view.objectives
        else "",
        value=_section(
            figures,
            "value",
            "What a GiB buys",
            "The best quality that was found within a memory limit and, below, what each doubling "
            "of the limit added. The knee is the trial farthest above the straight line between "
            "the ends of the front: up to it a doubling adds more than the average one, beyond it "
            "less.",
            "Best validation NDCG@10 within a memory limit, and what doubling the limit adds",
        ),
        balance=_balance(view, figures),
        anatomy=place(
            figures,
            "anatomy",
            "Parts of the predicted peak memory of the best trials, beside the measured peak",
            words.no_anatomy(view),
        ),
        not_drawn=html.escape(words.not_drawn(view)),
        history=place(
            figures,
            "history",
            "The best quality found so far, over the trials",
            "No trial has trained to its end within the budget, so none has a quality.",
        ),
        timeline=place(
            figures,
            "timeline",
            "What each worker did, and the hypervolume, over the time at work",
            "No trial has started yet.",
        ),
        importance=place(
            figures,
            "importance",
            "Importance of the open settings: " + _importances(view),
            why_none(view),
        ),
        parameters=_parameters(view, figures),
        parallel=_section(
            figures,
            "parallel",
            "Trials side by side",
            texts["parallel_note"],
            "The settings of complete trials, with their peak memory and their quality",
        ),
        losses=_section(
            figures,
            "losses",
            "Loss against loss",
            texts["losses_note"],
            "The best validation NDCG@10 of each loss within a memory limit",
        ),
        curves=place(
            figures,
            "curves",
            "Validation NDCG@10 of trials after each of their epochs",
            "No trial has reported an epoch yet.",
        ),
        table=_front_table(view),
        **texts,
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


def _figures(view: StudyView) -> dict[str, go.Figure]:
    """The figures that have something to show, by the name of their place on the page."""
    figures = {}
    if view.measured:
        figures["front"] = pareto_figure(view)
    if "time" in view.objectives and view.timed:
        figures["duration"] = duration_figure(view)
    if "memory" in view.objectives and view.complete:
        figures["value"] = value_figure(view)
    for index, part in enumerate(slices(view)):
        figures[f"balance-{index}"] = balance_figure(view, part)
    if dissected(view):
        figures["anatomy"] = anatomy_figure(view)
    if view.complete:
        figures["history"] = history_figure(view)
    if any(trial.started for trial in view.trials):
        figures["timeline"] = timeline_figure(view)
    if importances(view, "quality") or importances(view, "memory"):
        figures["importance"] = importance_figure(view)
    for index, name in enumerate(view.open):
        if any(name in trial.params for trial in view.measured):
            figures[f"parameter-{index}"] = parameter_figure(view, name)
    if view.open and view.complete:
        figures["parallel"] = parallel_figure(view)
    if len(losses_of(view)) > 1 and view.complete:
        figures["losses"] = losses_figure(view)
    if any(trial.curve for trial in view.trials):
        figures["curves"] = curves_figure(view)
    return figures


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


def _section(figures: Mapping[str, go.Figure], key: str, title: str, note: str, label: str) -> str:
    """A section of one figure; nothing where there is none."""
    if key not in figures:
        return ""
    drawn = place(figures, key, label, "")
    return f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{drawn}\n</section>\n'


def _balance(view: StudyView, figures: Mapping[str, go.Figure]) -> str:
    parts = slices(view)
    if not parts:
        return ""
    places = "".join(
        place(figures, f"balance-{index}", f"Quality by negatives and batch size {part.title}", "")
        for index, part in enumerate(parts)
    )
    columns = 2 if len(parts) in (2, 4) else len(parts)
    return (
        f'<section>\n<h2>Balance of negatives and batch size</h2>\n<p class="note">'
        f"{words.balance(parts)}</p>\n"
        f'<div class="small" style="--columns: {columns}">{places}</div>\n</section>\n'
    )


def _importances(view: StudyView) -> str:
    """The importances as text, for those who do not see the bars."""
    return "; ".join(
        f"for {of} " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        for of, shares in (
            ("quality", importances(view, "quality")),
            ("peak memory", importances(view, "memory")),
        )
        if shares
    )


def _parameters(view: StudyView, figures: Mapping[str, go.Figure]) -> str:
    if not view.open:
        return '<p class="none">The study has no open parameter: every trial is the same.</p>'
    places = [
        place(
            figures,
            f"parameter-{index}",
            f"Quality and peak memory by {name}",
            f"No trial with a known peak memory has a value of {name} yet.",
        )
        for index, name in enumerate(view.open)
    ]
    columns = 2 if len(places) in (1, 2, 4) else 3
    return f'<div class="small" style="--columns: {columns}">{"".join(places)}</div>'


def _facts(view: StudyView) -> str:
    counts = Counter(trial.group for trial in view.trials)
    marks = "".join(
        f'<li><span class="dot" style="background: {MARKS[group].color}"></span>'
        f"{counts[group]} {word}</li>"
        for group, word in WORDS.items()
        if counts[group]
    )
    facts = [
        ("Data set", html.escape(view.data)),
        ("Split", html.escape(view.split)),
        ("Memory budget", format_bytes(view.budget)),
        ("Memory figures from", html.escape(words.MEMORY_SOURCES[view.memory_source])),
    ]
    if len(view.objectives) > 1:
        volume = f"{view.history[-1].hypervolume:.4f}" if view.history else "none yet"
        facts.append(("Hypervolume", volume))
    if view.expected_gain is not None:
        what = "hypervolume" if len(view.objectives) > 1 else "best quality"
        facts.append(("As many trials again", f"may add {view.expected_gain:.1%} to the {what}"))
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
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
