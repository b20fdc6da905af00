"""Triton's kernels run in its interpreter where there is no GPU."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported for the first time.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where Triton's kernels run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton backend, whatever the device."""
    pytest.importorskip("triton")
    monkeypatch.setenv("PARETOCUT_KERNELS", "triton")


@pytest.fixture(params=["eager", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend in turn."""
    name: str = request.param
    if name == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("no triton")
    if name == "triton" and not torch.cuda.is_available():
        # The interpreter computes every element of a block, meant or not.
        monkeypatch.setattr("kernels.triton_row_updates._BLOCK_ELEMENTS", 128)
    monkeypatch.setenv("PARETOCUT_KERNELS", name)
    return name
