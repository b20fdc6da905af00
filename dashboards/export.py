"""A study for other tools: its trials as CSV and JSON, its front as an image."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from dashboards import theme
from dashboards.pareto import pareto_figure
from dashboards.queries import StudyView, TrialView
from objectives.errors import UserError

_WIDTH = 1000
"""Pixels of an image; of a PNG twice as many, for dense screens and print."""


_COLUMNS: dict[str, Callable[[TrialView], Any]] = {
    "trial": lambda trial: trial.number,
    "outcome": lambda trial: trial.group,
    "ndcg_at_10": lambda trial: trial.quality,
    "ndcg_at_10_std": lambda trial: trial.spread,
    "trainings": lambda trial: trial.trainings,
    "peak_memory_bytes": lambda trial: trial.memory,
    "peak_is_lower_bound": lambda trial: trial.at_least,
    "seconds": lambda trial: trial.seconds,
    "reason": lambda trial: trial.reason or None,
    "started": lambda trial: trial.started and trial.started.isoformat(),
    "finished": lambda trial: trial.finished and trial.finished.isoformat(),
    "worker": lambda trial: trial.worker or None,
    "mlflow_run": lambda trial: trial.run,
}
"""What every trial has, beside its settings and metrics."""


def as_csv(view: StudyView) -> str:
    """A row for every trial, by number; docs/report.md says what the columns are.

    What is not known is empty.
    """
    settings = _names(_settings(trial) for trial in view.trials)
    metrics = _names(trial.metrics for trial in view.trials)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *settings, *metrics])
    for trial in view.trials:
        chosen = _settings(trial)
        writer.writerow(
            [
                *(value(trial) for value in _COLUMNS.values()),
                *(chosen.get(name) for name in settings),
                *(trial.metrics.get(name) for name in metrics),
            ]
        )
    return text.getvalue()


def as_json(view: StudyView) -> str:
    """The study and all that is known of every trial; docs/report.md says what the keys are.

    What is not known is null.
    """
    trials = [
        {
            **{name: value(trial) for name, value in _COLUMNS.items()},
            "settings": _settings(trial),
            "metrics": dict(trial.metrics),
            "memory_parts_bytes": dict(trial.memory_parts),
            "ndcg_at_10_by_epoch": [
                value if math.isfinite(value) else None for value in trial.curve
            ],
        }
        for trial in view.trials
    ]
    study = {
        "study": view.name,
        "data": view.data,
        "split": view.split,
        "objectives": list(view.objectives),
        "memory_budget_bytes": view.budget,
        "memory_source": view.memory_source,
        "space": dict(view.space),
        "open": list(view.open),
        "front": [trial.number for trial in view.front],
        "best": None if view.best is None else view.best.number,
        "hypervolume": view.history[-1].hypervolume if view.history else None,
        "trials": trials,
    }
    return json.dumps(study, indent=1, allow_nan=False) + "\n"


def as_image(view: StudyView, suffix: Literal[".png", ".svg"]) -> bytes:
    """The figure of the front on white.

    Raises:
        UserError: kaleido, which draws it, or the Chromium that it needs is not there.
    """
    figure = theme.on_white(pareto_figure(view))
    try:
        image: bytes = figure.to_image(
            suffix.removeprefix("."), width=_WIDTH, scale=2 if suffix == ".png" else 1
        )
    except RuntimeError as error:
        raise UserError(
            f"--output with {suffix}: images are drawn by kaleido in Chrome or Chromium, and one "
            "of the two is not here; install it (pip install kaleido), or save them from the page "
            "(.html)"
        ) from error
    return image


def _settings(trial: TrialView) -> dict[str, Any]:
    return {**trial.params, **trial.config}


def _names(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))
