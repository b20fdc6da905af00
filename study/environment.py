"""What a trial ran on: kept with it, so that figures can be compared."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.errors import UserError

if TYPE_CHECKING:
    import torch


def choose_device(asked: str) -> "torch.device":
    """The device to train on; "auto" takes CUDA where there is one, by torchrun's word which.

    Raises:
        UserError: The device does not exist.
    """
    import torch

    count = torch.cuda.device_count()
    if asked == "auto":
        index = int(os.environ.get("LOCAL_RANK", "0"))
        return torch.device("cuda", index) if count else torch.device("cpu")
    if asked == "cpu":
        return torch.device("cpu")
    index = int(asked.partition(":")[2] or 0)
    if index >= count:
        found = f"torch sees {count} CUDA devices" if count else "torch sees no CUDA device here"
        raise UserError(f"--device {asked}: {found}; use --device cpu or leave the flag out")
    return torch.device("cuda", index)


def describe(device: "torch.device | None") -> dict[str, str]:
    """Card, driver, versions and commit, as tags; None: nothing is trained, nor torch imported."""
    tags = {
        "paretocut": _own_version(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "optuna": version("optuna"),
        "device": str(device),
    }
    if device is not None and device.type == "cuda":
        import torch

        tags["gpu"] = torch.cuda.get_device_name(device)
        tags["driver"] = _driver()
    if commit := _commit():
        tags["commit"] = commit
    return tags


def _own_version() -> str:
    """That of the installed package; a source tree runs without being installed, too."""
    try:
        return version("paretocut")
    except PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "unknown"


def _commit() -> str:
    """The commit of a checkout that this code runs from; nothing elsewhere."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
