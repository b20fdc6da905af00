"""A database that goes away and comes back: what was asked of it waits, and is asked again."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, PendingRollbackError, SQLAlchemyError

from study import cli
from study.credentials import hide_password

OUTAGE_SECONDS = 660.0
"""So long a database may be away: ten minutes, and what it takes to notice."""
_TRY_AGAIN_SECONDS = 1.0

_TRIES = 10
"""How often something is asked again; to be connected anew takes as long as the outage."""

_PASSING = ("40001", "40P01", "57P01", "57P02", "57P03", "08")
"""Beginnings of the states of SQL that pass: conflicts, a server that stops, a lost connection."""

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def is_passing(error: BaseException) -> bool:
    """Whether a database failed for a reason that passes, so that it may be asked again."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):
        return True  # Optuna went on in a session whose connection was lost.
    if not isinstance(cause, DBAPIError):
        return False
    state = str(getattr(cause.orig, "sqlstate", None) or "")
    return (
        cause.connection_invalidated
        or state.startswith(_PASSING)
        or "database is locked" in str(cause.orig)
    )


def ridden_out(call: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
    """Asks a database again where the connection was lost, or others were in the way."""

    @functools.wraps(call)
    def patient(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        for tries in range(_TRIES):
            try:
                return call(*args, **kwargs)
            except (StorageInternalError, SQLAlchemyError) as error:
                if not is_passing(error):
                    raise
            time.sleep(0.05 * tries)
        return call(*args, **kwargs)

    return patient


class PatientStorage(RDBStorage):
    """Optuna's storage, asked again where the database went away meanwhile."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """See Optuna; that a lost answer was yes is no error."""
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except StorageInternalError as error:
            if not is_passing(error):
                raise
        again = ridden_out(super().set_trial_state_values)
        try:
            return again(trial_id, state, values)
        except UpdateFinishedTrialError:
            if self.get_trial(trial_id).state != state:
                raise
            return True


# What Optuna's cache asks of it beside the public methods is named here, too.
for _name in {*BaseStorage.__abstractmethods__, "_create_new_trial", "_get_trials"} - {
    "set_trial_state_values"
}:
    setattr(PatientStorage, _name, ridden_out(getattr(RDBStorage, _name)))


def wait_when_away(engine: sa.Engine) -> None:
    """Makes every connection of an engine wait for its database, and say once that it does."""
    said = threading.Event()

    @sa.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, args: Any, parameters: Any) -> Any:
        deadline = time.monotonic() + OUTAGE_SECONDS
        while True:
            try:
                connection = dialect.connect(*args, **parameters)
            except dialect.loaded_dbapi.OperationalError as error:
                if time.monotonic() >= deadline:
                    raise
                if not said.is_set():
                    said.set()
                    reason = " ".join(str(error).split())
                    cli.say(
                        f"the database does not answer ({hide_password(reason)[:200]}); "
                        f"waiting for it, {OUTAGE_SECONDS / 60:.0f} minutes at most"
                    )
                time.sleep(_TRY_AGAIN_SECONDS)
                continue
            if said.is_set():
                said.clear()
                cli.say("the database answers again")
            return connection
