"""A study as it stands, read from its storage: what status, best, the report and the app show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from objectives.errors import UserError
from study.front import Point, objectives_of, pareto_front, point_of
from study.ledger import PARENT, Ledger, connect, default_storage, hide_password, sqlite_file

Outcome = Literal["complete", "infeasible", "diverged", "pruned", "failed", "running", "waiting"]

RESULT = "result"
"""User attribute of a trial with all that was measured; see `TrialRecord`."""
SPENT = "spent"
"""User attribute of a trial with what it took of the setting that spends the budget."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: Its number in the study, from 0.
        outcome: How it ended.
        reason: Why, where it did not train to its end.
        params: What the search chose, and what was spent.
        config: Every setting, those fixed included; empty while running.
        quality: Validation NDCG@10; None unless complete.
        peak_memory: Bytes; None where not known.
        at_least: True where the peak is a lower bound.
        peak_reserved: Bytes reserved by the allocator; None without a GPU.
        seconds: Wall time.
        epochs: Epochs trained.
        metrics: Validation and test metrics of the weights that were kept.
        started: When it began.
        finished: When it ended.
        tags: Seed, card, driver and versions that it ran with.
        retry_of: The failed trial that this one repeats.
        mlflow_run: Its run in MLflow, once it has one.
        launched: Whether it has begun to train.
    """

    number: int
    outcome: Outcome
    reason: str
    params: Mapping[str, Any]
    config: Mapping[str, Any]
    quality: float | None
    peak_memory: int | None
    at_least: bool
    peak_reserved: int | None
    seconds: float | None
    epochs: int
    metrics: Mapping[str, float]
    started: datetime | None
    finished: datetime | None
    tags: Mapping[str, str]
    retry_of: int | None
    mlflow_run: str | None
    launched: bool = True

    @property
    def was_refused(self) -> bool:
        """Whether it was predicted to exceed the budget, and never ran."""
        return self.outcome == "infeasible" and self.reason == "predicted"


@dataclass(frozen=True)
class StudyRecord:
    """A study and its trials, by number.

    Attributes:
        name: Its name.
        identity: What it was created with; see `study.run`.
        trials: All trials.
        baseline: Test metrics of recommending the most popular items.
        mlflow_run: The study's own run in MLflow, once it has one.
    """

    name: str
    identity: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    baseline: Mapping[str, float]
    mlflow_run: str | None

    @property
    def budget(self) -> int:
        """The memory budget in bytes."""
        return int(self.identity["memory_budget"])

    @property
    def finished(self) -> list[TrialRecord]:
        """Trials that count towards the total: all that ran and ended by their own doing."""
        uncounted = ("failed", "running", "waiting")
        return [
            trial
            for trial in self.trials
            if trial.outcome not in uncounted and not trial.was_refused
        ]

    @property
    def refused(self) -> list[TrialRecord]:
        """Trials that were predicted to exceed the budget, and never ran."""
        return [trial for trial in self.trials if trial.was_refused]

    @property
    def complete(self) -> list[TrialRecord]:
        """Trials that trained to their end within the budget."""
        return [trial for trial in self.trials if trial.outcome == "complete"]

    @property
    def objectives(self) -> list[str]:
        """What it searches for; see `study.front`."""
        return objectives_of(self.identity)

    def point(self, trial: TrialRecord) -> Point:
        """A complete trial's values of the objectives."""
        assert trial.quality is not None
        seconds = math.inf if trial.seconds is None else trial.seconds
        return point_of(self.objectives, trial.quality, _memory(trial), seconds)

    @property
    def limits(self) -> list[float]:
        """Up to where the hypervolume goes: the budget, and the time of the longest trial."""
        longest = max((trial.seconds or 0.0 for trial in self.complete), default=0.0)
        limits = {"memory": float(self.budget), "time": longest or 1.0}
        return [limits[name] for name in self.objectives if name in limits]

    def front(self) -> list[TrialRecord]:
        """Complete trials that no other beats in all objectives, by rising memory, or time."""
        # Of trials that are equal in the objectives, the one of less memory.
        complete = sorted(self.complete, key=_memory)
        return [complete[index] for index in pareto_front(list(map(self.point, complete)))]

    def best(self, budget: int | None = None, seconds: float = math.inf) -> TrialRecord | None:
        """The best complete trial within limits.

        Args:
            budget: Bytes of its peak (default: the study's budget).
            seconds: What it took at most.
        """
        limit = self.budget if budget is None else budget
        inside = [
            trial
            for trial in sorted(self.complete, key=_memory)
            if _memory(trial) <= limit and (trial.seconds or 0.0) <= seconds
        ]
        return max(inside, key=lambda trial: trial.quality or 0.0, default=None)


def _memory(trial: TrialRecord) -> int:
    assert trial.peak_memory is not None
    return trial.peak_memory


def read(ledger: Ledger) -> StudyRecord:
    """The study as it stands."""
    runs = {number: run.run_id for number, run in ledger.runs().items()}
    trials = ledger.study.get_trials(deepcopy=False)
    return StudyRecord(
        ledger.study.study_name,
        ledger.identity,
        tuple(_trial(trial, runs.get(trial.number)) for trial in trials),
        ledger.study.user_attrs.get("baseline", {}),
        runs.get(PARENT),
    )


def _trial(trial: FrozenTrial, mlflow_run: str | None) -> TrialRecord:
    result = trial.user_attrs.get(RESULT, {})
    outcome: Outcome = {
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
        TrialState.FAIL: "failed",
    }.get(trial.state, result.get("outcome", "pruned"))
    return TrialRecord(
        number=trial.number,
        outcome=outcome,
        reason=result.get("reason", ""),
        params={**trial.params, **trial.user_attrs.get(SPENT, {})},
        config=result.get("config", {}),
        quality=trial.values[0] if trial.values else None,
        peak_memory=result.get("peak_memory"),
        at_least=result.get("at_least", False),
        peak_reserved=result.get("peak_reserved"),
        seconds=result.get("seconds"),
        epochs=result.get("epochs", 0),
        metrics=result.get("metrics", {}),
        started=trial.datetime_start,
        finished=trial.datetime_complete,
        tags=result.get("tags", {}),
        retry_of=trial.user_attrs.get("retry_of"),
        mlflow_run=mlflow_run,
        launched="seed" in trial.user_attrs,
    )


def find(study: str | None, storage: str | None, output_dir: Path) -> Ledger:
    """The study that a command means; without a name, the only one there is.

    Raises:
        UserError: There is none, or several; those that exist are listed.
    """
    if storage is None:
        names = sorted(path.parent.name for path in output_dir.glob("*/study.db"))
        where = f"{output_dir}/"
    else:
        file = sqlite_file(storage)
        if file is not None and not file.is_file():
            raise UserError(f"--storage {storage}: there is no such file")
        database = connect(storage)
        names = sorted(optuna.get_all_study_names(database))
        where = hide_password(storage)
    if not names:
        raise UserError(f"{where}: there is no study; start one with python -m study.run")
    if study is None and len(names) > 1:
        raise UserError(f"{where}: choose one with --study from: {', '.join(names)}")
    name = study or names[0]
    if name not in names:
        raise UserError(f"--study {name}: not in {where}, which has: {', '.join(names)}")
    if storage is None:
        database = connect(default_storage(output_dir, name))
    ledger = Ledger.open(database, name)
    if ledger is None:
        raise UserError(f"--study {name}: {where} holds a study of another name")
    return ledger
