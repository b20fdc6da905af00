"""What every loss checks of its inputs."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.gpu import is_simulated, on_gpu

if TYPE_CHECKING:
    from kernels.reference import Problem

_MOST = (1 << 31) - 1
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_inputs(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> None:
    """Raises a ValueError that names the first argument which does not fit the others."""
    for name, matrix in (("states_ND", states_ND), ("table_VD", table_VD)):
        if matrix.ndim != 2 or matrix.dtype not in _DTYPES:
            raise ValueError(f"{name} must be a float matrix, not {kind(matrix)}")
    if states_ND.shape[1] == 0:
        raise ValueError("states_ND must have at least one column")
    if table_VD.shape[0] == 0:
        raise ValueError("table_VD must have at least one item")
    if table_VD.shape[1] != states_ND.shape[1]:
        raise ValueError(
            f"table_VD has width {table_VD.shape[1]}, but states_ND has {states_ND.shape[1]}"
        )
    check_count("states_ND", "rows", states_ND.shape[0])
    check_count("table_VD", "items", table_VD.shape[0])
    if targets_N.shape != states_ND.shape[:1] or targets_N.dtype != torch.int64:
        raise ValueError(
            f"targets_N must be int64 of shape [{states_ND.shape[0]}], not {kind(targets_N)}"
        )
    if not states_ND.device == table_VD.device == targets_N.device:
        raise ValueError(
            f"states_ND, table_VD and targets_N must be on one device, not on "
            f"{states_ND.device}, {table_VD.device} and {targets_N.device}"
        )


def check_extras(table_VD: Tensor, bias_V: Tensor | None, logit_scale: Tensor | None) -> None:
    """Raises a ValueError that names the bias or the logit scale if it does not fit the table."""
    extras = (("bias_V", bias_V, table_VD.shape[:1]), ("logit_scale", logit_scale, ()))
    for name, tensor, shape in extras:
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} must be float of shape {list(shape)}, not {kind(tensor)}")
        if tensor.device != table_VD.device:
            raise ValueError(f"{name} is on {tensor.device}, but table_VD is on {table_VD.device}")


def check_count(name: str, things: str, number: int) -> None:
    """Raises a ValueError if there are more than a 32-bit index can number."""
    if number > _MOST:
        raise ValueError(f"{name} has {number} {things}, but the most is {_MOST}")


def check_weights(name: str, weights_V: Tensor) -> None:
    """Raises a ValueError if there is a weight that is none, or none that is positive."""
    if weights_V.ndim != 1 or weights_V.is_complex() or len(weights_V) == 0:
        raise ValueError(f"{name} must be a vector of real numbers, not {kind(weights_V)}")
    if is_simulated():
        return
    if not weights_V.isfinite().all() or (weights_V < 0).any() or not weights_V.any():
        raise ValueError(f"{name} must be finite and not negative, and not all 0")


def check_filter(filter_eps: float | None) -> None:
    """Raises a ValueError if the threshold is none."""
    if filter_eps is not None and not 0 <= filter_eps < math.inf:
        raise ValueError(f"filter_eps must be finite and not negative, not {filter_eps}")


def check_reduction(reduction: str) -> None:
    """Raises a ValueError if there is no such reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")


def check_ids(problem: "Problem") -> None:
    """Raises a ValueError if a target or a candidate on the CPU is not in the catalogue.

    On a GPU the check would wait for the device; see `kernels._faults`.
    """
    targets_N, num_items, draws = problem.targets_N, len(problem.table_VD), problem.draws
    if on_gpu(targets_N.device):
        return
    _check_range("targets_N", targets_N.where(targets_N != problem.ignore_index, 0), 0, num_items)
    if draws is not None and draws.ids_GK is not None:
        _check_range("ids_GK", draws.ids_GK, -1, num_items)


def _check_range(name: str, ids: Tensor, least: int, end: int) -> None:
    if ids.numel():
        low, high = int(ids.min()), int(ids.max())
        if low < least or high >= end:
            raise ValueError(f"{name} must lie in [{least}, {end}), but spans {low} to {high}")


def kind(tensor: Tensor) -> str:
    """What a tensor is, for messages."""
    return f"{tensor.dtype} of shape {list(tensor.shape)}"
