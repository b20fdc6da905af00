"""Workers in processes of their own, for tests that kill them."""

import io
import multiprocessing
import time
from datetime import datetime, timedelta, tzinfo
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
from rich.console import Console

import study.ledger
import study.workers
from objectives.config import TrialConfig
from objectives.trial import QUALITY, TrialContext, TrialResult
from study.ledger import Ledger, connect
from study.progress import StudyProgress
from study.sampling import build_sampler
from study.signals import Stop
from study.space import build_space
from study.worker import Worker
from study.workers import Presence

_EPOCHS = 3


def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
    """A few epochs of some milliseconds; what it reaches follows from the configuration."""
    peak = config.training.batch_size * 1000
    for epoch in range(1, _EPOCHS + 1):
        time.sleep(0.01)
        quality = epoch / _EPOCHS / config.training.batch_size
        context.report(epoch, {QUALITY: quality, "memory/peak_bytes": peak})
    return TrialResult(quality=quality, peak_memory=peak, seconds=0.03, epochs=_EPOCHS)


def work(url: str, name: str, n_trials: int, folder: str, hours_ahead: float) -> None:
    """Works on a study until it has its total, by a clock that is so far ahead."""
    shift = timedelta(hours=hours_ahead)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return super().now(tz) + shift

    for module in (optuna.storages._rdb.storage, study.ledger, study.workers):
        module.datetime = Clock  # type: ignore[attr-defined]
    ledger = Ledger.open(connect(url), name)
    assert ledger is not None
    presence = Presence(ledger, "cpu", lambda order: None)
    space = build_space({}, num_items=1000, num_sequences=500)
    ledger.study.sampler = build_sampler("random", presence.ordinal, 0, space)
    progress = StudyProgress(n_trials, Console(file=io.StringIO()), live=False)
    stop = Stop(progress.say)
    worker = Worker(
        ledger,
        space,
        objective,
        seed=0,
        tags={"device": "cpu"},
        folder=Path(folder),
        progress=progress,
        presence=presence,
        stop=stop,
        max_retries=100,
    )
    with stop.listening(), presence:
        worker.run(n_trials)


class Crew:
    """Starts workers of a study; the imports are done once for all of them."""

    def __init__(self, url: str, name: str, n_trials: int, folder: Path) -> None:
        self._arguments = (url, name, n_trials, str(folder))
        self.processes: list[BaseProcess] = []

    def start(self, count: int = 1, hours_ahead: float = 0.0) -> None:
        """So many more, with clocks that are so far ahead."""
        for _ in range(count):
            process = _context().Process(target=work, args=(*self._arguments, hours_ahead))
            process.start()
            self.processes.append(process)

    def join(self) -> list[int | None]:
        """Waits for all; their exit codes."""
        for process in self.processes:
            process.join(120)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """Ends what is left."""
        for process in self.processes:
            process.kill()
            process.join()


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
