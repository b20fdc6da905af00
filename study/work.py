"""One process's part of a study: the study itself, its sampler, and a worker."""

import os
import signal
from functools import partial

from objectives.errors import UserError
from objectives.trial import DeviceLost
from study import cli
from study.ledger import TOTAL, default_storage
from study.opening import open_study
from study.progress import StudyProgress
from study.pruning import Pruner
from study.records import read
from study.sampling import GridSampler, build_sampler, choose_sampler
from study.signals import Stop
from study.spec import StudySpec
from study.subject import Subject
from study.tracking import Tracker
from study.worker import MachineFailedError, NothingFitsError, Worker
from study.workers import Order, Presence


class Work:
    """One process's part of a study.

    Attributes:
        name: The study's name.
        ledger: The study.
        total: Trials that it is to have.
        sources: Finished studies that the search starts from.
        code: 0, or the exit code of what stopped it.
        start_again: Whether another process can do what this one cannot any more.
        handed_back: Whether it left a trial before its end.
    """

    def __init__(self, spec: StudySpec, subject: Subject) -> None:
        """Opens the study, or makes it.

        Raises:
            UserError: It cannot be worked on as asked.
        """
        objective = subject.objective
        if spec.spend_budget and not objective.predicts:
            raise UserError(
                f"--spend-budget {spec.spend_budget}: what fits is predicted for a GPU with "
                f"Triton, and this study runs on {subject.place}; leave it out"
            )
        self.name = spec.study or subject.name
        sampler = choose_sampler(spec.sampler, subject, spec.objectives, spec.warm_start)
        self.sources = []
        if spec.warm_start:
            # It imports scikit-learn, in a second.
            from study.warm_start import find_sources

            self.sources = find_sources(spec, self.name)
        storage = spec.storage or default_storage(spec.output_dir, self.name)
        self.ledger = open_study(spec, storage, self.name, subject)
        self.code = 0
        self.start_again = self.handed_back = False
        self._spec, self._subject = spec, subject
        self._tags = subject.tags()
        self._stop = Stop(cli.say)
        place = self._tags.get("gpu", subject.place)
        self._presence = Presence(self.ledger, place, self._obey)
        record = read(self.ledger)
        self.ledger.study.sampler = build_sampler(
            sampler,
            spec.seed,
            len(record.trials),
            subject.space,
            partial(objective.predicted_peak, budget=record.budget)
            if objective.predicts
            else None,
            record.budget,
            spec.objectives,
            self.sources,
            self._presence.ordinal,
        )
        self.total = spec.n_trials
        if isinstance(self.ledger.study.sampler, GridSampler):
            self.total = min(self.total, len(self.ledger.study.sampler.cells))
        self.ledger.study.set_user_attr(TOTAL, self.total)

    def run(self, progress: StudyProgress, tracker: Tracker | None = None) -> str:
        """Runs trials until the study has its total, or is stopped.

        Returns:
            Why it cannot go on, or nothing.
        """
        spec, space, objective = self._spec, self._subject.space, self._subject.objective
        self._stop = Stop(progress.say)
        worker = Worker(
            self.ledger,
            space,
            objective,
            seed=spec.seed,
            tags=self._tags,
            folder=spec.output_dir / self.name / "checkpoints",
            progress=progress,
            presence=self._presence,
            stop=self._stop,
            tracker=tracker,
            gate=objective.check,
            # Trials of one configuration are there to be compared.
            pruner=Pruner(self.ledger, spec.objectives)
            if space.open and spec.pruning != "none"
            else None,
            max_retries=spec.max_retries,
        )
        timeout = None if spec.timeout is None else spec.timeout.total_seconds()
        try:
            with self._stop.listening(), self._presence:
                worker.run(self.total, timeout, spec.patience, spec.confirm or 1)
        except (MachineFailedError, NothingFitsError) as error:
            self.start_again = isinstance(error.__cause__, DeviceLost)
            return str(error)
        except KeyboardInterrupt:
            self.handed_back = True
        self.code = self._stop.code
        return ""

    def _obey(self, order: Order) -> None:
        if order == "now":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._stop.drain()
