"""Triton's kernels run in its interpreter where there is no GPU."""

import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported for the first time.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _quick_interpreter() -> None:
    """The interpreter without what changes nothing, which is more than half of its time.

    It replaces Triton's functions by its own again at every call of a function, and works out
    whether integers overflow, which it tells in its debug mode only.
    """
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        return
    from triton import language
    from triton.runtime import interpreter

    modules = {"tl": language, "core": language.core}
    interpreter._patch_lang(SimpleNamespace(__globals__=modules))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.interpreter_builder.options = options


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
    monkeypatch.setenv("PARETOCUT_KERNELS", name)
    return name
