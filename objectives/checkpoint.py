"""The state of a training on disk, from which another try goes on."""

import os
import pickle
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from objectives.errors import UserError

_SHARE = 0.05
"""Of the time that a training takes, what it may spend on writing its state."""


class Pace:
    """When a training writes its state: after every epoch, unless that takes too long."""

    def __init__(self) -> None:
        self._written = time.monotonic()
        self._took = 0.0

    def allows(self) -> bool:
        """Whether enough time has passed since the state was written, for what that took."""
        return self._took <= _SHARE * (time.monotonic() - self._written)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around the writing."""
        begin = time.monotonic()
        yield
        self._written = time.monotonic()
        self._took = self._written - begin


def save(path: Path, training: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes the state of a training, or leaves what is there.

    Args:
        path: The file; its folder is made.
        training: What the training is of, by name; `load` compares it.
        state: Tensors, numbers, strings, and lists and dictionaries of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            torch.save({"training": dict(training), "state": dict(state)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, training: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state that the file holds, on the CPU; None where there is none that can be read.

    Raises:
        UserError: It is of another training.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
        return None
    of = found["training"]
    other = [name for name in {**of, **training} if of.get(name) != training.get(name)]
    if other:
        raise UserError(
            f"{path}: the checkpoint is of another training ({', '.join(sorted(other))} differ); "
            "move it away to start anew"
        )
    state: dict[str, Any] = found["state"]
    return state
