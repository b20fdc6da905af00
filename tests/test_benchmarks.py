"""What is left to measure is worked out from the rows that are there."""

import argparse
import csv
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import compare_losses, ingest, refresh
from benchmarks.compare_losses import Comparison

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own types
    from benchmarks import serving

BUDGET = 1 << 30


def row(
    number: int, stage: str = "tuning", epochs: int | str = 20, **values: Any
) -> dict[str, Any]:
    """A training of cce- on ml-1m; its rate says which."""
    given = {"val_ndcg_at_10": 0.1, "rate": number, "outcome": "ok", **values}
    settings = json.dumps({"learning_rate": given.pop("rate")})
    names = {"data": "ml-1m", "loss": "cce-", "stage": stage, "number": number}
    return {
        **names,
        "memory_budget_bytes": BUDGET,
        "settings": settings,
        "epochs": epochs,
        **given,
    }


def missing(rows: list[dict[str, Any]], folder: Path) -> list[tuple[str, int]]:
    """Stage and number of what a comparison would train next."""
    path = folder / "rows.csv"
    if rows:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    asked = {"output": path, "data": ["ml-1m"], "losses": ["cce-"], "trials": 3, "seeds": 2}
    comparison = Comparison(argparse.Namespace(memory_budget="1GiB", **asked))
    return [(job.stage, job.number) for job in comparison.missing()]


def test_every_trial_is_trained_once_in_whatever_order_they_end(tmp_path: Path) -> None:
    assert missing([], tmp_path) == [("tuning", 0), ("tuning", 1), ("tuning", 2)]
    assert missing([row(1)], tmp_path) == [("tuning", 0), ("tuning", 2)]
    assert missing([row(2), row(0)], tmp_path) == [("tuning", 1)]


def test_a_trial_that_does_not_fit_is_replaced(tmp_path: Path) -> None:
    rows = [row(0), row(1, outcome="infeasible", epochs=""), row(2)]
    assert missing(rows, tmp_path) == [("tuning", 3)]


def test_the_best_trial_is_trained_with_every_seed(tmp_path: Path) -> None:
    rows = [row(0), row(1, val_ndcg_at_10=0.3), row(2, val_ndcg_at_10=0.2)]
    assert missing(rows, tmp_path) == [("final", 0), ("final", 1)]
    rows.append(row(0, "final", epochs=60, rate=1))
    assert missing(rows, tmp_path) == [("final", 1)]
    # Those of a trial that was the best before are not of this one.
    rows.append(row(1, "final", epochs=60, rate=2))
    assert missing(rows, tmp_path) == [("final", 1)]


def test_trials_with_another_number_of_epochs_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(0), row(1), row(2)]
    monkeypatch.setattr(compare_losses, "_WHOLE", {("ml-1m", "cce-")})
    assert missing(rows, tmp_path) == [("tuning", 0), ("tuning", 1), ("tuning", 2)]


def test_two_processes_train_one_model(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    shape = "--num-items 99 --width 8 --batch-size 4 --max-length 3 --steps 1 --epochs 1"
    command = [sys.executable, "-m", "benchmarks.data_parallel", "--processes", "2"]
    command += [*shape.split(), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    with output.open(newline="") as stream:
        (found,) = csv.DictReader(stream)
    assert (found["processes"], found["num_tokens"]) == ("2", "12")
    assert float(found["tokens_per_second"]) > 0


def test_what_workers_cost_is_measured_of_recorded_trainings_too(tmp_path: Path) -> None:
    output = tmp_path / "scaling.csv"
    command = [sys.executable, "-m", "benchmarks.scaling", "--recorded", "beauty"]
    command += ["--workers", "2", "--n-trials", "6", "--output", str(output)]
    command += ["--storage", f"sqlite:///{tmp_path / 'study.db'}"]
    subprocess.run(command, check=True, capture_output=True)
    with output.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["workers"], row["finished"], row["failed"]) == ("2", "6", "0")
    assert float(row["span_seconds"]) > 0
    assert float(row["idle_share"]) < 1


def test_a_log_is_prepared_and_started_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    row = ingest.measure(tmp_path, 20_000, "csv", "temporal")
    assert 10_000 < row["trained_on"] < 18_000
    assert 0 < row["again_s"] < row["again_process_s"]
    assert row["peak_mb"] > 1


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """60 users, 30 items, each followed by the next."""
    rows = [(user, (7 * user + t) % 30, user + t) for user in range(60) for t in range(12)]
    users, items, times = zip(*rows, strict=True)
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": users, "item": items, "ts": times}), path)
    return path


def test_a_refresh_is_compared_with_its_champion_and_a_training_from_scratch(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = log.with_name("refresh.csv")
    shape = f"--data {log} --width 8 --epochs 4 --output {output}"
    monkeypatch.setattr(sys, "argv", ["refresh", *shape.split()])
    refresh.main()
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows] == ["champion", "refreshed", "scratch"]
    assert all(float(row["seconds"]) > 0 for row in rows)


@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")  # MLflow's
def test_what_a_registered_model_answers_is_compared_with_an_evaluation(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = log.with_name("serving.csv")
    shape = f"--data {log} --batch 16 --calls 2 --output {output}"
    monkeypatch.setattr(sys, "argv", ["serving", *shape.split()])
    monkeypatch.syspath_prepend(str(log.parent))  # which MLflow's own entries go with, afterwards
    serving.main()
    with output.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["int8"] for row in rows] == ["False", "True"]
    assert all(row["equal"] == row["recall"] == "1.0" for row in rows)
    assert all(row["histories"] == "32" for row in rows)
