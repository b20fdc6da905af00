"""Studies of any number of trials, written into their storage at once."""

import json
import random
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from objectives.config import TrialConfig
from study.ledger import Ledger, connect, default_storage

_BEGAN = datetime(2026, 1, 1)
_EPOCHS = 20
_GIB = 2**30

_SPACE: dict[str, BaseDistribution] = {
    "loss": CategoricalDistribution(["cce-", "cce"]),
    "negatives": IntDistribution(64, 4096, log=True),
    "batch_size": IntDistribution(8, 4096, log=True),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}


def make_study(folder: Path, name: str, trials: int) -> Ledger:
    """A study of so many ended trials, with learning curves, as `study.run` leaves one."""
    url = default_storage(folder, name)
    (folder / name).mkdir(parents=True)
    identity: dict[str, Any] = {
        "data": {"name": "synthetic", "digest": "0", "split": "leave-one-out"},
        "space": {
            "loss": ["cce-", "cce"],
            "negatives": [64, 4096],
            "batch_size": [8, 4096],
            "learning_rate": [1e-4, 1e-2],
        },
        "open": list(_SPACE),
        "objectives": ["quality", "memory"],
        "memory_budget": 24 * _GIB,
        "memory_source": "cuda",
        "seed": 0,
        "request": {"data": "synthetic"},
    }
    ledger = Ledger.create(connect(url), name, identity)
    tables = sa.MetaData()
    tables.reflect(ledger.engine)
    rows: dict[str, list[dict[str, Any]]] = {}
    for number in range(trials):
        for table, row in _rows(number, ledger.study_id):
            rows.setdefault(table, []).append(row)
    with ledger.engine.begin() as connection:
        for table, values in rows.items():
            connection.execute(sa.insert(tables.tables[table]), values)
    return ledger


def trial_of(number: int) -> FrozenTrial:
    """A trial that has ended; all that is in it follows from its number."""
    draw = random.Random(number)
    params: dict[str, Any] = {
        "loss": draw.choice(["cce-", "cce"]),
        "negatives": round(2 ** draw.uniform(6, 12)),
        "batch_size": round(2 ** draw.uniform(3, 12)),
        "learning_rate": 10 ** draw.uniform(-4, -2),
    }
    share = (params["negatives"] / 4096) ** 0.2 * (params["batch_size"] / 4096) ** 0.1
    quality = max(0.0, 0.2 * share - 0.02 * abs(draw.gauss(0, 1)))
    memory = round((1 + 31 * share**4 * draw.uniform(0.7, 1.3)) * _GIB)
    fits = memory <= 24 * _GIB
    outcome = "infeasible" if not fits else "pruned" if draw.random() < 0.3 else "complete"
    metrics = [
        f"{split}/{metric}_at_{k}"
        for split in ("val", "test")
        for metric in ("ndcg", "hit_rate", "mrr")
        for k in (1, 5, 10)
    ]
    result = {
        "outcome": outcome,
        "reason": "predicted" if not fits else "dominated" if outcome == "pruned" else "",
        "config": TrialConfig.from_flat(params).flat() if fits else {},
        "peak_memory": memory,
        "at_least": False,
        "peak_reserved": memory + _GIB,
        "seconds": 50.0,
        "epochs": _EPOCHS if fits else 0,
        "metrics": {name: round(quality * draw.uniform(0.5, 1), 6) for name in metrics},
        "tags": {"seed": str(number), "gpu": "NVIDIA H200", "torch": "2.12.0", "commit": "0" * 40},
    }
    return create_trial(
        state=TrialState.COMPLETE if outcome == "complete" else TrialState.PRUNED,
        params=params,
        distributions=_SPACE,
        values=[quality, float(memory)] if outcome == "complete" else None,
        user_attrs={"worker": "vm:1:1.0", "seed": number, "result": result},
    )


def _rows(number: int, study: str) -> list[tuple[str, dict[str, Any]]]:
    """The trial as Optuna and the ledger keep it: rows by the names of their tables."""
    made = trial_of(number)
    began = _BEGAN + timedelta(minutes=number)
    key = {"trial_id": number + 1}
    state = {"number": number, "study_id": 1, "state": made.state.name}
    times = {"datetime_start": began, "datetime_complete": began + timedelta(seconds=50)}
    rows: list[tuple[str, dict[str, Any]]] = [("trials", {**key, **state, **times})]
    for name, distribution in _SPACE.items():
        stored = {
            "param_value": distribution.to_internal_repr(made.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        rows.append(("trial_params", {**key, "param_name": name, **stored}))
    for name, value in made.user_attrs.items():
        attribute = {"key": name, "value_json": json.dumps(value)}
        rows.append(("trial_user_attributes", {**key, **attribute}))
    for objective, value in enumerate(made.values or ()):
        stored = {"objective": objective, "value": value, "value_type": "FINITE"}
        rows.append(("trial_values", {**key, **stored}))
    ours = {"study": study, "number": number}
    run = {"run_id": uuid.UUID(int=number).hex, "epochs_sent": _EPOCHS, "closed": True}
    rows.append(("paretocut_runs", {**ours, **run}))
    quality = made.user_attrs["result"]["metrics"]["val/ndcg_at_10"]
    for epoch in range(1, made.user_attrs["result"]["epochs"] + 1):
        reached = {"val/ndcg_at_10": round(quality * (1 - 0.7**epoch), 6)}
        when = {"epoch": epoch, "recorded_at": datetime.now(UTC), "metrics": reached}
        rows.append(("paretocut_epochs", {**ours, **when}))
    return rows
