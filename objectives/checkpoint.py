"""The state of a training on disk, from which another try goes on."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from objectives.errors import UserError

SECONDS_BETWEEN = 60.0
"""A training writes its state no more often; that of a large table takes a while."""


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
