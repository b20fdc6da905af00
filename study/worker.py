"""Runs trials one after the other until the study, which others may run too, has its total."""

import contextlib
import errno
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from objectives.config import TrialConfig
from objectives.trial import (
    QUALITY,
    DeviceLost,
    DivergedTrial,
    InfeasibleTrial,
    Objective,
    TrialResult,
)
from study import budget
from study.front import Point, objectives_of, point_of
from study.ledger import Ledger
from study.progress import StudyProgress
from study.pruning import Dominated, Pruner
from study.records import REPEATS, RESULT, SPENT, StudyRecord, TrialRecord, read
from study.recovery import checkpoint_of, recover
from study.signals import Stop
from study.space import Space
from study.stopping import is_exhausted
from study.tracking import Tracker
from study.workers import Presence

_SEEDS_APART = 1_000_000
"""Between the seeds of trainings of one configuration, so that no trial of the search has them."""

_MAX_REFUSALS_IN_A_ROW = 1000
"""After so many configurations that do not fit, none of the space is likely to."""

_MAX_FAULTS_IN_A_ROW = 3
"""After so many the machine is not going to mend itself."""

_POLL_SECONDS = 1.0
"""So often a worker looks whether the trials of others leave it one."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class MachineFailedError(Exception):
    """The machine failed trials for reasons that are not theirs, and will go on to."""


class LostTrialError(Exception):
    """Others took this worker for lost, and have its trial now."""


class NothingFitsError(Exception):
    """Very many configurations in a row were predicted to exceed the budget."""


class _Context:
    """What the objective is given; see `objectives.trial.TrialContext`."""

    def __init__(
        self,
        seed: int,
        memory_budget: int,
        checkpoint: Path,
        report: Callable[[int, Mapping[str, float]], None],
        stop: Stop,
    ) -> None:
        self.seed = seed
        self.memory_budget = memory_budget
        self.checkpoint = checkpoint
        self.report = report
        self._stop = stop

    @property
    def leaving(self) -> bool:
        return self._stop.leaving


class Worker:
    """One worker of a study.

    Attributes:
        ledger: The study.
        space: What a trial may vary.
        objective: What runs a trial.
        gate: gate(config, budget) says whether a configuration is near the budget, and raises
            InfeasibleTrial for one that is predicted to exceed it; None: everything runs.
        pruner: Stops trials that will not reach the front; None: all train to their end.
        seed: The study's seed.
        tags: Kept with every trial: card, driver, versions.
        folder: Where running trials keep the state of their training.
        max_retries: How often a trial that the machine failed is tried again.
    """

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        objective: Objective,
        *,
        seed: int,
        tags: Mapping[str, str],
        folder: Path,
        progress: StudyProgress,
        presence: Presence,
        stop: Stop,
        tracker: Tracker | None = None,
        gate: Callable[[TrialConfig, int], bool] | None = None,
        pruner: Pruner | None = None,
        max_retries: int = 2,
    ) -> None:
        self.ledger = ledger
        self.space = space
        self.objective = objective
        self.gate = gate
        self.pruner = pruner
        self.seed = seed
        self.tags = dict(tags)
        self.folder = folder
        self.max_retries = max_retries
        self._study = ledger.study
        self._record: StudyRecord | None = None
        self._budget = int(ledger.identity["memory_budget"])
        self._objectives = objectives_of(ledger.identity)
        self._progress = progress
        self._presence = presence
        self._tracker = tracker
        self._stop = stop

    def run(
        self,
        n_trials: int,
        timeout: float | None = None,
        patience: int | None = None,
        confirm: int = 1,
    ) -> None:
        """Runs trials until the search is over, then repeats those of the front; resumes both.

        Other workers may do the same at the same time; while they have what is left of it, this
        one waits, since they may be lost.

        Args:
            n_trials: Total of the study; configurations that the gate refuses, and repeats, do
                not count.
            timeout: Seconds after which no further trial is started.
            patience: The search is over, too, after so many trials without a gain of the front.
            confirm: Trainings that every configuration of the front is to have, with a seed of
                its own each. Means rank the front anew, and what rises into it is repeated, too.

        Raises:
            MachineFailedError: Several trials in a row failed for the machine's reasons, or it
                cannot go on.
            NothingFitsError: The gate refused very many configurations in a row.
            KeyboardInterrupt: The running trial was handed back.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        faults, waits = 0, False
        while not self._stop.code and (deadline is None or time.monotonic() < deadline):
            with contextlib.ExitStack() as claiming:
                claiming.enter_context(self.ledger.claiming())
                record = self._recovered()
                trial = self._claim(record, n_trials, patience, confirm)
                if trial is not None:
                    fault = self._run_trial(trial, record, claiming)
            if trial is None:
                others = [str(each.number) for each in record.trials if each.outcome == "running"]
                if not others:
                    return
                if not waits:
                    self._progress.say(f"waiting for other workers: trial {', '.join(others)}")
                waits = True
                time.sleep(_POLL_SECONDS)
                continue
            waits = False
            faults = faults + 1 if fault else 0
            if faults == _MAX_FAULTS_IN_A_ROW:
                raise MachineFailedError(
                    f"{faults} trials in a row failed, not by their configuration: {fault}"
                )

    def _read(self) -> StudyRecord:
        self._record = read(self.ledger, known=self._record)
        return self._record

    def _claim(
        self, record: StudyRecord, n_trials: int, patience: int | None, confirm: int
    ) -> optuna.Trial | None:
        """The next trial; None where others have what is left, or nothing is."""
        _refuse_hopeless(record)
        open_ = [trial for trial in record.trials if trial.outcome in ("running", "waiting")]
        searched = [trial for trial in open_ if trial.repeat_of is None]
        waiting = any(trial.outcome == "waiting" for trial in searched)
        running = sum(trial.outcome == "running" for trial in searched)
        has_room = len(record.finished) + running < n_trials
        is_searching = has_room and (waiting or not is_exhausted(record, patience))
        repeats_wait = any(
            trial.outcome == "waiting" and trial.repeat_of is not None for trial in open_
        )
        if not is_searching and not repeats_wait:
            repeated = None if running else record.unconfirmed(confirm)
            if repeated is None:
                return None
            self._queue_repeat(record, repeated)
        trial = self._study.ask()
        trial.set_user_attr("worker", self._presence.worker)
        return trial

    def _queue_repeat(self, record: StudyRecord, repeated: TrialRecord) -> None:
        """Queues another training of a trial's configuration."""
        first = self._study.get_trials(deepcopy=False)[repeated.number]
        trainings = 1 + sum(
            trial.repeat_of == first.number and trial.outcome != "failed"
            for trial in record.trials
        )
        attributes = {
            "seed": first.user_attrs["seed"] + trainings * _SEEDS_APART,
            REPEATS: first.number,
        }
        if SPENT in first.user_attrs:
            attributes[SPENT] = first.user_attrs[SPENT]
        self._study.enqueue_trial(first.params, user_attrs=attributes)

    def _run_trial(
        self, trial: optuna.Trial, record: StudyRecord, claiming: contextlib.ExitStack
    ) -> str:
        """Runs one trial to its end; returns what the machine did wrong, or nothing.

        Args:
            trial: The trial.
            record: The study.
            claiming: Closed as soon as the trial's parameters are known to other workers.
        """
        number = trial.number
        seed = trial.user_attrs.get("seed", self.seed + number)
        checkpoint = checkpoint_of(trial.user_attrs.get("first_try", number), self.folder)
        if "first_try" not in trial.user_attrs:
            # That of a study of the same name, since deleted.
            checkpoint.unlink(missing_ok=True)
        begin = time.perf_counter()
        result: dict[str, Any] = {"tags": {**self.tags, "seed": str(seed)}}
        values: Point | None = None
        try:
            config = self.space.suggest(trial)
            claiming.close()
            if self.space.spent:
                spent = trial.user_attrs.get(SPENT) or self.space.spend(config, self._fits)
                trial.set_user_attr(SPENT, spent)
                config = self.space.with_spent(config, spent)
            result["config"] = config.flat()
            if self.gate is not None:
                self.gate(config, self._budget)
            # From here on it runs: see `TrialRecord.launched`.
            trial.set_user_attr("seed", seed)
            self._progress.started(record, number)
            self._wake()
            # A repeat is there to be compared with the first, whatever it reaches.
            may_stop = REPEATS not in trial.user_attrs
            report = self._reporter(number, config.training.max_epochs if may_stop else 0)
            context = _Context(seed, self._budget, checkpoint, report, self._stop)
            done = self.objective(config, context)
            values = point_of(self._objectives, done.quality, done.peak_memory, done.seconds)
            result |= {**_completed(done), "outcome": "complete"}
        except InfeasibleTrial as error:
            result |= {
                "outcome": "infeasible",
                "reason": error.source,
                "peak_memory": error.peak_bytes,
                "at_least": error.source != "probed",
            }
        except DivergedTrial as error:
            result |= {
                "outcome": "diverged",
                "reason": str(error),
                "peak_memory": error.peak_bytes,
            }
        except optuna.TrialPruned as error:
            result |= {"outcome": "pruned", "reason": str(error)}
            if isinstance(error, Dominated):
                result["expected"] = error.expected
        except KeyboardInterrupt:
            claiming.close()
            self._fail(trial, {**result, "reason": "handed back", "handed_back": True})
            self._progress.say(f"trial {number} is handed back")
            raise
        except (LostTrialError, UpdateFinishedTrialError):
            self._progress.say(f"trial {number} was given to another worker, as if this were lost")
            return ""
        except Exception as error:
            fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
            claiming.close()
            self._fail(trial, {**result, "reason": fault})
            self._ended(number)
            if isinstance(error, DeviceLost) or getattr(error, "errno", 0) in _DISK_FULL:
                raise MachineFailedError(fault) from error
            return fault
        # Where others have the trial by now, theirs counts.
        with contextlib.suppress(UpdateFinishedTrialError):
            if self.ledger.is_running(number):
                self._tell(trial, values, result, time.perf_counter() - begin)
                checkpoint.unlink(missing_ok=True)
        self._ended(number)
        return ""

    def _ended(self, number: int) -> None:
        record = self._read()
        self._progress.ended(record, record.trials[number])
        self._wake()

    def _fits(self, config: TrialConfig) -> bool:
        """Whether a configuration is predicted to fit, and not only just."""
        try:
            return self.gate is None or not self.gate(config, self._budget)
        except InfeasibleTrial:
            return False

    def _tell(
        self,
        trial: optuna.Trial,
        values: Point | None,
        result: dict[str, Any],
        seconds: float,
    ) -> None:
        epochs = self.ledger.epochs(trial.number)
        # Of a recorded run, what it took when it ran.
        trained = sum(epoch.metrics.get("train/epoch_seconds", 0.0) for epoch in epochs)
        seconds = max(seconds, trained)
        result = {"seconds": seconds, "epochs": len(epochs), **result}
        if "peak_memory" not in result and epochs:
            result["peak_memory"] = int(epochs[-1].metrics["memory/peak_bytes"])
        if result.get("peak_memory") is not None:
            trial.set_constraint(
                budget.CONSTRAINT, budget.constraint(result["peak_memory"], self._budget)
            )
        trial.set_user_attr(RESULT, result)
        if values is None:
            self._study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self._study.tell(trial, values, skip_if_finished=True)

    def _fail(self, trial: optuna.Trial, result: dict[str, Any]) -> None:
        """Ends a trial that is to be tried again."""
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr(RESULT, {**result, "outcome": "failed"})
            self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        with self.ledger.claiming():
            self._recovered()

    def _recovered(self) -> StudyRecord:
        """The study, once what is lost or failed is queued again."""
        record, is_lost = self._read(), self._presence.is_lost
        if recover(self.ledger, record, is_lost, self.max_retries, self.folder):
            record = self._read()
        return record

    def _reporter(
        self, number: int, stops_before: int
    ) -> Callable[[int, Mapping[str, float]], None]:
        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            if not self.ledger.record_epoch(number, epoch, metrics):
                raise LostTrialError
            self._progress.epoch(number, epoch, metrics)
            self._wake()
            if self._stop.leaving:
                raise KeyboardInterrupt
            if self.pruner is not None and epoch < stops_before:
                self.pruner.check(number)

        return report

    def _wake(self) -> None:
        if self._tracker is not None:
            self._tracker.wake()


def _completed(done: TrialResult) -> dict[str, Any]:
    return {
        "peak_memory": done.peak_memory,
        "peak_reserved": done.peak_reserved,
        "memory_parts": dict(done.memory_parts),
        "seconds": done.seconds,
        "epochs": done.epochs,
        "best_epoch": done.best_epoch,
        "metrics": {QUALITY: done.quality, **done.metrics},
    }


def _refuse_hopeless(record: StudyRecord) -> None:
    """Raises a NothingFitsError after very many refusals in a row."""
    refused = list(itertools.takewhile(lambda trial: trial.was_refused, reversed(record.trials)))
    if len(refused) >= _MAX_REFUSALS_IN_A_ROW:
        least = min(trial.peak_memory or 0 for trial in refused)
        raise NothingFitsError(
            f"the last {len(refused)} configurations were all predicted to exceed the memory "
            f"budget, the smallest with {budget.format_bytes(least)}: raise it, or narrow the "
            "space"
        )
