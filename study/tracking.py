"""MLflow: a view of the study's storage, told by a thread of its own.

The storage is the truth. The thread reads what MLflow has not been told yet and sends it; a server
that is down costs a trial nothing, and what it missed is sent when it is back, at the end, or by
the next run of the command. Nothing is queued anywhere else.
"""

import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import UserError
from study.credentials import hide_password
from study.front import objectives_of
from study.ledger import PARENT, Ledger, Run
from study.locks import locked
from study.records import StudyRecord, TrialRecord, read
from study.stopping import hypervolumes

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "paretocut"

_RETRY_SECONDS = 30.0
_CLOSE_SECONDS = 30.0

_REFRESH_SECONDS, _REFRESH_SHARE = 30.0, 0.05
"""What the study's own run shows is renewed at most so often, and in so much of the time."""

_METRICS_OF_A_BATCH = 1000
"""MLflow takes no more at once."""
_STATUS = {"failed": "FAILED", "running": "RUNNING"}


def check_server(uri: str) -> None:
    """Raises a UserError if a tracking server does not answer; other stores are not asked."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{hide_password(uri).rstrip('/')}/health", timeout=5):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"--tracking-uri {hide_password(uri)}: the MLflow server does not answer "
            f"({reason}); start it, or leave the flag out to track into a local file"
        ) from None


@dataclass(frozen=True)
class Sight:
    """How the study's own run shows it.

    Attributes:
        describe: Its description, in Markdown.
        draw: Files that show it, written anew.
    """

    describe: Callable[[StudyRecord], str]
    draw: Callable[[StudyRecord], list[Path]]


class Tracker:
    """Tells MLflow about one study, in a thread.

    Use as a context manager around the trials; `wake` says that there is news.
    """

    def __init__(
        self,
        ledger: Ledger,
        uri: str,
        output_dir: Path,
        warn: Callable[[str], None],
        sight: Sight | None = None,
    ) -> None:
        self.uri = uri
        self.untold = ""
        self._ledger = ledger
        self._output_dir = output_dir
        # What the study began on; those of a trial come with its result.
        self._tags: dict[str, str] = ledger.study.user_attrs.get("tags", {})
        self._warn = warn
        self._sight = sight
        self._shown = 0
        self._next_sight = time.monotonic() + _REFRESH_SECONDS
        self._news = threading.Event()
        self._closing = threading.Event()
        self._draining = threading.Event()
        self._drained = threading.Event()
        self._artifacts: list[Path] = []
        self._final_status = "RUNNING"
        self._thread = threading.Thread(target=self._loop, name="mlflow", daemon=True)

    def __enter__(self) -> "Tracker":
        self._thread.start()
        self.wake()
        return self

    def __exit__(self, *_: object) -> None:
        self.close("KILLED")

    def wake(self) -> None:
        """There is news; returns at once."""
        self._news.set()

    def drain(self) -> None:
        """Waits until MLflow has been told all there is, or could not be."""
        self._drained.clear()
        self._draining.set()
        self.wake()
        self._drained.wait(_CLOSE_SECONDS)

    def close(self, status: str, artifacts: list[Path] | None = None) -> None:
        """Sends what is left, attaches the artifacts and ends the study's run, or gives up.

        `untold` then says what MLflow could not be told, or is empty.
        """
        if self._closing.is_set():
            return
        self._artifacts, self._final_status = artifacts or [], status
        self._closing.set()
        self.wake()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            self.untold = self.untold or "it did not answer in time"

    def _loop(self) -> None:
        next_try = 0.0
        while True:
            self._news.wait(timeout=_RETRY_SECONDS)
            self._news.clear()
            closing, draining = self._closing.is_set(), self._draining.is_set()
            if time.monotonic() < next_try and not (closing or draining):
                continue
            try:
                # Of several processes of a study one at a time tells what is untold.
                wait = closing or draining
                name = f"mlflow {self._ledger.study.study_name}"
                with locked(self._ledger.engine, name, wait=wait) as is_mine:
                    if is_mine:
                        self._tell(closing, draining)
                if self.untold:
                    self._warn("MLflow answers again; everything kept was sent")
                self.untold = ""
            except Exception as error:
                # Whatever the client raises: tracking is a view and must never stop a study.
                if not self.untold and not closing:
                    self._warn(
                        f"MLflow at {hide_password(self.uri)} does not take values; trials go "
                        "on, and it is told when it answers again"
                    )
                reason = hide_password(" ".join(str(error).split()))
                self.untold = f"{type(error).__name__}: {reason[:200]}"
                next_try = time.monotonic() + _RETRY_SECONDS
            if draining:
                self._draining.clear()
                self._drained.set()
            if closing:
                return

    def _tell(self, closing: bool, draining: bool) -> None:
        client = build_client(self.uri)
        record = read(self._ledger)
        runs = self._ledger.runs()
        parent = self._parent(client, runs.get(PARENT))
        for trial in record.trials:
            run = runs.get(trial.number)
            if trial.outcome == "waiting" or not trial.launched or (run and run.closed):
                continue
            if run is None:
                retried = runs.get(trial.retry_of) if trial.retry_of is not None else None
                run = self._open_run(client, trial, parent, retried)
                runs[trial.number] = run
            self._tell_trial(client, trial, run)
        begin = time.monotonic()
        ended = sum(trial.finished is not None for trial in record.trials)
        # Who drains is about to close.
        if closing or (ended > self._shown and begin >= self._next_sight and not draining):
            drawn = self._artifacts
            if not closing and self._sight is not None:
                drawn = self._sight.draw(read(self._ledger, curves=True))
            self._tell_study(client, record, parent, runs)
            for path in drawn:
                client.log_artifact(parent.run_id, str(path))
            self._shown, now = ended, time.monotonic()
            self._next_sight = now + max(_REFRESH_SECONDS, (now - begin) / _REFRESH_SHARE)
        if closing:
            client.set_terminated(parent.run_id, self._final_status)

    def _tell_study(
        self, client: "MlflowClient", record: StudyRecord, parent: Run, runs: Mapping[int, Run]
    ) -> None:
        """What the study has come to: tags, description, and how far it was after each trial."""
        from mlflow.entities import Metric, RunTag

        front, best = [trial.number for trial in record.front()], record.best()
        tags = {
            "paretocut.front": " ".join(map(str, sorted(front))),
            "paretocut.refused": str(len(record.refused)),
            **({} if best is None else {"paretocut.best_trial": str(best.number)}),
            **(
                {}
                if self._sight is None
                else {"mlflow.note.content": self._sight.describe(record)}
            ),
        }
        client.log_batch(parent.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        moments = _moments(record)
        metrics = [
            Metric(key, value, when, step)
            for step, (when, values) in enumerate(moments, 1)
            if step > parent.epochs_sent
            for key, value in values.items()
        ]
        for first in range(0, len(metrics), _METRICS_OF_A_BATCH):
            client.log_batch(parent.run_id, metrics[first : first + _METRICS_OF_A_BATCH])
        self._ledger.set_run(parent._replace(epochs_sent=len(moments)))
        told = client.search_runs(
            [client.get_run(parent.run_id).info.experiment_id],
            f"tags.mlflow.parentRunId = '{parent.run_id}' and tags.front = 'true'",
        )
        there = {run.info.run_id for run in told}
        wanted = {runs[number].run_id for number in front if number in runs}
        for run_id in wanted - there:
            client.set_tag(run_id, "front", "true")
        for run_id in there - wanted:
            client.delete_tag(run_id, "front")

    def _parent(self, client: "MlflowClient", run: Run | None) -> Run:
        from mlflow.entities import Dataset, DatasetInput

        if run is not None:
            if not self._closing.is_set():
                client.update_run(run.run_id, status="RUNNING")
            return run
        identity = self._ledger.identity
        name = self._ledger.study.study_name
        created = client.create_run(
            experiment_id(client, self.uri, self._output_dir),
            run_name=name,
            tags={**self._tags, "paretocut.study": name},
        ).info.run_id
        run = Run(PARENT, created, 0, False)
        self._ledger.set_run(run)
        for key, value in {
            **identity["space"],
            "memory_budget": identity["memory_budget"],
            "objectives": " ".join(objectives_of(identity)),
        }.items():
            client.log_param(created, key, value)
        data = identity["data"]
        client.log_inputs(
            created,
            [DatasetInput(Dataset(data["name"], data["digest"], "local", json.dumps(data)), [])],
        )
        client.log_dict(created, identity, "study.json")
        return run

    def _open_run(
        self, client: "MlflowClient", trial: TrialRecord, parent: Run, retried: Run | None
    ) -> Run:
        from mlflow.entities import Param

        number = str(trial.number)
        if retried is not None:
            run_id = retried.run_id
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, "paretocut.trial", number)
        else:
            name = self._ledger.study.study_name
            run_id = client.create_run(
                experiment_id(client, self.uri, self._output_dir),
                run_name=f"{name} {number}",
                start_time=_milliseconds(trial.started),
                tags={
                    **self._tags,
                    "mlflow.parentRunId": parent.run_id,
                    "paretocut.study": name,
                    "paretocut.trial": number,
                    **(
                        {}
                        if trial.repeat_of is None
                        else {"paretocut.repeats": str(trial.repeat_of)}
                    ),
                },
            ).info.run_id
        run = Run(trial.number, run_id, 0, False)
        self._ledger.set_run(run)
        client.log_batch(
            run_id, params=[Param(key, str(value)) for key, value in trial.params.items()]
        )
        return run

    def _tell_trial(self, client: "MlflowClient", trial: TrialRecord, run: Run) -> None:
        from mlflow.entities import Metric, Param, RunTag

        for epoch in self._ledger.epochs(trial.number, after=run.epochs_sent):
            when = int(epoch.recorded_at.timestamp() * 1000)
            client.log_batch(
                run.run_id,
                metrics=[
                    Metric(key, value, when, epoch.epoch)
                    for key, value in in_gib(epoch.metrics).items()
                ],
            )
            run = run._replace(epochs_sent=epoch.epoch)
            self._ledger.set_run(run)
        if trial.outcome == "running":
            return
        ended = _milliseconds(trial.finished)
        known = {
            **{f"final/{key}": value for key, value in trial.metrics.items()},
            "memory/peak_bytes": trial.peak_memory,
            "memory/reserved_bytes": trial.peak_reserved,
            "seconds": trial.seconds,
        }
        fixed = {key: value for key, value in trial.config.items() if key not in trial.params}
        client.log_batch(
            run.run_id,
            metrics=[
                Metric(key, value, ended, trial.epochs) for key, value in in_gib(known).items()
            ],
            params=[Param(key, str(value)) for key, value in fixed.items()],
            tags=[
                RunTag("paretocut.outcome", trial.outcome),
                RunTag("paretocut.reason", trial.reason),
                *(RunTag(key, value) for key, value in trial.tags.items()),
            ],
        )
        client.set_terminated(run.run_id, _STATUS.get(trial.outcome, "FINISHED"), ended)
        self._ledger.set_run(run._replace(closed=True))


def _moments(record: StudyRecord) -> list[tuple[int, dict[str, float]]]:
    """When each trial finished, in milliseconds, and how far the study was then; in that order."""
    order = sorted(record.finished, key=lambda trial: _milliseconds(trial.finished))
    volumes = hypervolumes(replace(record, trials=tuple(order)))
    best, moments = 0.0, []
    for trial, volume in zip(order, volumes, strict=True):
        best = max(best, trial.quality or 0.0)
        values = {"best/ndcg_at_10": best, "hypervolume": volume}
        moments.append((_milliseconds(trial.finished), values))
    return moments


def _milliseconds(moment: datetime | None) -> int:
    return int((moment.timestamp() if moment else time.time()) * 1000)


def in_gib(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics as people read them: bytes become GiB; what is not known is left out."""
    return {
        key.replace("_bytes", "_gib"): value / 2**30 if key.endswith("_bytes") else value
        for key, value in metrics.items()
        if value is not None
    }


def build_client(uri: str) -> "MlflowClient":
    """A client that fails fast and phones nobody."""
    # Read when mlflow is imported or when it first connects.
    for variable, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
        ("GIT_PYTHON_REFRESH", "quiet"),
    ):
        os.environ.setdefault(variable, value)
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def experiment_id(client: "MlflowClient", uri: str, output_dir: Path) -> Any:
    """The id of our experiment, made if need be."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    # A server knows where its artifacts go; a local store would put them into the working folder.
    local = not uri.startswith("http")
    location = (output_dir.absolute() / "artifacts").as_uri() if local else None
    return client.create_experiment(EXPERIMENT, artifact_location=location)
