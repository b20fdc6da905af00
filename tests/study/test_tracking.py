"""MLflow as a view of the storage: complete, idempotent, and never in the way."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from objectives.config import TrialConfig
from objectives.errors import UserError
from objectives.trial import QUALITY, InfeasibleTrial, Objective, TrialContext, TrialResult
from study import tracking
from study.ledger import PARENT, Ledger
from study.records import StudyRecord, read
from study.tracking import (
    EXPERIMENT,
    Sight,
    Tracker,
    build_client,
    check_server,
)
from study.worker import Worker

BuildWorker = Callable[[Objective], Worker]


def succeed(config: TrialConfig, context: TrialContext) -> TrialResult:
    for epoch in (1, 2):
        context.report(epoch, {QUALITY: epoch / 10, "memory/peak_bytes": 2.0**30})
    return TrialResult(
        quality=0.2,
        peak_memory=2**29,
        seconds=3.0,
        metrics={QUALITY: 0.2, "test/ndcg_at_10": 0.15},
        epochs=2,
        best_epoch=2,
    )


def track(
    ledger: Ledger,
    uri: str,
    folder: Path,
    body: Callable[[Tracker], None] = lambda _: None,
    sight: Sight | None = None,
) -> tuple[Tracker, list[str]]:
    warnings: list[str] = []
    report = folder / "report.html"
    report.write_text("<html></html>")
    ledger.study.set_user_attr("tags", {"gpu": "none"})
    with Tracker(ledger, uri, folder, warnings.append, sight) as tracker:
        body(tracker)
        tracker.close("FINISHED", [report])
    return tracker, warnings


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_store, tmp_path)}"


def runs_of(client: Any, number: int) -> list[Any]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return list(
        client.search_runs([experiment.experiment_id], f"tags.`paretocut.trial` = '{number}'")
    )


def test_a_study_in_mlflow(
    ledger: Ledger, build_worker: BuildWorker, store: str, tmp_path: Path
) -> None:
    outcomes = iter([succeed, succeed])

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        for chosen in outcomes:
            return chosen(config, context)
        raise InfeasibleTrial(2**31, "out-of-memory")

    build_worker(objective).run(3)
    tracker, warnings = track(ledger, store, tmp_path)
    assert (tracker.untold, warnings) == ("", [])

    client = build_client(store)
    parent = client.get_run(ledger.runs()[PARENT].run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["paretocut.study"] == "s"
    assert parent.data.tags["gpu"] == "none"
    assert parent.data.params["memory_budget"] == str(2**30)
    assert parent.data.params["objectives"] == "quality memory"
    assert parent.data.tags["paretocut.front"] == "0"
    assert "mlflow.note.content" not in parent.data.tags
    history = client.get_metric_history(parent.info.run_id, "best/ndcg_at_10")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.2), (2, 0.2), (3, 0.2)]
    history = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert [metric.value for metric in history] == [0.1, 0.1, 0.1], "a half of the budget is 0.2"
    assert [entry.dataset.name for entry in parent.inputs.dataset_inputs] == ["tiny"]
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert names == {"report.html", "study.json"}

    (run,) = runs_of(client, 0)
    trial = read(ledger).trials[0]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.tags["paretocut.outcome"] == "complete"
    assert run.data.tags["seed"] == "0"
    assert run.info.status == "FINISHED"
    assert trial.started is not None
    assert run.info.start_time == int(trial.started.timestamp() * 1000), "not when it was told"
    assert run.data.params == {key: str(value) for key, value in trial.config.items()}
    assert run.data.params["table_updates"] == "dense", "what auto stood for"
    history = client.get_metric_history(run.info.run_id, QUALITY)
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.2)]
    assert run.data.metrics["final/test/ndcg_at_10"] == 0.15
    assert run.data.metrics["memory/peak_gib"] == 0.5
    assert run.data.metrics["seconds"] == 3.0
    (infeasible,) = runs_of(client, 2)
    assert infeasible.data.tags["paretocut.outcome"] == "infeasible"
    assert infeasible.info.status == "FINISHED"


def test_a_repeat_is_a_run_that_says_what_it_repeats(
    ledger: Ledger, build_worker: BuildWorker, store: str, tmp_path: Path
) -> None:
    build_worker(succeed).run(1, confirm=2)
    track(ledger, store, tmp_path)
    client = build_client(store)
    (first,), (repeat,) = runs_of(client, 0), runs_of(client, 1)
    assert "paretocut.repeats" not in first.data.tags
    assert repeat.data.tags["paretocut.repeats"] == "0"
    assert repeat.data.tags["mlflow.parentRunId"] == first.data.tags["mlflow.parentRunId"]
    assert repeat.data.params == first.data.params
    assert repeat.data.tags["seed"] == "1000000"


def test_the_study_is_shown_while_it_runs_and_its_front_has_a_tag(
    ledger: Ledger,
    build_worker: BuildWorker,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "_REFRESH_SECONDS", 0.0)
    results = iter([(0.1, 2**29), (0.2, 2**28), (0.3, 2**29)])

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        quality, memory = next(results)
        context.report(1, {"val/ndcg_at_10": quality})
        return TrialResult(quality, memory, seconds=1.0)

    shown = threading.Event()
    drawing = tmp_path / "drawing.svg"

    def draw(record: StudyRecord) -> list[Path]:
        drawing.write_text(" ".join(str(trial.curve) for trial in record.complete))
        return [drawing]

    def describe(record: StudyRecord) -> str:
        if record.complete:
            shown.set()
        return f"{len(record.complete)} trials"

    client = build_client(store)

    def of_the_front() -> list[str]:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = client.search_runs([experiment.experiment_id], "tags.front = 'true'")
        return sorted(run.data.tags["paretocut.trial"] for run in runs)

    worker = build_worker(objective)

    def run(tracker: Tracker) -> None:
        worker.run(1)
        tracker.wake()
        assert shown.wait(100)
        tracker.drain()
        assert of_the_front() == ["0"]
        parent = ledger.runs()[PARENT].run_id
        assert client.get_run(parent).data.tags["mlflow.note.content"] == "1 trials"
        assert [artifact.path for artifact in client.list_artifacts(parent)] == [
            "drawing.svg",
            "study.json",
        ]
        worker.run(3)

    tracker, _ = track(ledger, store, tmp_path, run, Sight(describe, draw))
    assert tracker.untold == ""
    assert of_the_front() == ["1", "2"], "the first has left it"
    parent = client.get_run(ledger.runs()[PARENT].run_id)
    assert parent.data.tags["mlflow.note.content"] == "3 trials"
    assert drawing.read_text() == "(0.1,)", "at the end it is given the artifacts"
    history = client.get_metric_history(parent.info.run_id, "best/ndcg_at_10")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_telling_again_changes_nothing(
    ledger: Ledger, build_worker: BuildWorker, store: str, tmp_path: Path
) -> None:
    worker = build_worker(succeed)
    worker.run(1)
    track(ledger, store, tmp_path)
    told = ledger.runs()
    worker.run(2)
    track(ledger, store, tmp_path)
    after = ledger.runs()
    assert after[0] == told[0]
    assert after[PARENT] == told[PARENT]._replace(epochs_sent=2)
    client = build_client(store)
    assert len(runs_of(client, 0)) == len(runs_of(client, 1)) == 1
    assert len(client.get_metric_history(told[0].run_id, QUALITY)) == 2


def test_a_retried_trial_goes_on_in_its_run(
    ledger: Ledger, build_worker: BuildWorker, store: str, tmp_path: Path
) -> None:
    calls = []

    def flaky(config: TrialConfig, context: TrialContext) -> TrialResult:
        calls.append(config)
        if len(calls) == 1:
            context.report(1, {QUALITY: 0.1})
            raise OSError("gone")
        return succeed(config, context)

    build_worker(flaky).run(1)
    track(ledger, store, tmp_path)
    runs = ledger.runs()
    assert runs[0].run_id == runs[1].run_id
    client = build_client(store)
    assert runs_of(client, 0) == []
    (run,) = runs_of(client, 1)
    assert run.info.status == "FINISHED"
    assert run.data.tags["paretocut.outcome"] == "complete"


def test_a_client_that_always_fails_costs_no_trial(
    ledger: Ledger,
    build_worker: BuildWorker,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(uri: str) -> None:
        raise ConnectionError("nobody there")

    with monkeypatch.context() as patched:
        patched.setattr(tracking, "build_client", refuse)
        worker = build_worker(succeed)

        def run(tracker: Tracker) -> None:
            worker._tracker = tracker
            worker.run(2)

        tracker, warnings = track(ledger, store, tmp_path, run)
    assert "nobody there" in tracker.untold
    assert len(warnings) == 1, "said once, not at every epoch"
    assert len(read(ledger).complete) == 2
    tracker, _ = track(ledger, store, tmp_path)
    assert tracker.untold == ""
    assert len(build_client(store).get_metric_history(ledger.runs()[1].run_id, QUALITY)) == 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A real server on loopback, in its own process group, ended with the block."""
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1):
                break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "server.log").read_text())
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_artifacts_that_cannot_be_written_cost_neither_trial_nor_run(
    ledger: Ledger, build_worker: BuildWorker, tmp_path: Path, store: str
) -> None:
    (tmp_path / "artifacts").touch()  # where a folder is to be made
    tracker, _ = track(ledger, store, tmp_path, lambda _: build_worker(succeed).run(2))
    assert tracker.untold
    assert len(read(ledger).complete) == 2
    (tmp_path / "artifacts").unlink()
    tracker, _ = track(ledger, store, tmp_path)
    assert not tracker.untold
    assert all(run.closed for number, run in ledger.runs().items() if number != PARENT)


def test_a_server_that_dies_midway_is_told_when_it_is_back(
    ledger: Ledger, build_worker: BuildWorker, tmp_path: Path
) -> None:
    port = free_port()
    worker = build_worker(succeed)
    with mlflow_server(tmp_path, port) as uri:
        check_server(uri)
        with Tracker(ledger, uri, tmp_path, lambda _: None) as tracker:
            worker._tracker = tracker
            worker.run(1)
            tracker.drain()
            assert ledger.runs()[0].closed
    begin = time.monotonic()
    tracker, _ = track(ledger, uri, tmp_path, lambda _: worker.run(3))
    assert time.monotonic() - begin < 60
    assert tracker.untold
    assert len(read(ledger).complete) == 3
    with mlflow_server(tmp_path, port) as uri:
        tracker, _ = track(ledger, uri, tmp_path)
        assert tracker.untold == ""
        client = build_client(uri)
        assert [len(runs_of(client, number)) for number in range(3)] == [1, 1, 1]
        parent = ledger.runs()[PARENT].run_id
        names = {artifact.path for artifact in client.list_artifacts(parent)}
        assert names == {"report.html", "study.json"}


def test_a_server_that_is_down_at_the_start_is_one_sentence() -> None:
    with pytest.raises(UserError, match="does not answer") as caught:
        check_server(f"http://me:secret@127.0.0.1:{free_port()}")
    assert "secret" not in str(caught.value)
    check_server("sqlite:///mlflow.db")
