"""A data set small enough to train on in a second, and the parts of a study in this process."""

import importlib
import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from objectives.trial import Objective
from study.ledger import Ledger, connect
from study.progress import StudyProgress
from study.sampling import tpe
from study.signals import Stop
from study.space import Space, build_space
from study.tracking import build_client
from study.worker import Worker
from study.workers import Presence
from tests.postgres import Postgres, serving

IDENTITY = {
    "data": {"name": "tiny", "digest": "0", "split": "leave-one-out"},
    "space": {},
    "open": ["batch_size"],
    "memory_budget": 1 << 30,
    "memory_source": "tracked",
    "seed": 0,
    "request": {"data": "tiny"},
}


@pytest.fixture
def tiny_csv(tmp_path: Path) -> Path:
    """60 users, 30 items, each followed by the next."""
    rows = [f"u{u},i{(7 * u + t) % 30},{u + t}" for u in range(60) for t in range(12)]
    path = tmp_path / "tiny.csv"
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    build_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server that a test may stop and kill."""
    with serving(durable=True) as server:
        yield server


@pytest.fixture
def made_store(tiny_csv: Path, empty_store: Path) -> None:
    """The MLflow store of studies beside the data, whose tables take seconds to make."""
    (tiny_csv.parent / "runs").mkdir()
    shutil.copy(empty_store, tiny_csv.parent / "runs")


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(
    tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """A command beside the data, in this process: a new one imports for seconds."""
    monkeypatch.chdir(tiny_csv.parent)

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            code = importlib.import_module(module).main(list(arguments))
        except SystemExit as stopped:
            code = int(str(stopped.code))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage without studies, whose tables take longer to make than to copy."""
    path = tmp_path_factory.mktemp("database") / "study.db"
    connect(f"sqlite:///{path}").engine.dispose()
    return path


@pytest.fixture
def ledger(tmp_path: Path, empty_database: Path) -> Ledger:
    path = shutil.copy(empty_database, tmp_path)
    ledger = Ledger.create(connect(f"sqlite:///{path}"), "s", IDENTITY)
    ledger.study.sampler = tpe(0)
    return ledger


@pytest.fixture
def space() -> Space:
    return build_space({}, num_items=1000, num_sequences=500)


BuildWorker = Callable[..., Worker]


@pytest.fixture
def build_worker(ledger: Ledger, space: Space, tmp_path: Path) -> BuildWorker:
    def build(objective: Objective, ledger: Ledger = ledger) -> Worker:
        progress = StudyProgress(1, Console(file=io.StringIO()), live=False)
        return Worker(
            ledger,
            space,
            objective,
            seed=0,
            tags={"device": "cpu"},
            folder=tmp_path / "checkpoints",
            progress=progress,
            presence=Presence(ledger, "cpu", lambda order: None),
            stop=Stop(progress.say),
        )

    return build
