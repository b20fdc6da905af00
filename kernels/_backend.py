"""Which backend computes: Triton on CUDA, PyTorch everywhere else.

The environment variable PARETOCUT_KERNELS=eager|triton forces one. `torch.compile` reads it while
it traces.
"""

import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from kernels.gpu import on_gpu

Backend = Literal["eager", "triton"]

_VARIABLE = "PARETOCUT_KERNELS"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST = 1024


def choose_backend(states_ND: Tensor, table_VD: Tensor) -> Backend:
    """The backend for these inputs.

    Raises:
        ValueError: The environment variable is unknown or forces Triton on inputs that it cannot
            work on, or the states are wider than Triton's kernels can be.
    """
    forced = forced_backend()
    dtypes = states_ND.dtype, table_VD.dtype
    fits = dtypes[0] in _DTYPES and dtypes[1] in _DTYPES
    is_default = fits and on_gpu(states_ND.device) and _is_there()
    if forced == "eager" or (forced is None and not is_default):
        return "eager"
    if not fits:
        raise ValueError(
            f"states_ND is {dtypes[0]} and table_VD {dtypes[1]}, but {_VARIABLE}=triton works on "
            "float32, bfloat16 and float16"
        )
    if states_ND.shape[1] > _WIDEST:
        raise ValueError(
            f"states_ND has {states_ND.shape[1]} columns, but Triton's kernels at most {_WIDEST}; "
            f"{_VARIABLE}=eager has no limit"
        )
    return "triton"


def check_interpreter(device: torch.device) -> None:
    """Raises a ValueError if Triton's kernels cannot run on this device."""
    import triton

    if not (on_gpu(device) or triton.knobs.runtime.interpret):
        raise ValueError(
            f"states_ND is on {device}, but {_VARIABLE}=triton works on CUDA, or on the CPU with "
            "TRITON_INTERPRET=1"
        )


def forced_backend() -> Backend | None:
    """What the environment asks for, if anything."""
    match os.environ.get(_VARIABLE, ""):
        case "":
            return None
        case "eager":
            return "eager"
        case "triton":
            return "triton"
        case other:
            raise ValueError(f"{_VARIABLE} must be 'eager' or 'triton', not {other!r}")


def triton_is_default() -> bool:
    """Whether a GPU would compute in Triton: where there is one, and nothing forces PyTorch."""
    return forced_backend() != "eager" and _is_there()


def _is_there() -> bool:
    """Whether there is Triton for CUDA: not on ROCm, and not on Windows."""
    return torch.version.hip is None and importlib.util.find_spec("triton") is not None
