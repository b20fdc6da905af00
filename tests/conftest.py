"""What every test runs under: one thread, its own cache, no settings from outside."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.postgres import Postgres, serving

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "deterministic", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, session_cache: Path) -> None:
    for name in tuple(os.environ):
        if name.startswith("PARETOCUT_") or name in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PARETOCUT_CACHE", str(session_cache))


_HOLD_HALF_THE_CARD = """
import sys, torch
size = torch.cuda.get_device_properties(0).total_memory // 2
held = torch.empty(size, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds half of the first card's memory until its input ends."""
    command = [sys.executable, "-c", _HOLD_HALF_THE_CARD]
    with subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server of this session; tests take a database of their own each."""
    with serving() as server:
        yield server
