"""What finished studies say beforehand of a new one, as `study.quality_model` has it.

Shapes: S sources, C configurations.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from objectives.errors import UserError
from study.features import Features
from study.quality_model import QualityModel
from study.space import Choices, Value

if TYPE_CHECKING:
    from objectives.recorded import RecordedObjective
    from study.records import StudyRecord
    from study.spec import StudySpec

Array = npt.NDArray[np.float64]
Settings = Mapping[str, Any]
Run = tuple[Settings, float | None]
"""Settings of a training, and its quality: None if it diverged."""

_FEWEST = 4
"""Trainings that a surface is fitted to, at least."""


class Source:
    """What a finished study expects of configurations, by the settings that differ in it.

    Attributes:
        name: Of the study, or the table.
        num_runs: Trainings that it had.
        variation: Standard deviation of its qualities, as a share of their mean.
    """

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        """Learns.

        Raises:
            UserError: There are too few trainings, or all are alike.
        """
        known = [quality for _, quality in runs if quality is not None]
        if len(known) < _FEWEST or np.ptp(known) == 0:
            raise UserError(
                f"--warm-start {name}: {len(known)} of its trainings have a quality, "
                f"{len(set(known))} different ones; name a study with at least {_FEWEST}"
            )
        self.name, self.num_runs = name, len(runs)
        quality_T = np.array([min(known) if quality is None else quality for _, quality in runs])
        self._centre, self._spread = float(quality_T.mean()), float(quality_T.std())
        self.variation = self._spread / abs(self._centre)
        self._features = Features(_differing([settings for settings, _ in runs]), math.inf)
        self._model = QualityModel()
        self._model.fit(np.array([self._features(settings) for settings, _ in runs]), quality_T)

    def expected(self, settings: Sequence[Settings]) -> Array:
        """Expected qualities (C,), in standard deviations from the mean of the trainings."""
        mean_C, _ = self._model.predict(np.array([self._features(each) for each in settings]))
        standard_C: Array = (mean_C - self._centre) / self._spread
        return standard_C


def find_sources(spec: "StudySpec", study: str) -> list[Source]:
    """The sources that `spec.warm_start` names: studies beside this one, or recorded tables.

    Raises:
        UserError: There is no such study or table, or it has too little to say.
    """
    from study.ledger import sqlite_file
    from study.records import find, read, study_names

    file = sqlite_file(spec.storage) if spec.storage else None
    if file is not None and not file.is_file():
        names: list[str] = []  # That of a study that begins.
        where = str(file)
    else:
        names, where = study_names(spec.storage, spec.output_dir)
    others = [name for name in names if name != study]
    sources = []
    for name in spec.warm_start:
        if name in others:
            record = read(find(name, spec.storage, spec.output_dir))
            sources.append(Source(name, _of_study(record)))
            continue
        from study.subject import find_table

        table = find_table(name)
        if table is None:
            raise UserError(
                f"--warm-start {name}: not a recorded table, nor another study in {where}, which "
                f"has: {', '.join(others) or 'none'}"
            )
        sources.append(Source(name, runs_of_table(table)))
    return sources


def _of_study(record: "StudyRecord") -> list[Run]:
    ended = [each for each in record.configurations if each.outcome in ("complete", "diverged")]
    return [(trial.config, trial.quality) for trial in ended]


def runs_of_table(table: "RecordedObjective") -> list[Run]:
    """The trainings of a recorded table."""
    runs: list[Run] = []
    for key, cell in table.cells.items():
        settings: dict[str, Any] = dict(zip(table.settings, key, strict=True))
        if settings.get("negatives") == math.inf:
            del settings["negatives"]
            settings["loss"] = "cce"
        runs.append((settings, cell.quality if cell.epochs else None))
    return runs


def _differing(settings: Sequence[Settings]) -> dict[str, Choices]:
    """The settings that are not the same in all, with the values that they have."""
    values: dict[str, set[Value]] = {}
    for each in settings:
        for name, value in each.items():
            if value is not None:
                values.setdefault(name, set()).add(value)
    return {
        name: Choices(tuple(sorted(found, key=str)))
        for name, found in sorted(values.items())
        if len(found) > 1
    }
