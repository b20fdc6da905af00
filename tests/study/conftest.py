"""A data set small enough to train on in a second, and the parts of a study in this process."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from objectives.trial import Objective
from study.ledger import Ledger, connect
from study.progress import StudyProgress
from study.sampling import tpe
from study.space import Space, build_space
from study.worker import Stop, Worker

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


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.create(connect(f"sqlite:///{tmp_path / 'study.db'}"), "s", IDENTITY)
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
            tracker=None,
            stop=Stop(progress.say),
        )

    return build
