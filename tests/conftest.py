"""What every test runs under: one thread, its own cache, no settings from outside."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

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
