"""The studies that the app shows, read again where they have changed."""

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from dashboards.curves import with_lines
from dashboards.live.choice import Choice
from dashboards.queries import StudyView, build_view
from objectives.errors import UserError
from study.budget import format_bytes
from study.cli import say
from study.credentials import hide_password
from study.ledger import Ledger, connect, default_storage, explained
from study.records import StudyRecord, read
from study.stored import fingerprint
from study.tracking import check_server

_KEPT = 8
"""Studies that are kept in memory as they were read."""

_MLFLOW_SECONDS = 30.0
_PATIENCE = 1.0
"""Seconds after which the list of studies is shown as far as it is known."""
_AHEAD = 2.0
"""Seconds after which no other study is read ahead."""


@dataclass(frozen=True)
class Snapshot:
    """A study as it was at some time.

    Attributes:
        version: Another one whenever a trial has begun or ended.
        record: The study.
    """

    version: str
    record: StudyRecord


class Studies:
    """All studies of a storage, or of a folder.

    Args:
        storage: URL of the database; None for the folder.
        output_dir: The folder, with a database for each study.
        tracking_store: URI of the MLflow store that the runs are in.
        is_public: Others than who started the app see it: they are not told where anything is.
    """

    def __init__(
        self,
        storage: str | None,
        output_dir: Path,
        tracking_store: str,
        *,
        is_public: bool = False,
    ) -> None:
        self.storage = storage
        self.output_dir = output_dir
        self._tracking_store = tracking_store
        self._is_public = is_public
        self._said = ""
        self._ledgers: dict[str, Ledger] = {}
        self._snapshots = Shelf(_KEPT)
        self._views = Shelf(_KEPT)
        self._mlflow_answers = False
        self._ask_mlflow_at = 0.0
        self._rows: dict[str, tuple[str, dict[str, Any]]] = {}
        self._locks: dict[str, threading.RLock] = {}

    @property
    def where(self) -> str:
        """The storage or the folder, for people."""
        if self._is_public:
            return "this storage"
        return f"{self.output_dir}/" if self.storage is None else hide_password(self.storage)

    @property
    def flags(self) -> list[str]:
        """By which a command finds the studies."""
        if self._is_public:
            return []
        if self.storage is None:
            return ["--output-dir", str(self.output_dir)]
        return ["--storage", self.where]

    def names(self) -> list[str]:
        """The studies that there are.

        Raises:
            UserError: The storage cannot be read.
        """
        if self.storage is None:
            return sorted(path.parent.name for path in self.output_dir.glob("*/study.db"))
        with self._explained(self.storage):
            database = connect(self.storage, read_only=True)
            return sorted(
                study.study_name
                for study in optuna.get_all_study_summaries(database, include_best_trial=False)
                if "paretocut" in study.user_attrs
            )

    def read_ahead(self) -> None:
        """Reads studies, for two seconds or so: of a folder those that changed last.

        Who opens one later need not wait for it, nor for what Python loads once.
        """
        end = time.monotonic() + _AHEAD
        with contextlib.suppress(UserError, OSError):  # Who opens the list is told.
            names = self.names()
            if self.storage is None:
                names.sort(key=lambda name: -(self.output_dir / name / "study.db").stat().st_mtime)
            for name in names[:_KEPT]:
                with contextlib.suppress(UserError):  # Who opens it is told.
                    self.view(name, Choice())
                if time.monotonic() > end:
                    return

    def version(self, name: str) -> str:
        """What changes when a trial begins or ends.

        Raises:
            UserError: There is no such study, or it cannot be read.
        """
        ledger = self._ledger(name)
        with self._explained(self._url(name)), ledger.engine.connect() as connection:
            state = fingerprint(connection, name)
        return hashlib.sha256(repr((ledger.study_id, state)).encode()).hexdigest()[:12]

    def snapshot(self, name: str) -> Snapshot:
        """The study as it stands.

        Raises:
            UserError: There is no such study, or it cannot be read.
        """
        with self._reading(name):
            version = self.version(name)
            before: Snapshot | None = self._snapshots.get(name)
            if before is None or before.version != version:
                known, ledger = before.record if before else None, self._ledger(name)
                with self._explained(self._url(name)):
                    before = Snapshot(version, read(ledger, known=known))
            self._snapshots.keep(name, before)
            return before

    def view(self, name: str, choice: Choice) -> tuple[str, StudyView]:
        """The version of a study as it stands, and the view of the chosen trials.

        Raises:
            UserError: There is no such study, or it cannot be read.
        """
        with self._reading(name):
            now = self.snapshot(name)
            key = name, now.version, choice.filters.query
            view = self._views.get(key)
            if view is None:
                view = build_view(choice.of(now.record), self._tracking_store)
            self._views.keep(key, view)
            return now.version, view

    def rows(self) -> list[dict[str, Any]]:
        """What the list of studies says of each; of those yet to be read little, for a moment.

        Raises:
            UserError: The storage cannot be read.
        """
        begin = time.monotonic()
        return [self._row(name, time.monotonic() - begin > _PATIENCE) for name in self.names()]

    def _row(self, name: str, in_a_hurry: bool) -> dict[str, Any]:
        try:
            version = self.version(name)
            known = self._rows.get(name)
            if known is None or known[0] != version:
                if in_a_hurry:
                    return {"name": name, "state": "to be read"}
                self._rows[name] = version, _row(self.snapshot(name).record)
        except UserError as error:
            return {"name": name, "state": str(error)}
        return self._rows[name][1]

    def mlflow_answers(self) -> bool:
        """Whether MLflow's server does, if it is one; it is asked twice a minute at most."""
        if time.monotonic() >= self._ask_mlflow_at:
            try:
                check_server(self._tracking_store)
                self._mlflow_answers = True
            except UserError:
                self._mlflow_answers = False
            self._ask_mlflow_at = time.monotonic() + _MLFLOW_SECONDS
        return self._mlflow_answers

    def curve(self, name: str, number: int) -> list[dict[str, float]]:
        """The metrics of a trial after each of its epochs, as far as it is."""
        ledger = self._ledger(name)
        with self._explained(self._url(name)):
            return [epoch.metrics for epoch in ledger.epochs(number)]

    def with_curves(self, name: str, view: StudyView) -> StudyView:
        """The view with the curves of as many trials as are drawn."""
        ledger = self._ledger(name)
        with self._explained(self._url(name)):
            curves = ledger.curves([trial.number for trial in with_lines(view)])
        trials = tuple(
            replace(trial, curve=curves[trial.number]) if trial.number in curves else trial
            for trial in view.trials
        )
        return replace(view, trials=trials)

    def _reading(self, name: str) -> threading.RLock:
        """Held while a study is read: nobody reads it twice, and others are read meanwhile."""
        return self._locks.setdefault(name, threading.RLock())

    @contextlib.contextmanager
    def _explained(self, url: str) -> Iterator[None]:
        """Makes what a database refuses a UserError, whose details others find in no page."""
        try:
            with explained(url):
                yield
        except UserError as error:
            if not self._is_public:
                raise
            if str(error) != self._said:
                self._said = str(error)
                say(self._said)
            raise UserError(
                f"{self.where} cannot be read, or holds no study yet; the app's log says more"
            ) from None

    def _url(self, name: str) -> str:
        return self.storage or default_storage(self.output_dir, name)

    def _ledger(self, name: str) -> Ledger:
        with self._reading(name):
            if name not in self._ledgers:
                names = self.names()
                if name not in names:
                    there = f"which has: {', '.join(names)}" if names else "where there is none"
                    raise UserError(f"--study {name}: not in {self.where}, {there}")
                with self._explained(self._url(name)):
                    ledger = Ledger.open(connect(self._url(name), read_only=True), name)
                if ledger is None:
                    raise UserError(f"--study {name}: {self.where} holds a study of another name")
                self._ledgers[name] = ledger
            return self._ledgers[name]


def _row(record: StudyRecord) -> dict[str, Any]:
    best = record.best()
    running = sum(trial.outcome == "running" for trial in record.trials)
    ends = [trial.finished for trial in record.trials if trial.finished is not None]
    ended = f"last trial ended {max(ends):%Y-%m-%d %H:%M}" if ends else "no trial has ended"
    return {
        "name": record.name,
        "data": record.identity["data"]["name"],
        "trials": len(record.configurations),
        "quality": "-" if best is None else best.quality_text,
        "memory": "-" if best is None else format_bytes(best.peak_memory or 0),
        "state": f"{running} running" if running else ended,
    }


class Shelf(OrderedDict[Any, Any]):
    """Keeps what was put there last, as many things as there is room for."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._lock = threading.Lock()

    def keep(self, key: Any, value: Any) -> None:
        """Puts a value onto the shelf, or an old one to the front."""
        with self._lock:
            self[key] = value
            self.move_to_end(key)
            while len(self) > self._room:
                self.popitem(last=False)
