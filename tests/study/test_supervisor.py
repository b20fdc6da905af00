"""`study.run --workers`: worker processes of one study, as a user starts and kills them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from objectives.errors import UserError
from study import cli
from study.ledger import Ledger
from study.records import find, read
from study.spec import StudySpec
from study.supervisor import Slot, Supervisor, places
from study.worker_process import START_AGAIN
from study.workers import live_workers
from tests.postgres import Postgres
from tests.study.conftest import Command

QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
SLOW = ["--recorded", "beauty", "--study", "s", "--sampler", "tpe", "--pruning", "none"]


@pytest.fixture
def start(tmp_path: Path, empty_store: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `study.run` in a process."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        (tmp_path / "runs").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "study.run", *SLOW, *arguments],
            cwd=tmp_path,
            env={**os.environ, **QUIET, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    yield run
    for process in started:
        process.kill()
        process.communicate()


def opened(url: str, process: subprocess.Popen[str]) -> Ledger:
    """The study, once both workers have ended a trial."""
    ledger: Ledger | None = None
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
        try:
            ledger = ledger or find("s", url, Path("unused"))
        except UserError:
            continue
        if len({trial.worker for trial in read(ledger).finished}) == 2:
            return ledger
    raise AssertionError("nothing happened")


def process_of(worker: str) -> psutil.Process:
    return psutil.Process(int(worker.rsplit(":", 2)[1]))


def test_workers_that_die_are_replaced_and_the_study_is_stopped_and_goes_on(
    postgres: Postgres,
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    command: Command,
) -> None:
    url = postgres.url("supervised")
    run = ["--storage", url, "--output-dir", str(tmp_path / "runs"), "--n-trials", "1000"]
    process = start(*run, "--workers", "2")
    ledger = opened(url, process)
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libtorch" not in maps, "the supervisor is light"
    for line in psutil.Process(process.pid).children():
        assert "postgresql" not in " ".join(line.cmdline())
    first = {row.worker for row in live_workers(ledger)}
    assert len(first) == 2
    process_of(min(first)).kill()
    while len({row.worker for row in live_workers(ledger)} - first) < 1:
        time.sleep(0.1)

    where = ["--study", "s", "--storage", url]
    status = json.loads(command("study.status", *where, "--json").stdout)
    assert max(first) in {row["worker"] for row in status["workers"]}
    assert status["left"] == 1000 - status["finished"]
    assert "on" in command("study.status", *where).stdout
    assert "workers asked to stop once" in command("study.stop", *where).stderr
    _, errors = process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED, errors
    assert "died (SIGKILL); a new one goes on" in errors
    record = read(ledger)
    assert {trial.outcome for trial in record.trials} <= {"complete", "failed", "diverged"}
    assert "no worker runs it" in command("study.stop", *where).stderr

    total = len(record.finished) + 3
    done = command("study.run", *SLOW, *run[:-1], str(total), "--json")
    assert done.returncode == cli.OK, done.stderr
    assert json.loads(done.stdout)["trials"] == total
    ledger.engine.dispose()


def test_workers_end_with_their_supervisor(
    postgres: Postgres, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    url = postgres.url("orphans")
    process = start("--storage", url, "--workers", "2", "--n-trials", "1000")
    ledger = opened(url, process)
    workers = [process_of(row.worker) for row in live_workers(ledger)]
    process.kill()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    outcomes = Counter(trial.outcome for trial in read(ledger).trials)
    assert outcomes["running"] == 0
    ledger.engine.dispose()


def test_sigterm_hands_all_trials_back(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """On SQLite, which several workers of one host may share."""
    url = f"sqlite:///{tmp_path / 'runs' / 's' / 'study.db'}"
    process = start("--workers", "2", "--n-trials", "1000")
    ledger = opened(url, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == cli.TERMINATED, errors
    assert "Traceback" not in errors
    assert not {"running"} & {trial.outcome for trial in read(ledger).trials}
    assert live_workers(ledger) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "0,x"], "--gpus 0,x: not one of the forms"),
        (["--gpus", "7"], "--gpus 7: the driver shows no GPU here; name others, or use --workers"),
        (["--gpus", "all"], "--gpus all: the driver shows no GPU"),
        (["--gpus", "0", "--workers", "2"], "--workers 2: --gpus 0 has one each; leave one out"),
        (["--gpus", "0", "--device", "cpu"], "--device cpu: --gpus 0 says it; leave one out"),
        (["--gpus-per-trial", "2"], "--gpus-per-trial 2: say with --gpus which there are"),
        (["--workers", "0"], "--workers 0: input should be greater than or equal to 1"),
        (["--max-retries", "-1"], "--max-retries -1: input should be greater than or equal to 0"),
    ],
)
def test_bad_places_are_one_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = command("study.run", *SLOW, *arguments)
    assert done.returncode == cli.USAGE
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--memory-budget", "1KiB", "the smallest of the recorded runs took"),
        ("--space.width", "8", "says what data and settings there are"),
    ],
)
def test_what_workers_refuse_is_said_once(
    tmp_path: Path,
    start: Callable[..., subprocess.Popen[str]],
    flag: str,
    value: str,
    words: str,
) -> None:
    process = start("--workers", "2", flag, value)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == cli.USAGE
    assert errors.count(words) == 1
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_process_that_lost_its_card_is_replaced_until_it_helps_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slot = Slot("gpu 0", {}, code=START_AGAIN)
    supervisor = Supervisor([slot], {}, None, None)
    for _ in range(7):
        supervisor._ended(slot)
        assert slot.starts_at is not None
        assert not slot.is_over
    assert "gpu 0: its process cannot use its device any more; a new" in capsys.readouterr().err
    supervisor._ended(slot)
    assert slot.is_over
    assert supervisor.failures == 1
    assert "8 times without a trial that ended" in capsys.readouterr().err


def test_gpus_are_those_that_the_user_lets_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5ba")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    both = places(StudySpec(gpus="all"))
    assert [slot.name for slot in both] == ["gpu 0", "gpu 1"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in both] == ["3", "GPU-5ba"]
    (one,) = places(StudySpec(gpus="1"))
    assert one.environment["CUDA_VISIBLE_DEVICES"] == "GPU-5ba"
    (pair,) = places(StudySpec(gpus="all", gpus_per_trial=2))
    assert (pair.name, pair.num_gpus) == ("gpu 0+1", 2)
    assert pair.environment["CUDA_VISIBLE_DEVICES"] == "3,GPU-5ba"
    with pytest.raises(UserError, match="--gpus 0 are 1, which do not make groups of 2"):
        places(StudySpec(gpus="0", gpus_per_trial=2))
    monkeypatch.delenv("OMP_NUM_THREADS")
    (alone, *_) = places(StudySpec(workers=1000))
    assert alone.environment == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
