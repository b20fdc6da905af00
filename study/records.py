"""A study as it stands, read from its storage: what status, best, the report and the app show."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna

from objectives.errors import UserError
from study.credentials import hide_password
from study.front import Point, objectives_of, pareto_front, point_of
from study.ledger import PARENT, Ledger, connect, default_storage, sqlite_file
from study.patience import ridden_out
from study.stored import StoredTrial, stored_trials

Outcome = Literal["complete", "infeasible", "diverged", "pruned", "failed", "running", "waiting"]

RESULT = "result"
"""User attribute of a trial with all that was measured; see `TrialRecord`."""
SPENT = "spent"
"""User attribute of a trial with what it took of the setting that spends the budget."""
REPEATS = "repeats"
"""User attribute of a trial with the number of the trial whose configuration it trains again."""


_UNFINISHED: dict[str, Outcome] = {"RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}


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
        best_epoch: The one whose weights were kept, from 1; 0 where none was.
        metrics: Validation and test metrics of the weights that were kept.
        started: When it began.
        finished: When it ended.
        tags: Seed, card, driver and versions that it ran with.
        retry_of: The failed trial that this one repeats.
        retries: How often it was tried before, for the machine's faults.
        first_try: Number of the first of these tries, or its own.
        handed_back: Whether its worker gave it back, which is nobody's fault.
        mlflow_run: Its run in MLflow, once it has one.
        launched: Whether it has begun to train.
        repeat_of: The trial whose configuration this one trains again, with another seed.
        trainings: How many trainings its figures are of; see `StudyRecord.configurations`.
        spread: Standard deviation of their quality; None of a single one.
        qualities: The quality of each of several trainings; empty of a single one.
        worker: The process that it ran in: host, process id and when that began.
        memory_parts: Bytes of each part of the predicted peak; empty where none was predicted.
        curve: Validation NDCG@10 of each epoch, from 1; empty unless asked for.
    """

    number: int
    outcome: Outcome
    reason: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    quality: float | None = None
    peak_memory: int | None = None
    at_least: bool = False
    peak_reserved: int | None = None
    seconds: float | None = None
    epochs: int = 0
    best_epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    started: datetime | None = None
    finished: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    retry_of: int | None = None
    retries: int = 0
    first_try: int = 0
    handed_back: bool = False
    mlflow_run: str | None = None
    launched: bool = True
    repeat_of: int | None = None
    trainings: int = 1
    spread: float | None = None
    qualities: tuple[float, ...] = ()
    worker: str = ""
    memory_parts: Mapping[str, int] = field(default_factory=dict)
    curve: tuple[float, ...] = ()

    @property
    def quality_text(self) -> str:
        """Quality for people: of several trainings with its standard deviation."""
        return spread_text(self.quality, self.spread, self.trainings)

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
        """Trials that count towards the total: all that ran and ended by their own doing.

        Repeats do not count.
        """
        uncounted = ("failed", "running", "waiting")
        return [
            trial
            for trial in self.trials
            if trial.outcome not in uncounted and not trial.was_refused and trial.repeat_of is None
        ]

    @property
    def refused(self) -> list[TrialRecord]:
        """Trials that were predicted to exceed the budget, and never ran."""
        return [trial for trial in self.trials if trial.was_refused]

    @property
    def repeats(self) -> list[TrialRecord]:
        """Trials that train a configuration again."""
        return [trial for trial in self.trials if trial.repeat_of is not None]

    @property
    def open_failures(self) -> list[TrialRecord]:
        """Failed trials that have not been tried again, though they had begun to train."""
        again = {trial.retry_of for trial in self.trials}
        return [
            trial
            for trial in self.trials
            if trial.outcome == "failed" and trial.launched and trial.number not in again
        ]

    @property
    def configurations(self) -> list[TrialRecord]:
        """The trials without repeats; one that was repeated has the figures of all its trainings.

        Its quality, metrics and seconds are means, its peak memory the largest. If a training did
        not reach its end, the configuration has that one's outcome and no quality: it does not
        train reliably within the budget.
        """
        ended = ("complete", "infeasible", "diverged", "pruned")
        repeats: dict[int | None, list[TrialRecord]] = {}
        for trial in self.trials:
            if trial.outcome in ended:
                repeats.setdefault(trial.repeat_of, []).append(trial)
        return [
            _combined([trial, *repeats[trial.number]]) if trial.number in repeats else trial
            for trial in self.trials
            if trial.repeat_of is None
        ]

    @property
    def complete(self) -> list[TrialRecord]:
        """Configurations that trained to their end within the budget, every time."""
        return [trial for trial in self.configurations if trial.outcome == "complete"]

    @cached_property
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

    def unconfirmed(self, trainings: int) -> TrialRecord | None:
        """The first trial of the front with fewer trainings than that, begun ones included."""
        begun = Counter(
            trial.repeat_of for trial in self.repeats if trial.outcome in ("running", "waiting")
        )
        return next(
            (trial for trial in self.front() if trial.trainings + begun[trial.number] < trainings),
            None,
        )

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


def _combined(trainings: Sequence[TrialRecord]) -> TrialRecord:
    """One configuration of several trainings, the first of which gives it its number."""
    first = trainings[0]
    peak_memory = max(trial.peak_memory or 0 for trial in trainings)
    for trial in trainings:
        if trial.outcome != "complete":
            return replace(
                first,
                outcome=trial.outcome,
                reason=f"trained again as trial {trial.number}: {trial.reason}",
                quality=None,
                peak_memory=peak_memory,
                at_least=trial.at_least,
            )
    qualities = [trial.quality for trial in trainings if trial.quality is not None]
    return replace(
        first,
        quality=statistics.fmean(qualities),
        spread=statistics.stdev(qualities),
        qualities=tuple(qualities),
        trainings=len(trainings),
        peak_memory=peak_memory,
        seconds=statistics.fmean(trial.seconds or 0 for trial in trainings),
        metrics={
            name: statistics.fmean(trial.metrics[name] for trial in trainings)
            for name in first.metrics
            if all(name in trial.metrics for trial in trainings)
        },
    )


def spread_text(quality: float | None, spread: float | None, trainings: int) -> str:
    """Quality for people: of several trainings mean and standard deviation."""
    if spread is None:
        return f"{quality:.4f}"
    return f"{quality:.4f} ± {spread:.4f} ({trainings} trainings)"


def _memory(trial: TrialRecord) -> int:
    assert trial.peak_memory is not None
    return trial.peak_memory


@ridden_out
def read(ledger: Ledger, *, curves: bool = False, known: StudyRecord | None = None) -> StudyRecord:
    """The study as it stands.

    Args:
        ledger: The study.
        curves: Whether to read what every trial reached after each epoch, too.
        known: What was read before: trials that had ended are not read again.
    """
    runs = {number: run.run_id for number, run in ledger.runs().items()}
    reached = ledger.curves() if curves else {}
    trials = {
        trial.number: trial
        for trial in (known.trials if known else ())
        if trial.outcome not in ("running", "waiting")
    }
    for number, trial in trials.items():
        run, curve = runs.get(number), reached.get(number, ())
        if (trial.mlflow_run, trial.curve) != (run, curve):
            trials[number] = replace(trial, mlflow_run=run, curve=curve)
    name = ledger.study.study_name
    with ledger.engine.connect() as connection:
        for stored in stored_trials(connection, name, trials):
            curve = reached.get(stored.number, ())
            trials[stored.number] = _trial(stored, runs.get(stored.number), curve)
    return StudyRecord(
        name,
        ledger.identity,
        tuple(trials[number] for number in sorted(trials)),
        ledger.baseline,
        runs.get(PARENT),
    )


def _trial(trial: StoredTrial, mlflow_run: str | None, curve: tuple[float, ...]) -> TrialRecord:
    attributes = trial.attributes
    result = attributes.get(RESULT, {})
    outcome: Outcome = _UNFINISHED.get(trial.state, result.get("outcome", "pruned"))
    return TrialRecord(
        number=trial.number,
        outcome=outcome,
        reason=result.get("reason", "its worker was lost" if outcome == "failed" else ""),
        params={**trial.params, **attributes.get(SPENT, {})},
        config=result.get("config", {}),
        quality=trial.quality,
        peak_memory=result.get("peak_memory"),
        at_least=result.get("at_least", False),
        peak_reserved=result.get("peak_reserved"),
        seconds=result.get("seconds"),
        epochs=result.get("epochs", 0),
        best_epoch=result.get("best_epoch", 0),
        metrics=result.get("metrics", {}),
        started=trial.started,
        finished=trial.finished,
        tags=result.get("tags", {}),
        retry_of=attributes.get("retry_of"),
        retries=attributes.get("retries", 0),
        first_try=attributes.get("first_try", trial.number),
        handed_back=result.get("handed_back", False),
        mlflow_run=mlflow_run,
        launched="seed" in attributes,
        repeat_of=attributes.get(REPEATS),
        worker=attributes.get("worker", ""),
        memory_parts=result.get("memory_parts", {}),
        curve=curve,
    )


def study_names(storage: str | None, output_dir: Path) -> tuple[list[str], str]:
    """The studies that there are, and where.

    Raises:
        UserError: The storage is a file that does not exist, or cannot be used.
    """
    if storage is None:
        return sorted(path.parent.name for path in output_dir.glob("*/study.db")), f"{output_dir}/"
    file = sqlite_file(storage)
    if file is not None and not file.is_file():
        raise UserError(f"--storage {hide_password(storage)}: there is no such file")
    return sorted(optuna.get_all_study_names(connect(storage))), hide_password(storage)


def find(study: str | None, storage: str | None, output_dir: Path) -> Ledger:
    """The study that a command means; without a name, the only one there is.

    Raises:
        UserError: There is none, or several; those that exist are listed.
    """
    names, where = study_names(storage, output_dir)
    if not names:
        raise UserError(f"{where}: there is no study; start one with python -m study.run")
    if study is None and len(names) > 1:
        raise UserError(f"{where}: choose one with --study from: {', '.join(names)}")
    name = study or names[0]
    if name not in names:
        raise UserError(f"--study {name}: not in {where}, which has: {', '.join(names)}")
    ledger = Ledger.open(connect(storage or default_storage(output_dir, name)), name)
    if ledger is None:
        raise UserError(f"--study {name}: {where} holds a study of another name")
    return ledger
