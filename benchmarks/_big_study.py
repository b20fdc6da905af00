"""Studies of any number of trials, written into their storage at once."""

import json
import random
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.distributions import distribution_to_json as to_json

from objectives.config import TrialConfig
from study.ledger import Ledger, connect, default_storage

_BEGAN = datetime(2026, 1, 1)
_EPOCHS = 20
_GIB = 2**30

_SPACE = {
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
    engine = sa.create_engine(url)
    tables = sa.MetaData()
    tables.reflect(engine)
    draw = random.Random(name)
    rows: dict[str, list[dict[str, Any]]] = {}
    for number in range(trials):
        _add_trial(rows, draw, number, ledger.study_id)
    with engine.begin() as connection:
        for table, values in rows.items():
            connection.execute(sa.insert(tables.tables[table]), values)
    engine.dispose()
    return ledger


def _add_trial(
    rows: dict[str, list[dict[str, Any]]], draw: random.Random, number: int, study: str
) -> None:
    def add(table: str, **values: Any) -> None:
        rows.setdefault(table, []).append(values)

    trial = {"trial_id": number + 1}
    params = {
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
    began = _BEGAN + timedelta(minutes=number)
    ended = began + timedelta(seconds=50)
    state = "COMPLETE" if outcome == "complete" else "PRUNED"
    times = {"datetime_start": began, "datetime_complete": ended}
    add("trials", **trial, number=number, study_id=1, state=state, **times)
    for name, value in params.items():
        stored = _SPACE[name].to_internal_repr(value)
        text = to_json(_SPACE[name])
        add("trial_params", **trial, param_name=name, param_value=stored, distribution_json=text)
    names = [
        f"{split}/{metric}_at_{k}"
        for split in ("val", "test")
        for metric in ("ndcg", "hit_rate", "mrr")
        for k in (1, 5, 10)
    ]
    config = {} if not fits else TrialConfig.from_flat(params).flat()
    result = {
        "outcome": outcome,
        "reason": "predicted" if not fits else "dominated" if outcome == "pruned" else "",
        "config": config,
        "peak_memory": memory,
        "at_least": False,
        "peak_reserved": memory + _GIB,
        "seconds": 50.0,
        "epochs": _EPOCHS,
        "metrics": {name: round(quality * draw.uniform(0.5, 1), 6) for name in names},
        "tags": {"seed": str(number), "gpu": "NVIDIA H200", "torch": "2.12.0", "commit": "0" * 40},
    }  # fmt: skip
    for key, value in {"worker": "vm:1:1.0", "seed": number, "result": result}.items():
        add("trial_user_attributes", **trial, key=key, value_json=json.dumps(value))
    if outcome == "complete":
        for objective, value in enumerate((quality, float(memory))):
            place = {"objective": objective, "value": value, "value_type": "FINITE"}
            add("trial_values", **trial, **place)
    run = {"run_id": uuid.UUID(int=number).hex, "epochs_sent": _EPOCHS, "closed": True}
    add("paretocut_runs", study=study, number=number, **run)
    for epoch in range(1, _EPOCHS + 1 if fits else 1):
        metrics = {"val/ndcg_at_10": round(quality * (1 - 0.7**epoch), 6)}
        when = datetime.now(UTC)
        add("paretocut_epochs", study=study, number=number, epoch=epoch, recorded_at=when,
            metrics=metrics)  # fmt: skip


optuna.logging.set_verbosity(optuna.logging.WARNING)
