"""The workers of a study: who there is, who is still there, and what they are asked to do.

A worker counts up a number of its own in the database. Another takes it for lost once it has seen
the number stand still for long enough, by its own clock and only while the database answered:
neither clocks that differ nor a database that is away make anybody lost.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import psutil
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from study import tables
from study.ledger import Ledger
from study.patience import ridden_out

BEAT_SECONDS = 5.0
LOST_SECONDS = 60.0
"""A worker of another host whose number stands still for so long is lost."""

Order = Literal["drain", "now"]
"""To stop after the running trial, or at once."""

_workers = tables.workers


class WorkerRow(NamedTuple):
    """What the database holds of a worker that has not ended by its own doing.

    Attributes:
        worker: Its process; see `this_process`.
        place: What it trains on.
        beats: Rises while it lives.
        asked: What it is asked to do.
    """

    worker: str
    place: str
    beats: int
    asked: Order | None


def this_process() -> str:
    """This process as a worker's name: host, number and time of creation."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def runs_here(worker: str) -> bool | None:
    """Whether a worker's process exists; None if it is of another host."""
    host, pid, created = worker.rsplit(":", 2)
    if host != socket.gethostname():
        return None
    try:
        return bool(abs(psutil.Process(int(pid)).create_time() - float(created)) < 1)
    except psutil.NoSuchProcess:
        return False


@ridden_out
def live_workers(ledger: Ledger) -> list[WorkerRow]:
    """The workers that have not said that they end, the first to come first."""
    table = _workers.c
    query = (
        sa.select(table.worker, table.place, table.beats, table.asked)
        .where(table.study == ledger.study_id, ~table.ended)
        .order_by(table.started_at, table.worker)
    )
    with ledger.engine.connect() as connection:
        return [WorkerRow(*row) for row in connection.execute(query)]


@ridden_out
def order(ledger: Ledger, asked: Order) -> None:
    """Asks all workers of now to stop."""
    query = sa.update(_workers).where(_workers.c.study == ledger.study_id, ~_workers.c.ended)
    with ledger.engine.begin() as connection:
        connection.execute(query.values(asked=asked))


class Presence:
    """This process as a worker of a study. Use as a context manager around its trials.

    Attributes:
        worker: Its name.
        ordinal: How many workers the study had before it.
    """

    def __init__(self, ledger: Ledger, place: str, obey: Callable[[Order], None]) -> None:
        """Prepares; obey: called, in a thread, with what the worker is asked to do."""
        self.worker = this_process()
        self._ledger = ledger
        self._place = place
        self._obey = obey
        self._obeyed: Order | None = None
        self._others: dict[str, tuple[int, float]] = {}
        self._seen_at = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="presence", daemon=True)
        self.ordinal = self._register()

    def __enter__(self) -> "Presence":
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._update(ended=True)

    def is_lost(self, worker: str) -> bool:
        """Whether a worker, or nobody, will not go on with what it was doing."""
        if worker == self.worker:
            return False
        here = runs_here(worker) if worker else False
        if here is not None:
            return not here
        _, silent = self._others.get(worker, (0, LOST_SECONDS))
        return silent >= LOST_SECONDS

    def beat(self) -> None:
        """Shows that this worker is there, and looks who else is."""
        self._update(beats=_workers.c.beats + 1)
        rows = live_workers(self._ledger)
        now = time.monotonic()
        # Between two looks that lie far apart nobody could be seen.
        passed = min(now - self._seen_at, 2 * BEAT_SECONDS)
        self._seen_at = now
        others = {}
        for row in rows:
            beats, silent = self._others.get(row.worker, (None, 0.0))
            others[row.worker] = (row.beats, silent + passed if row.beats == beats else 0.0)
            if row.worker == self.worker and row.asked != self._obeyed:
                self._obeyed = row.asked
                if row.asked is not None:
                    self._obey(row.asked)
        self._others = others

    def _loop(self) -> None:
        while not self._closing.wait(BEAT_SECONDS):
            try:
                self.beat()
            except (SQLAlchemyError, StorageInternalError):
                continue  # The database is away for longer than others wait for it.

    def _register(self) -> int:
        key = {"study": self._ledger.study_id, "worker": self.worker}
        count = sa.select(sa.func.count()).where(_workers.c.study == key["study"])
        with (
            self._ledger.claiming(),
            self._ledger.engine.begin() as connection,
        ):
            ordinal = int(connection.execute(count).scalar_one())
            mine = sa.delete(_workers).where(*(_workers.c[name] == key[name] for name in key))
            connection.execute(mine)
            connection.execute(
                sa.insert(_workers).values(**key, place=self._place, started_at=datetime.now(UTC))
            )
        return ordinal

    @ridden_out
    def _update(self, **values: object) -> None:
        mine = sa.update(_workers).where(
            _workers.c.study == self._ledger.study_id, _workers.c.worker == self.worker
        )
        with self._ledger.engine.begin() as connection:
            connection.execute(mine.values(**values))
