"""What every loss checks of its inputs and does with its rows."""

import torch
from torch import Tensor


def check_inputs(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor) -> None:
    """Raises a ValueError that names the first argument which does not fit the others."""
    if states_ND.ndim != 2 or not states_ND.is_floating_point():
        raise ValueError(f"states_ND must be a float matrix, not {_kind(states_ND)}")
    if table_VD.ndim != 2 or not table_VD.is_floating_point():
        raise ValueError(f"table_VD must be a float matrix, not {_kind(table_VD)}")
    if table_VD.shape[0] == 0:
        raise ValueError("table_VD must have at least one item")
    if table_VD.shape[1] != states_ND.shape[1]:
        raise ValueError(
            f"table_VD has width {table_VD.shape[1]}, but states_ND has {states_ND.shape[1]}"
        )
    if targets_N.shape != states_ND.shape[:1] or targets_N.dtype != torch.int64:
        raise ValueError(
            f"targets_N must be int64 of shape [{states_ND.shape[0]}], not {_kind(targets_N)}"
        )
    if not states_ND.device == table_VD.device == targets_N.device:
        raise ValueError(
            f"states_ND, table_VD and targets_N must be on one device, not on "
            f"{states_ND.device}, {table_VD.device} and {targets_N.device}"
        )
    # On a GPU the check would wait for the device; there an id out of range ends in its assertion.
    if targets_N.device.type == "cpu" and len(targets_N):
        low, high = int(targets_N.min()), int(targets_N.max())
        if low < 0 or high >= table_VD.shape[0]:
            raise ValueError(
                f"targets_N must lie in [0, {table_VD.shape[0]}), but spans {low} to {high}"
            )


def reduce(loss_N: Tensor, reduction: str) -> Tensor:
    """The mean of the rows (0 where there is none), their sum, or the rows themselves."""
    match reduction:
        case "mean":
            return loss_N.sum() / max(len(loss_N), 1)
        case "sum":
            return loss_N.sum()
        case "none":
            return loss_N
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {list(tensor.shape)}"
