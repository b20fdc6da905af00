"""The figures of a study in the app, and what of them a browser has yet to be told."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from dash import Patch

from dashboards import theme
from dashboards.axes import memory_axis
from dashboards.duration import duration_figure
from dashboards.history import history_figure
from dashboards.notes import notes
from dashboards.parameters import parameter_figure
from dashboards.pareto import pareto_figure
from dashboards.queries import StudyView

Figure = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """A figure of a tab.

    Attributes:
        tab: The tab.
        label: What a screen reader says of it.
        draw: Makes it; None where there is nothing to be drawn.
        note: The text above it, by its name in `dashboards.notes`.
    """

    tab: str
    label: str
    draw: Callable[[StudyView], go.Figure | None]
    note: str = ""


FIGURES: dict[str, Shown] = {
    "front": Shown(
        "front",
        "Validation NDCG@10 of every trial against its peak memory",
        lambda view: _with_beyond(view) if view.measured else None,
        "front_note",
    ),
    "duration": Shown(
        "front",
        "Validation NDCG@10 of complete trials against their seconds",
        lambda view: duration_figure(view) if view.timed else None,
    ),
    "history": Shown(
        "search",
        "The best quality found so far, over the trials",
        lambda view: history_figure(view) if view.complete else None,
        "history_note",
    ),
}
"""By key; the parameters of a study have a figure each beside these."""

TABS = {"front": "Front", "search": "Search", "parameters": "Parameters"}


def figures_of(view: StudyView, tab: str) -> dict[str, Shown]:
    """The figures of a tab, for a study with these objectives and parameters."""
    if tab == "parameters":
        return {
            f"parameter-{name}": Shown(
                tab,
                f"Quality and peak memory by {name}",
                functools.partial(_parameter, name),
                "" if index else "parameters_note",
            )
            for index, name in enumerate(view.open)
        }
    timed = "time" in view.objectives
    return {
        key: shown
        for key, shown in FIGURES.items()
        if shown.tab == tab and (key != "duration" or timed)
    }


def note_of(view: StudyView, shown: Shown) -> str:
    """The text above a figure; empty without one."""
    return notes(tuple(view.objectives[1:])).get(shown.note, "")


def draw(view: StudyView, tab: str) -> dict[str, Figure]:
    """The figures of a tab as a browser takes them, by key."""
    return {key: _draw(shown, view) for key, shown in figures_of(view, tab).items()}


def _draw(shown: Shown, view: StudyView) -> Figure:
    figure = shown.draw(view) or _nothing()
    # What was enlarged stays so when trials are added.
    figure.update_layout(uirevision="kept")
    made: Figure = figure.to_plotly_json()
    for trace in made["data"]:
        if trace["type"] == "scatter" and len(trace["x"]) > theme.MANY:
            # So many are a cloud: where they are dense it is darker.
            trace["type"] = "scattergl"
            trace["marker"] |= {"size": 5, "opacity": 0.35, "line": {"width": 1}}
    return made


def _nothing() -> go.Figure:
    figure = theme.figure(160)
    figure.add_annotation(text="No trial to draw here yet", showarrow=False, font_size=14)
    return figure.update_layout(xaxis_visible=False, yaxis_visible=False)


def _with_beyond(view: StudyView) -> go.Figure:
    """The front; complete trials that a smaller budget has no room for are drawn as such."""
    figure = pareto_figure(view)
    beyond = [trial for trial in view.complete if trial.group == "infeasible"]
    if beyond:
        places = memory_axis(view.measured, view.budget).places(beyond)
        quality = [trial.quality for trial in beyond]
        figure.add_trace(
            theme.points("infeasible", beyond, places, quality, **theme.hovers(beyond))
        )
    return figure


def _parameter(name: str, view: StudyView) -> go.Figure | None:
    if not any(name in trial.params for trial in view.measured):
        return None
    return parameter_figure(view, name)


def changes(old: Figure, new: Figure) -> Patch | None:
    """What turns an old figure into a new one; None if nothing does."""
    patch = Patch()
    return patch if _change(patch, old, new) else None


def _change(patch: Any, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Writes the differences of two objects into a patch and says whether there are any."""
    changed = False
    for key in old.keys() - new.keys():
        del patch[key]
        changed = True
    for key, value in new.items():
        before = old.get(key)
        if key in old and before == value:
            continue
        changed = True
        if isinstance(before, dict) and isinstance(value, dict):
            _change(patch[key], before, value)
        elif _alike(before, value):
            for index, (one, other) in enumerate(zip(before, value, strict=True)):  # type: ignore[arg-type]
                _change(patch[key][index], one, other)
        elif isinstance(before, list | tuple) and isinstance(value, list | tuple):
            _change_list(patch, key, list(before), list(value))
        else:
            patch[key] = value
    return changed


def _alike(old: Any, new: Any) -> bool:
    """Whether both are lists of as many objects, such as a figure's traces."""
    return (
        isinstance(old, list | tuple)
        and isinstance(new, list | tuple)
        and len(old) == len(new)
        and all(isinstance(each, dict) for each in (*old, *new))
    )


def _change_list(patch: Any, key: str, old: list[Any], new: list[Any]) -> None:
    """Replaces what lies between the parts that both lists begin and end with, if that is less."""
    start = 0
    shorter = min(len(old), len(new))
    while start < shorter and old[start] == new[start]:
        start += 1
    end = 0
    while end < shorter - start and old[-1 - end] == new[-1 - end]:
        end += 1
    gone, come = len(old) - start - end, new[start : len(new) - end]
    if gone + len(come) > len(new) // 4:
        patch[key] = new
        return
    for _ in range(gone):
        del patch[key][start]
    if end == 0:
        patch[key].extend(come)
    else:
        for index, value in enumerate(come, start):
            patch[key].insert(index, value)
