"""What a page of a study shows: its figures in sections, with what is said of each."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

from dashboards import words
from dashboards.anatomy import anatomy_figure, dissected
from dashboards.balance import balance_figure, slices
from dashboards.curves import curves_figure
from dashboards.duration import duration_figure
from dashboards.history import history_figure
from dashboards.importance import importance_figure, importances, why_none
from dashboards.losses import losses_figure, losses_of
from dashboards.notes import notes
from dashboards.parallel import parallel_figure
from dashboards.parameters import parameter_figure
from dashboards.pareto import pareto_figure
from dashboards.queries import StudyView
from dashboards.timeline import timeline_figure
from dashboards.value import value_figure

_NO_QUALITY = "No trial has trained to its end within the budget, so none has a quality."


@dataclass(frozen=True)
class Place:
    """Where a figure is, or will be.

    Attributes:
        label: What a screen reader says of the figure.
        figure: Draws it; None while there is nothing to draw.
        otherwise: What is said then.
    """

    label: str
    figure: Callable[[], go.Figure] | None
    otherwise: str = ""


@dataclass(frozen=True)
class Section:
    """Figures under a title.

    Attributes:
        title: The title.
        note: How to read them.
        places: By key.
        columns: How many of them stand beside each other, where there is room.
    """

    title: str
    note: str
    places: Mapping[str, Place]
    columns: int = 1


def _front(view: StudyView) -> Iterator[Section]:
    text = notes(view.objectives[1:])
    places = {
        "front": Place(
            "Validation NDCG@10 of every trial against its peak memory",
            functools.partial(pareto_figure, view) if view.measured else None,
            "No trial has a known peak memory yet.",
        )
    }
    if "time" in view.objectives:
        places["duration"] = Place(
            "Validation NDCG@10 of complete trials against their seconds",
            functools.partial(duration_figure, view) if view.timed else None,
            _NO_QUALITY,
        )
    note = f"{text['front_note']} {words.not_drawn(view)}".strip()
    yield Section(text["front_title"], note, places)


def _memory(view: StudyView) -> Iterator[Section]:
    text = notes(view.objectives[1:])
    if "memory" in view.objectives and view.complete:
        place = Place(
            "Best validation NDCG@10 within a memory limit, and what doubling the limit adds",
            functools.partial(value_figure, view),
        )
        yield Section("What a GiB buys", text["value_note"], {"value": place})
    if parts := slices(view):
        places = {
            f"balance-{index}": Place(
                f"Quality by negatives and batch size {part.title}".strip(),
                functools.partial(balance_figure, view, part),
            )
            for index, part in enumerate(parts)
        }
        columns = 2 if len(parts) in (2, 4) else len(parts)
        title = "Balance of negatives and batch size"
        yield Section(title, words.balance(parts), places, columns)
    place = Place(
        "Parts of the predicted peak memory of the best trials, beside the measured peak",
        functools.partial(anatomy_figure, view) if dissected(view) else None,
        words.no_anatomy(view),
    )
    yield Section("Where the memory goes", text["anatomy_note"], {"anatomy": place})


def _search(view: StudyView) -> Iterator[Section]:
    text = notes(view.objectives[1:])
    history = Place(
        "The best quality found so far, over the trials",
        functools.partial(history_figure, view) if view.complete else None,
        _NO_QUALITY,
    )
    yield Section("The search", text["history_note"], {"history": history})
    started = any(trial.started for trial in view.trials)
    timeline = Place(
        "What each worker did, and the hypervolume, over the time at work",
        functools.partial(timeline_figure, view) if started else None,
        "No trial has started yet.",
    )
    yield Section("The workers", text["timeline_note"], {"timeline": timeline})


def _parameters(view: StudyView) -> Iterator[Section]:
    text = notes(view.objectives[1:])
    shares = _importances(view)
    importance = Place(
        f"Importance of the open settings: {shares}",
        functools.partial(importance_figure, view) if shares else None,
        why_none(view),
    )
    yield Section("What mattered", text["importance_note"], {"importance": importance})
    places = {
        f"parameter-{index}": Place(
            f"Quality and peak memory by {name}",
            functools.partial(parameter_figure, view, name)
            if any(name in trial.params for trial in view.measured)
            else None,
            f"No trial with a known peak memory has a value of {name} yet.",
        )
        for index, name in enumerate(view.open)
    }
    none = "The study has no open parameter: every trial is the same."
    columns = 2 if len(places) in (1, 2, 4) else 3
    yield Section("Parameters", text["parameters_note"] if places else none, places, columns)
    if view.open and view.complete:
        place = Place(
            "The settings of complete trials, with their peak memory and their quality",
            functools.partial(parallel_figure, view),
        )
        yield Section("Trials side by side", text["parallel_note"], {"parallel": place})
    if len(losses_of(view)) > 1 and view.complete:
        place = Place(
            "The best validation NDCG@10 of each loss within a memory limit",
            functools.partial(losses_figure, view),
        )
        yield Section("Loss against loss", text["losses_note"], {"losses": place})


def _curves(view: StudyView) -> Iterator[Section]:
    curves = Place(
        "Validation NDCG@10 of trials after each of their epochs",
        functools.partial(curves_figure, view) if any(t.curve for t in view.trials) else None,
        "No trial has reported an epoch yet.",
    )
    note = notes(view.objectives[1:])["curves_note"]
    yield Section("Learning curves", note, {"curves": curves})


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


SECTIONS: dict[str, Callable[[StudyView], Iterator[Section]]] = {
    "front": _front,
    "memory": _memory,
    "search": _search,
    "parameters": _parameters,
    "curves": _curves,
}
"""The sections of a study, by what they are about, in the order of the report."""
