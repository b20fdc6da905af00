"""Runs trials one after the other until the study has its total."""

import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from objectives.config import TrialConfig
from objectives.errors import UserError
from objectives.trial import (
    QUALITY,
    DivergedTrial,
    InfeasibleTrial,
    Objective,
    TrialResult,
)
from study import budget, cli
from study.front import Point, objectives_of, point_of
from study.ledger import Ledger
from study.progress import StudyProgress
from study.pruning import Dominated, Pruner
from study.records import REPEATS, RESULT, SPENT, StudyRecord, TrialRecord, read
from study.space import Space
from study.stopping import is_exhausted
from study.tracking import Tracker

_MAX_RETRIES = 2
"""How often a trial that the machine failed is tried again."""

_SEEDS_APART = 1_000_000
"""Between the seeds of trainings of one configuration, so that no trial of the search has them."""

_MAX_REFUSALS_IN_A_ROW = 1000
"""After so many configurations that do not fit, none of the space is likely to."""

_MAX_FAULTS_IN_A_ROW = 3
"""After so many the machine is not going to mend itself."""


class MachineFailedError(Exception):
    """Several trials in a row failed for reasons that are not theirs."""


class NothingFitsError(Exception):
    """Very many configurations in a row were predicted to exceed the budget."""


class Stop:
    """Whether the user has asked to stop; 0 is no, else the exit code.

    The first Ctrl-C or SIGTERM lets the running trial end; the second ends it at once.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.code = 0
        self._say = say

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals within the block."""
        previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.code:
            raise KeyboardInterrupt
        self.code = cli.INTERRUPTED if number == signal.SIGINT else cli.TERMINATED
        self._say("stopping once the running trial has ended; again to stop at once")


class _Context:
    """What the objective is given; see `objectives.trial.TrialContext`."""

    def __init__(
        self,
        seed: int,
        memory_budget: int,
        checkpoint: Path,
        report: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self.seed = seed
        self.memory_budget = memory_budget
        self.checkpoint = checkpoint
        self.report = report


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
        tracker: Tracker | None,
        stop: Stop,
        gate: Callable[[TrialConfig, int], bool] | None = None,
        pruner: Pruner | None = None,
    ) -> None:
        self.ledger = ledger
        self.space = space
        self.objective = objective
        self.gate = gate
        self.pruner = pruner
        self.seed = seed
        self.tags = dict(tags)
        self.folder = folder
        self._study = ledger.study
        self._budget = int(ledger.identity["memory_budget"])
        self._objectives = objectives_of(ledger.identity)
        self._progress = progress
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

        Args:
            n_trials: Total of the study; configurations that the gate refuses, and repeats, do
                not count.
            timeout: Seconds after which no further trial is started.
            patience: The search is over, too, after so many trials without a gain of the front.
            confirm: Trainings that every configuration of the front is to have, with a seed of
                its own each. Means rank the front anew, and what rises into it is repeated, too.

        Raises:
            MachineFailedError: Several trials in a row failed for the machine's reasons.
            NothingFitsError: The gate refused very many configurations in a row.
            KeyboardInterrupt: The user stopped it at once; the running trial will be retried.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        recover_lost(self.ledger)
        faults = 0
        while not self._stop.code and (deadline is None or time.monotonic() < deadline):
            record = read(self.ledger)
            if len(record.finished) >= n_trials or is_exhausted(record, patience):
                trial = record.unconfirmed(confirm)
                if trial is None:
                    return
                self._queue_repeat(record, trial)
            refused = list(
                itertools.takewhile(lambda trial: trial.was_refused, reversed(record.trials))
            )
            if len(refused) >= _MAX_REFUSALS_IN_A_ROW:
                least = min(trial.peak_memory or 0 for trial in refused)
                raise NothingFitsError(
                    f"the last {len(refused)} configurations were all predicted to exceed the "
                    f"memory budget, the smallest with {budget.format_bytes(least)}: raise it, or "
                    "narrow the space"
                )
            fault = self._run_trial(record)
            faults = faults + 1 if fault else 0
            if faults == _MAX_FAULTS_IN_A_ROW:
                raise MachineFailedError(
                    f"{faults} trials in a row failed, not by their configuration: {fault}"
                )

    def _queue_repeat(self, record: StudyRecord, repeated: TrialRecord) -> None:
        """Queues another training of a trial's configuration, unless something waits already."""
        if any(trial.outcome == "waiting" for trial in record.trials):
            return
        first = self._study.trials[repeated.number]
        attributes = {
            "seed": first.user_attrs["seed"] + repeated.trainings * _SEEDS_APART,
            REPEATS: first.number,
        }
        if SPENT in first.user_attrs:
            attributes[SPENT] = first.user_attrs[SPENT]
        self._study.enqueue_trial(first.params, user_attrs=attributes)

    def _run_trial(self, record: StudyRecord) -> str:
        """Runs one trial to its end; returns what the machine did wrong, or nothing."""
        trial = self._study.ask()
        number = trial.number
        trial.set_user_attr("worker", _this_process())
        seed = trial.user_attrs.get("seed", self.seed + number)
        checkpoint = self.folder / f"trial-{trial.user_attrs.get('first_try', number)}.pt"
        if "first_try" not in trial.user_attrs:
            # That of a study of the same name, since deleted.
            checkpoint.unlink(missing_ok=True)
        begin = time.perf_counter()
        result: dict[str, Any] = {"tags": {**self.tags, "seed": str(seed)}}
        values: Point | None = None
        fault = ""
        try:
            config = self.space.suggest(trial)
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
            context = _Context(seed, self._budget, checkpoint, report)
            done = self.objective(config, context)
            values = point_of(self._objectives, done.quality, done.peak_memory, done.seconds)
            result |= _completed(done)
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
            self._fail(trial, {**result, "reason": "stopped by the user"}, checkpoint)
            raise
        except Exception as error:
            fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._fail(trial, {**result, "reason": fault}, checkpoint)
        else:
            result["outcome"] = "complete"
        if not fault:
            self._tell(trial, values, result, time.perf_counter() - begin)
            checkpoint.unlink(missing_ok=True)
        record = read(self.ledger)
        self._progress.ended(record, record.trials[number])
        self._wake()
        return fault

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
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, values)

    def _fail(self, trial: optuna.Trial, result: dict[str, Any], checkpoint: Path) -> None:
        trial.set_user_attr(RESULT, {**result, "outcome": "failed"})
        self._study.tell(trial, state=TrialState.FAIL)
        if not retry(self.ledger, self._study.trials[trial.number]):
            checkpoint.unlink(missing_ok=True)

    def _reporter(
        self, number: int, stops_before: int
    ) -> Callable[[int, Mapping[str, float]], None]:
        def report(epoch: int, metrics: Mapping[str, float]) -> None:
            self.ledger.record_epoch(number, epoch, metrics)
            self._progress.epoch(number, epoch, metrics)
            self._wake()
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


def retry(ledger: Ledger, failed: FrozenTrial) -> bool:
    """Queues a failed trial again, with its parameters, seed, checkpoint and MLflow run.

    A trial that failed too often is given up.

    Optuna's own callback would carry the constraints over, which can be set only once.
    """
    retries = failed.user_attrs.get("retries", 0)
    if "seed" not in failed.user_attrs or retries >= _MAX_RETRIES:
        return False
    ledger.study.enqueue_trial(
        failed.params,
        user_attrs={
            **{
                name: failed.user_attrs[name]
                for name in ("seed", SPENT, REPEATS)
                if name in failed.user_attrs
            },
            "retries": retries + 1,
            "retry_of": failed.number,
            "first_try": failed.user_attrs.get("first_try", failed.number),
        },
    )
    return True


def recover_lost(ledger: Ledger) -> None:
    """Fails and queues again the trials whose process on this machine is gone.

    Raises:
        UserError: Another process is running the study.
    """
    for trial in ledger.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get("worker", "")
        if owner and _is_alive(owner):
            raise UserError(
                f"--study {ledger.study.study_name}: process {owner} is running it; wait for "
                "it or stop it"
            )
        ledger.study.tell(trial.number, state=TrialState.FAIL)
        retry(ledger, trial)


def _this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def _is_alive(owner: str) -> bool:
    """Whether the process exists; one of another host is taken to."""
    host, pid, created = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(int(pid)).create_time() - float(created)) < 1)
    except psutil.NoSuchProcess:
        return False
