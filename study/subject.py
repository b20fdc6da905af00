"""What a study is of: data that trials train on, or a table of finished runs."""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from objectives.config import DataConfig, TrialConfig
from objectives.errors import UserError
from objectives.trial import MemorySource, TrialContext, TrialResult
from study.budget import check_floor, format_bytes, resolve_budget
from study.credentials import hide_password
from study.space import Choices, Range, Space, Value, build_space
from study.spec import Share, StudySpec, flag_of

if TYPE_CHECKING:
    from objectives.recorded import RecordedObjective
    from objectives.sequential import SequentialObjective


_NUM_ITEMS = 1_000_000
"""Of a catalogue, which a table does not say: what the full softmax counts as negatives for."""


class PredictingObjective(Protocol):
    """An objective that may know peaks before it runs."""

    @property
    def predicts(self) -> bool:
        """Whether it does."""

    def __call__(self, config: TrialConfig, context: TrialContext) -> TrialResult:
        """A trial; see `objectives.trial`."""

    def predicts_at_once(self, config: TrialConfig) -> bool:
        """Whether it does in milliseconds, where it predicts."""

    def predicted_peak(self, config: TrialConfig, budget: int) -> int:
        """The peak of a configuration in bytes, where it predicts."""

    def check(self, config: TrialConfig, budget: int) -> bool:
        """Whether a configuration is near the budget; raises InfeasibleTrial beyond it."""


class Subject(Protocol):
    """What a study is of.

    Attributes:
        identity: Its part of what makes a study the same study.
        name: For people, and the study's where it has no other.
        notes: What there is to know of the data.
        place: Where trials run.
        space: What they may vary.
        memory_source: Where their peaks come from.
    """

    identity: Mapping[str, Any]
    name: str
    notes: tuple[str, ...]
    place: str
    space: Space
    memory_source: MemorySource

    @property
    def objective(self) -> PredictingObjective:
        """What runs a trial."""

    def budget(self, asked: int | Share | None) -> int:
        """The memory budget in bytes."""

    def check_floor(self, budget: int) -> None:
        """Refuses a budget below what the smallest configuration needs."""

    def baseline(self) -> Mapping[str, float]:
        """Test metrics of recommending the most popular items, where they can be known."""

    def tags(self) -> dict[str, str]:
        """What trials run on: kept with each."""


class Training:
    """Trials train on data, on a device."""

    def __init__(self, spec: StudySpec) -> None:
        """Prepares the data.

        Raises:
            UserError: Data, device or space are not possible.
        """
        from objectives.data import prepare
        from objectives.memory import memory_source
        from study.environment import choose_device

        self._data = data = prepare(spec.data_config)
        self.name, self.notes = data.name, data.notes
        request = spec.data_config.model_dump(exclude_none=True)
        exists = Path(spec.data).exists()
        request["data"] = str(Path(spec.data).resolve()) if exists else hide_password(spec.data)
        self.identity: Mapping[str, Any] = {
            "data": {"name": data.name, "digest": data.digest, "split": spec.split},
            # How the data was asked for, so that study.best can ask for it again.
            "request": request,
        }
        self._device = choose_device(spec.device)
        self.place = str(self._device)
        self.memory_source = memory_source(self._device)
        self.space = build_space(spec.space, data.num_items, len(data.train), spec.spend_budget)

    @cached_property
    def objective(self) -> "SequentialObjective":
        """Trains."""
        from objectives.parallel import ALONE, Group
        from objectives.sequential import SequentialObjective

        # As torchrun says it of each process of a trial.
        group = Group.join(self._device) if "RANK" in os.environ else ALONE
        return SequentialObjective(self._data, self._device, group=group)

    def budget(self, asked: int | Share | None) -> int:
        """As asked, or a share of the card or of the machine."""
        return resolve_budget(asked, self._device)

    def check_floor(self, budget: int) -> None:
        """By a step of the smallest configuration."""
        check_floor(self.objective, self.space, budget)

    def baseline(self) -> Mapping[str, float]:
        """Of the data."""
        from objectives.evaluation import most_popular

        return most_popular(self._data)

    def tags(self) -> dict[str, str]:
        """Card, driver, versions and commit."""
        from study.environment import describe

        return describe(self._device)


class Recorded:
    """Trials are looked up in a table of finished runs, which takes no GPU."""

    notes: tuple[str, ...] = ()
    place = "recorded runs"
    memory_source: MemorySource = "recorded"

    def __init__(self, spec: StudySpec) -> None:
        """Reads the table that `spec.recorded` names.

        Raises:
            UserError: There is none, or the space is not of it.
        """
        assert spec.recorded is not None
        _refuse_other_than_a_table(spec)
        self.objective = _table(spec.recorded)
        self.name = self.objective.dataset
        self.space = space_of(self.objective)
        self.identity: Mapping[str, Any] = {
            "data": {"name": self.name, "digest": self.objective.digest, "split": "recorded"},
            "request": {"recorded": spec.recorded},
        }

    def budget(self, asked: int | Share | None) -> int:
        """As asked, or (a share of) what the largest run takes."""
        most = max(cell.peak_bytes for cell in self.objective.cells.values())
        if isinstance(asked, Share):
            return asked.of(most)
        return most if asked is None else asked

    def check_floor(self, budget: int) -> None:
        """By the smallest run."""
        least = min(cell.peak_bytes for cell in self.objective.cells.values())
        if least > budget:
            raise UserError(
                f"--memory-budget {format_bytes(budget)}: the smallest of the recorded runs took "
                f"{format_bytes(least)}; raise the budget"
            )

    def baseline(self) -> Mapping[str, float]:
        """Not known."""
        return {}

    def tags(self) -> dict[str, str]:
        """Versions."""
        from study.environment import describe

        return describe(None) | {"device": self.place}


def build_subject(spec: StudySpec) -> Subject:
    """What the specification asks for."""
    return Training(spec) if spec.recorded is None else Recorded(spec)


def find_table(asked: str) -> "RecordedObjective | None":
    """A table that comes with ParetoCut, or a file, of several data sets with the one's name."""
    from objectives.recorded import TABLES, RecordedObjective

    if (shipped := TABLES / f"{asked}.csv").is_file():
        return RecordedObjective(shipped)
    file, _, dataset = asked.rpartition(":") if not Path(asked).exists() else (asked, "", None)
    return RecordedObjective(Path(file), dataset) if Path(file).is_file() else None


def _table(asked: str) -> "RecordedObjective":
    from objectives.recorded import TABLES

    table = find_table(asked)
    if table is None:
        names = ", ".join(sorted(path.stem for path in TABLES.glob("*.csv")))
        raise UserError(f"--recorded {asked}: not a file, nor one of {names}")
    return table


def _refuse_other_than_a_table(spec: StudySpec) -> None:
    given = spec.model_fields_set
    flags = [f"--space.{name}" for name in spec.space]
    flags += [
        flag_of(name) for name in (*DataConfig.model_fields, "spend_budget") if name in given
    ]
    if flags:
        raise UserError(
            f"{flags[0]}: --recorded {spec.recorded} says what data and settings there are; leave "
            "one of them out"
        )


def space_of(objective: "RecordedObjective") -> Space:
    """All that a table varies."""
    fixed: dict[str, Value] = {}
    parts: dict[str, Range | Choices] = {}
    # The loss first: it says which other settings there are.
    for name, values in sorted(objective.axes.items(), key=lambda axis: axis[0] != "loss"):
        if len(values) > 1:
            parts[name] = Choices(tuple(values))
        else:
            fixed[name] = values[0]
    return Space(parts, fixed, _NUM_ITEMS)
