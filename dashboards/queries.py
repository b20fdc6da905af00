"""What the figures and the report need of a study, computed once; pure."""

import math
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, TypeGuard

from study.best import as_toml
from study.budget import format_bytes
from study.credentials import hide_password
from study.progress import short
from study.records import StudyRecord, TrialRecord, spread_text
from study.stopping import expected_gain, hypervolumes

Group = Literal[
    "front",
    "best",
    "dominated",
    "infeasible",
    "diverged",
    "pruned",
    "failed",
    "running",
    "waiting",
]
"""How a trial is drawn: its outcome, complete ones told apart by the front, or the best one."""

WORDS: dict[Group, str] = {
    "front": "on the front",
    "best": "best",
    "dominated": "dominated",
    "infeasible": "over budget",
    "diverged": "diverged",
    "pruned": "pruned",
    "failed": "failed",
    "running": "running",
    "waiting": "waiting",
}
"""The groups for people, in the order in which they are drawn and listed."""


@dataclass(frozen=True)
class TrialView:
    """One trial, with the figures of all its trainings if it was repeated.

    Attributes:
        number: Its number in the study, from 0.
        group: How it is drawn.
        quality: Validation NDCG@10; a finite number if complete, else None.
        spread: Standard deviation of the quality of several trainings; None of a single one.
        trainings: How many trainings its figures are of.
        memory: Peak memory in bytes; None where not known, never if complete.
        at_least: True where the peak is a lower bound.
        seconds: Wall time; None where not known.
        params: What the search chose.
        metrics: Validation and test metrics that are finite numbers.
        reason: Why it did not train to its end.
        run: Its run in MLflow; None without one.
        run_url: Where the run can be seen; None unless the tracking store is a server.
        config: Every setting, those fixed included; empty while running.
        memory_parts: Bytes of each part of the predicted peak; empty where none was predicted.
        qualities: The quality of each of several trainings; empty of a single one.
        curve: Validation NDCG@10 of each epoch, from 1; empty unless read with curves.
        started: When it began.
        finished: When it ended.
        worker: The process that it ran in.
        toml: What `study.run --config` trains it by; empty unless on the front.
    """

    number: int
    group: Group
    quality: float | None
    spread: float | None
    trainings: int
    memory: int | None
    at_least: bool
    seconds: float | None
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    reason: str
    run: str | None
    run_url: str | None
    config: Mapping[str, Any] = field(default_factory=dict)
    memory_parts: Mapping[str, int] = field(default_factory=dict)
    qualities: tuple[float, ...] = ()
    curve: tuple[float, ...] = ()
    started: datetime | None = None
    finished: datetime | None = None
    worker: str = ""
    toml: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is neither running nor waiting."""
        return self.group not in ("running", "waiting")

    @property
    def loss(self) -> str:
        """The loss that it trains with; empty where not known."""
        return str(self.config.get("loss", self.params.get("loss", "")))

    @property
    def quality_text(self) -> str:
        """Quality for people."""
        return spread_text(self.quality, self.spread, self.trainings)

    @property
    def memory_text(self) -> str:
        """Peak memory for people."""
        if self.memory is None:
            return "not known"
        return ("at least " if self.at_least else "") + format_bytes(self.memory)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What is known of the trial, as pairs of a name and a text; nothing is escaped."""
        facts = []
        if self.quality is not None:
            facts.append(("NDCG@10, validation", self.quality_text))
        if "test/ndcg_at_10" in self.metrics:
            facts.append(("NDCG@10, test", f"{self.metrics['test/ndcg_at_10']:.4f}"))
        facts.append(("peak memory", self.memory_text))
        if self.seconds is not None:
            facts.append(("seconds", f"{self.seconds:.1f}"))
        facts += [(name, short(value)) for name, value in self.params.items()]
        if self.reason:
            facts.append(("why", self.reason))
        if self.run is not None:
            facts.append(("MLflow run", self.run))
        return facts


@dataclass(frozen=True)
class Moment:
    """How far the study was when a trial had finished.

    Attributes:
        number: The trial's number.
        best: Best validation NDCG@10 up to it; None before the first complete trial.
        hypervolume: That of the front up to it; see `study.front.hypervolume`.
    """

    number: int
    best: float | None
    hypervolume: float


@dataclass(frozen=True)
class StudyView:
    """A study as it is drawn.

    Attributes:
        name: Its name.
        data: The data set's name.
        split: How the data is split.
        objectives: What it searches for; see `study.front`.
        budget: The memory budget in bytes.
        memory_source: "cuda" or "tracked"; see `objectives.trial.MemorySource`.
        open: The parameters that the search chooses.
        space: All settings: a list where open.
        trials: All trials but repeats, by number.
        front: Those on the Pareto front, by rising memory or time; the best if quality is alone.
        best: The best one within the budget; None while there is none.
        history: A moment per finished trial, by number.
        expected_gain: What as many trials again may add to the hypervolume, as a share; None where
            nothing can be said.
        baseline: Test NDCG@10 of recommending the most popular items; None where not known.
        tracking_store: URI of MLflow's store, without credentials.
    """

    name: str
    data: str
    split: str
    objectives: tuple[str, ...]
    budget: int
    memory_source: str
    open: tuple[str, ...]
    space: Mapping[str, Any]
    trials: tuple[TrialView, ...]
    front: tuple[TrialView, ...]
    best: TrialView | None
    history: tuple[Moment, ...]
    expected_gain: float | None
    baseline: float | None
    tracking_store: str

    @property
    def complete(self) -> list[TrialView]:
        """Trials with a quality, by number."""
        return [trial for trial in self.trials if trial.quality is not None]

    @property
    def qualities(self) -> list[float]:
        """The validation NDCG@10 of the complete trials, by number."""
        return [trial.quality for trial in self.trials if trial.quality is not None]

    @property
    def timed(self) -> list[TrialView]:
        """Complete trials whose time is known, by number."""
        return [trial for trial in self.complete if trial.seconds is not None]

    @property
    def measured(self) -> list[TrialView]:
        """Trials whose peak memory is known, by number."""
        return [trial for trial in self.trials if trial.memory is not None]

    def of(self, group: Group) -> list[TrialView]:
        """Trials of a group, by number."""
        return [trial for trial in self.trials if trial.group == group]


def build_view(record: StudyRecord, tracking_store: str) -> StudyView:
    """The view of a study whose runs are in an MLflow store of that URI."""
    sound = replace(record, trials=tuple(map(_with_sound_numbers, record.trials)))
    record = replace(sound, trials=tuple(sound.configurations))
    store = hide_password(tracking_store)
    # Half-written trials have no seed yet.
    tomls = {
        trial.number: as_toml(record, trial) if "seed" in trial.tags else ""
        for trial in record.front()
    }
    chosen: Group = "front" if len(record.objectives) > 1 else "best"
    trials = {trial.number: _trial(trial, tomls, chosen, store) for trial in record.trials}
    best = record.best()
    identity = record.identity
    baseline = record.baseline.get("ndcg_at_10")
    return StudyView(
        name=record.name,
        data=identity["data"]["name"],
        split=identity["data"]["split"],
        objectives=tuple(record.objectives),
        budget=record.budget,
        memory_source=identity["memory_source"],
        open=tuple(identity["open"]),
        space=identity["space"],
        trials=tuple(trials.values()),
        front=tuple(trials[number] for number in tomls),
        best=None if best is None else trials[best.number],
        history=tuple(_history(record)),
        expected_gain=expected_gain(sound),
        baseline=baseline if _is_number(baseline) else None,
        tracking_store=store,
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_numbers(values: Iterable[Any]) -> bool:
    """The same of many, in a fifth of the time."""
    try:
        return all(map(math.isfinite, values))
    except TypeError:
        return False


def _with_sound_numbers(trial: TrialRecord) -> TrialRecord:
    """The trial without numbers that cannot be drawn; without a sound quality it has diverged."""
    memory = int(trial.peak_memory) if _is_number(trial.peak_memory) else None
    seconds = trial.seconds if _is_number(trial.seconds) else None
    metrics = trial.metrics
    if not _are_numbers(metrics.values()):
        metrics = {name: value for name, value in metrics.items() if _is_number(value)}
    sound = trial
    if (memory, seconds) != (trial.peak_memory, trial.seconds) or metrics is not trial.metrics:
        sound = replace(trial, peak_memory=memory, seconds=seconds, metrics=metrics)
    if trial.outcome != "complete" or (_is_number(trial.quality) and memory is not None):
        return sound
    missing = "its quality is not a finite number" if memory else "its peak memory is not known"
    return replace(sound, outcome="diverged", reason=missing)


def _trial(trial: TrialRecord, tomls: Mapping[int, str], chosen: Group, store: str) -> TrialView:
    group: Group
    if trial.outcome == "complete":
        group = chosen if trial.number in tomls else "dominated"
    else:
        group = trial.outcome
    return TrialView(
        number=trial.number,
        group=group,
        quality=trial.quality if trial.outcome == "complete" else None,
        spread=trial.spread,
        trainings=trial.trainings,
        memory=trial.peak_memory,
        at_least=trial.at_least,
        seconds=trial.seconds,
        params=trial.params,
        metrics=trial.metrics,
        reason=trial.reason,
        run=trial.mlflow_run,
        run_url=_run_url(store, trial.mlflow_run),
        config=trial.config,
        memory_parts=trial.memory_parts,
        qualities=trial.qualities,
        curve=trial.curve,
        started=trial.started,
        finished=trial.finished,
        worker=trial.worker,
        toml=tomls.get(trial.number, ""),
    )


def _run_url(store: str, run: str | None) -> str | None:
    if run is None or urllib.parse.urlsplit(store).scheme not in ("http", "https"):
        return None
    # MLflow finds the experiment of a run by itself behind this address.
    return f"{store.rstrip('/')}/#/runs/{urllib.parse.quote(run, safe='')}"


def _history(record: StudyRecord) -> Iterator[Moment]:
    best: float | None = None
    for trial, volume in zip(record.finished, hypervolumes(record), strict=True):
        if trial.quality is not None and trial.outcome == "complete":
            best = trial.quality if best is None else max(best, trial.quality)
        yield Moment(trial.number, best, volume)
