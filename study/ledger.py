"""The study's storage: Optuna's tables and, beside them in the same database, ours.

Optuna's tables are the truth about trials. Ours hold what it has no place for: a row per epoch,
and which MLflow run belongs to which trial and how far it has been told. A study is known in them
by an identifier of its own, since Optuna reuses the numbers of deleted studies.
"""

import contextlib
import json
import math
import time
import urllib.parse
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from objectives.errors import UserError
from objectives.trial import QUALITY
from study import tables
from study.credentials import hide_password
from study.front import OBJECTIVES, objectives_of
from study.locks import locked
from study.patience import PatientStorage, ridden_out, wait_when_away
from study.stored import has_failed, state_of

PARENT = -1
"""Number that stands for the study itself where a trial's number is expected."""

TOTAL = "n_trials"
"""User attribute of a study with the total that it was last run for."""

_TRIES = 10


class Epoch(NamedTuple):
    """What a trial reported after one epoch."""

    number: int
    epoch: int
    recorded_at: datetime
    metrics: dict[str, float]


class Run(NamedTuple):
    """The MLflow run of a trial, or of the study, whose epochs are its finished trials."""

    number: int
    run_id: str
    epochs_sent: int
    closed: bool


def default_storage(output_dir: Path, study: str) -> str:
    """URL of the SQLite file that a study has where no storage is named."""
    return f"sqlite:///{output_dir.absolute() / study / 'study.db'}"


def sqlite_file(url: str) -> Path | None:
    """The file behind an SQLite URL; None for other databases."""
    parsed = _parse(url)
    return (
        Path(parsed.database)
        if parsed.drivername.startswith("sqlite") and parsed.database
        else None
    )


def _parse(url: str) -> sa.URL:
    try:
        parsed = make_url(url)
        if "@" in (parsed.host or ""):
            raise ValueError
    except (ArgumentError, ValueError):
        raise UserError(
            "--storage: not a database URL; write it like sqlite:///study.db or "
            "postgresql+psycopg://user@host/name, and in a password %40 for @ and %3A for :"
        ) from None
    # The driver that is installed; SQLAlchemy would look for psycopg2.
    return (
        parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername == "postgresql"
        else parsed
    )


def connect(url: str, *, read_only: bool = False) -> RDBStorage:
    """Optuna's storage at a URL, with our tables beside its own.

    Once it was there, its engine waits for a database that goes away.

    Args:
        url: Of the database.
        read_only: Nothing is written, not even tables that are missing, and nothing can be; nor
            is anything waited for.

    Raises:
        UserError: The database cannot be reached or used, or holds nothing to be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = _parse(url)
    # What is written is asked again where the connection is lost, without asking before.
    options: dict[str, Any] = {"pool_pre_ping": read_only}
    if parsed.drivername.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    elif parsed.drivername.startswith("postgresql"):
        # Of many workers no one may take many connections.
        options |= {"pool_size": 2, "max_overflow": 2, "connect_args": _noticing(parsed)}
    if read_only:
        parsed, options["connect_args"] = _read_only(parsed)
    address = parsed.render_as_string(hide_password=False)
    with explained(url):
        if read_only:
            if not sa.inspect(sa.create_engine(address, **options)).has_table("trials"):
                raise UserError(f"--storage {hide_password(url)}: there is no study in it yet")
            return RDBStorage(address, engine_kwargs=options, skip_table_creation=True)
        storage = _made(address, options)
    wait_when_away(storage.engine)
    return storage


def _made(address: str, options: dict[str, Any]) -> RDBStorage:
    """The storage, its tables made where they are missing; several may make them at once."""
    for tries in range(_TRIES):
        try:
            storage = PatientStorage(address, engine_kwargs=options)
            tables.metadata.create_all(storage.engine)
        except DBAPIError as error:
            if "already exists" not in str(error) or tries == _TRIES - 1:
                raise
            time.sleep(0.1 * (tries + 1))
        else:
            return storage
    raise AssertionError


def _noticing(url: sa.URL) -> dict[str, Any]:
    """What makes PostgreSQL's client notice a server that is gone, unless the URL says it."""
    settings = {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    }
    return {name: value for name, value in settings.items() if name not in url.query}


def _read_only(url: sa.URL) -> tuple[sa.URL, dict[str, Any]]:
    """The URL, and what to connect with, so that the database refuses to write."""
    if url.drivername.startswith("sqlite"):
        file = urllib.parse.quote(url.database or "")
        query = {"mode": "ro", "uri": "true"}
        # A page that waits for a lock longer than this had better say so.
        return url.set(database=f"file:{file}", query=query), {"timeout": 2}
    if url.drivername.startswith("postgresql"):
        return url, {"options": "-c default_transaction_read_only=on", "connect_timeout": 5}
    raise UserError(
        f"--storage {hide_password(str(url))}: only SQLite and PostgreSQL can be read with "
        "nothing written; optuna.copy_study copies a study into one of these"
    )


class StorageAway(UserError):
    """The database cannot be used, or not now."""


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Makes what a database at that URL refuses a StorageAway."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]
        raise StorageAway(
            f"--storage {hide_password(url)}: the database cannot be used ({reason})"
        ) from error


class Ledger:
    """One study in its storage.

    Attributes:
        study: In Optuna's tables.
        engine: The database.
    """

    def __init__(self, storage: RDBStorage, study: optuna.Study) -> None:
        self.study = study
        self.engine = storage.engine

    @classmethod
    def create(cls, storage: RDBStorage, name: str, identity: Mapping[str, Any]) -> "Ledger":
        """A new study that maximises quality and minimises the costs among its objectives.

        Where another process was first, its study is returned.
        """
        directions = [OBJECTIVES[objective] for objective in objectives_of(identity)]
        with locked(storage.engine, f"create {name}"):
            study = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
            if "paretocut" not in study.user_attrs:
                study.set_user_attr("paretocut", {"id": uuid.uuid4().hex, **identity})
        return cls(storage, study)

    @classmethod
    def open(cls, storage: RDBStorage, name: str) -> "Ledger | None":
        """The study of that name, or None.

        Raises:
            UserError: A study of that name is not one of ours.
        """
        try:
            study = optuna.load_study(storage=storage, study_name=name)
        except KeyError:
            return None
        if "paretocut" not in study.user_attrs:
            is_maximised = study.directions[0] == optuna.study.StudyDirection.MAXIMIZE
            if is_maximised and not study.user_attrs and not study.trials:
                return None  # Made, but for the last step, by a process that was killed.
            raise UserError(
                f"--study {name}: the storage holds a study of that name which ParetoCut did not "
                "make; choose another name"
            )
        return cls(storage, study)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the study was created with; never changes."""
        identity: dict[str, Any] = self.study.user_attrs["paretocut"]
        return identity

    @cached_property
    def baseline(self) -> dict[str, float]:
        """Test metrics of recommending the most popular items, where they are known."""
        baseline: dict[str, float] = self.study.user_attrs.get("baseline", {})
        return baseline

    @property
    def study_id(self) -> str:
        """Identifier of the study in our tables."""
        return str(self.identity["id"])

    @contextlib.contextmanager
    def claiming(self) -> Iterator[None]:
        """Within the block no other worker claims a trial, fails one or queues one again."""
        with locked(self.engine, f"claim {self.study.study_name}"):
            yield

    @ridden_out
    def record_epoch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Keeps what a trial reported; a repeated epoch (after a crash) replaces the earlier.

        Returns:
            Whether it was kept; not where the trial has failed, as that of a lost worker.
        """
        key = {"study": self.study_id, "number": number, "epoch": epoch}
        reported = {"recorded_at": datetime.now(UTC), "metrics": dict(metrics)}
        goes_on = ~has_failed(self.study.study_name, number)
        columns = [tables.epochs.c[name] for name in (*key, *reported)]
        values = zip(columns, (*key.values(), *reported.values()), strict=True)
        row = [sa.literal(value, column.type) for column, value in values]
        insert = sa.insert(tables.epochs).from_select(columns, sa.select(*row).where(goes_on))
        try:
            with self.engine.begin() as connection:
                return connection.execute(insert, execution_options=_COUNTED).rowcount == 1
        except IntegrityError:  # It is there.
            update = sa.update(tables.epochs).where(*_equal(tables.epochs, key), goes_on)
            with self.engine.begin() as connection:
                return connection.execute(update.values(**reported)).rowcount == 1

    @ridden_out
    def epochs(self, number: int | Collection[int] | None = None, after: int = 0) -> list[Epoch]:
        """Epochs of one trial, of some, or of all, behind a given epoch, in order."""
        query = (
            sa.select(
                tables.epochs.c.number,
                tables.epochs.c.epoch,
                tables.epochs.c.recorded_at,
                tables.epochs.c.metrics,
            )
            .where(tables.epochs.c.study == self.study_id, tables.epochs.c.epoch > after)
            .order_by(tables.epochs.c.number, tables.epochs.c.epoch)
        )
        if number is not None:
            numbers = [number] if isinstance(number, int) else number
            query = query.where(tables.epochs.c.number.in_(numbers))
        with self.engine.connect() as connection:
            return [Epoch(*row) for row in connection.execute(query)]

    def curves(self, number: Collection[int] | None = None) -> dict[int, tuple[float, ...]]:
        """The quality after each epoch of some trials, or of all that have any, by number."""
        query = (
            sa.select(
                tables.epochs.c.number, sa.cast(tables.epochs.c.metrics, sa.Text).label("metrics")
            )
            .where(tables.epochs.c.study == self.study_id)
            .order_by(tables.epochs.c.number, tables.epochs.c.epoch)
        )
        if number is not None:
            query = query.where(tables.epochs.c.number.in_(number))
        curves: dict[int, list[float]] = {}
        with self.engine.connect() as connection:
            for part in connection.execute(query).partitions(1000):
                # In one piece: a third of the time.
                metrics = json.loads(f"[{','.join(row.metrics for row in part)}]")
                for row, reached in zip(part, metrics, strict=True):
                    curves.setdefault(row.number, []).append(reached.get(QUALITY, math.nan))
        return {number: tuple(curve) for number, curve in curves.items()}

    @ridden_out
    def is_running(self, number: int) -> bool:
        """Whether a trial has neither ended nor been taken for lost."""
        with self.engine.connect() as connection:
            return state_of(connection, self.study.study_name, number) == "RUNNING"

    @ridden_out
    def runs(self) -> dict[int, Run]:
        """MLflow runs by trial number."""
        query = sa.select(
            tables.runs.c.number,
            tables.runs.c.run_id,
            tables.runs.c.epochs_sent,
            tables.runs.c.closed,
        ).where(tables.runs.c.study == self.study_id)
        with self.engine.connect() as connection:
            return {row.number: Run(*row) for row in connection.execute(query)}

    @ridden_out
    def set_run(self, run: Run) -> None:
        """Keeps which run belongs to a trial and how far it has been told."""
        key = {"study": self.study_id, "number": run.number}
        with self.engine.begin() as connection:
            connection.execute(sa.delete(tables.runs).where(*_equal(tables.runs, key)))
            connection.execute(sa.insert(tables.runs).values(study=self.study_id, **run._asdict()))


_COUNTED = {"preserve_rowcount": True}
"""So that the number of rows of an INSERT is known."""


def _equal(table: sa.Table, key: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in key.items()]
