"""The study's storage: Optuna's tables and, beside them in the same database, ours.

Optuna's tables are the truth about trials. Ours hold what it has no place for: a row per epoch,
and which MLflow run belongs to which trial and how far it has been told. A study is known in them
by an identifier of its own, since Optuna reuses the numbers of deleted studies.
"""

import contextlib
import math
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
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from objectives.errors import UserError
from objectives.trial import QUALITY
from study.front import OBJECTIVES, objectives_of

PARENT = -1
"""Number that stands for the study itself where a trial's number is expected."""

_metadata = sa.MetaData()

_epochs = sa.Table(
    "paretocut_epochs",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.Integer, primary_key=True),
    sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
)

_runs = sa.Table(
    "paretocut_runs",
    _metadata,
    sa.Column("study", sa.String(32), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("epochs_sent", sa.Integer, nullable=False, default=0),
    sa.Column("closed", sa.Boolean, nullable=False, default=False),
)


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


def hide_password(url: str) -> str:
    """The URL as it may be shown."""
    return _parse(url).render_as_string(hide_password=True)


def _parse(url: str) -> sa.URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise UserError(
            "--storage: not a database URL; write it like sqlite:///study.db or "
            "postgresql+psycopg://user@host/name"
        ) from None
    # The driver that is installed; SQLAlchemy would look for psycopg2.
    return (
        parsed.set(drivername="postgresql+psycopg")
        if parsed.drivername == "postgresql"
        else parsed
    )


def connect(url: str, *, read_only: bool = False) -> RDBStorage:
    """Optuna's storage at a URL, with our tables beside its own.

    Args:
        url: Of the database.
        read_only: Nothing is written, not even tables that are missing, and nothing can be.

    Raises:
        UserError: The database cannot be reached or used, or holds nothing to be read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parsed = _parse(url)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.drivername.startswith("sqlite"):
        options["connect_args"] = {"timeout": 60}
    if read_only:
        parsed, options["connect_args"] = _read_only(parsed)
    address = parsed.render_as_string(hide_password=False)
    with explained(url):
        if read_only and not sa.inspect(sa.create_engine(address, **options)).has_table("trials"):
            raise UserError(f"--storage {hide_password(url)}: there is no study in it yet")
        storage = RDBStorage(address, engine_kwargs=options, skip_table_creation=read_only)
        if not read_only:
            _metadata.create_all(storage.engine)
    return storage


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
        f"--storage {url.render_as_string()}: only SQLite and PostgreSQL can be read with "
        "nothing written; optuna.copy_study copies a study into one of these"
    )


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Makes what a database at that URL refuses a UserError."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:200]
        raise UserError(
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
        """A new study that maximises quality and minimises the costs among its objectives."""
        directions = [OBJECTIVES[objective] for objective in objectives_of(identity)]
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
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

    @property
    def study_id(self) -> str:
        """Identifier of the study in our tables."""
        return str(self.identity["id"])

    def record_epoch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keeps what a trial reported; a repeated epoch (after a crash) replaces the earlier."""
        key = {"study": self.study_id, "number": number, "epoch": epoch}
        with self.engine.begin() as connection:
            connection.execute(sa.delete(_epochs).where(*_equal(_epochs, key)))
            connection.execute(
                sa.insert(_epochs).values(
                    **key, recorded_at=datetime.now(UTC), metrics=dict(metrics)
                )
            )

    def epochs(self, number: int | Collection[int] | None = None, after: int = 0) -> list[Epoch]:
        """Epochs of one trial, of some, or of all, behind a given epoch, in order."""
        query = (
            sa.select(_epochs.c.number, _epochs.c.epoch, _epochs.c.recorded_at, _epochs.c.metrics)
            .where(_epochs.c.study == self.study_id, _epochs.c.epoch > after)
            .order_by(_epochs.c.number, _epochs.c.epoch)
        )
        if number is not None:
            numbers = [number] if isinstance(number, int) else number
            query = query.where(_epochs.c.number.in_(numbers))
        with self.engine.connect() as connection:
            return [Epoch(*row) for row in connection.execute(query)]

    def curves(self, number: Collection[int] | None = None) -> dict[int, tuple[float, ...]]:
        """The quality after each epoch of some trials, or of all that have any, by number."""
        curves: dict[int, list[float]] = {}
        for epoch in self.epochs(number):
            curves.setdefault(epoch.number, []).append(epoch.metrics.get(QUALITY, math.nan))
        return {number: tuple(curve) for number, curve in curves.items()}

    def runs(self) -> dict[int, Run]:
        """MLflow runs by trial number."""
        query = sa.select(
            _runs.c.number, _runs.c.run_id, _runs.c.epochs_sent, _runs.c.closed
        ).where(_runs.c.study == self.study_id)
        with self.engine.connect() as connection:
            return {row.number: Run(*row) for row in connection.execute(query)}

    def set_run(self, run: Run) -> None:
        """Keeps which run belongs to a trial and how far it has been told."""
        key = {"study": self.study_id, "number": run.number}
        with self.engine.begin() as connection:
            connection.execute(sa.delete(_runs).where(*_equal(_runs, key)))
            connection.execute(sa.insert(_runs).values(study=self.study_id, **run._asdict()))


def _equal(table: sa.Table, key: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in key.items()]
