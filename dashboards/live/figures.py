"""The figures of a study in the app, and what of them a browser has yet to be told."""

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go
from dash import Patch

from dashboards import theme
from dashboards.sections import Section

Figure = dict[str, Any]


def draw(sections: Iterable[Section]) -> dict[str, Figure]:
    """The figures that have something to show as a browser takes them, by key."""
    places = (item for section in sections for item in section.places.items())
    return {key: _as_sent(place.figure()) for key, place in places if place.figure}


def _as_sent(figure: go.Figure) -> Figure:
    made: Figure = figure.to_plotly_json()
    # What was enlarged stays so when trials are added.
    made["layout"]["uirevision"] = "kept"
    for trace in made["data"]:
        if (
            trace["type"] == "scatter"
            and trace.get("mode") == "markers"
            and len(trace["x"]) > theme.MANY
        ):
            # So many are a cloud: where they are dense it is darker.
            trace["type"] = "scattergl"
            trace["marker"] |= {"size": 5, "opacity": 0.35, "line": {"width": 1}}
    return made


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
