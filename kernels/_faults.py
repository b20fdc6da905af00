"""Ids out of range that were met on a GPU, reported without waiting for it.

A kernel sets a bit in a word of its device, which is copied to the host behind every call and is
looked at before the next one.
"""

import os

import torch
from torch import Tensor

from kernels.gpu import is_simulated

TARGET, CANDIDATE = 1, 2
"""Bits: an id of targets_N, or of a candidate list, is not in the catalogue."""


class Faults:
    """The faults of one device.

    Attributes:
        bits: int32 [1] on the device, for the kernels to set.
    """

    def __init__(self, device: torch.device) -> None:
        self.bits = torch.zeros(1, dtype=torch.int32, device=device)
        self._on_host = torch.zeros(1, dtype=torch.int32, pin_memory=device.type == "cuda")
        # There the device is waited for anyway.
        self._waits = device.type != "cuda" or os.environ.get("CUDA_LAUNCH_BLOCKING") == "1"

    def report(self) -> None:
        """Sends the bits to the host, after the kernels of a call."""
        self._on_host.copy_(self.bits, non_blocking=True)
        if self._waits:
            self.check()

    def check(self) -> None:
        """Raises a ValueError if an earlier call left a fault, and forgets it."""
        found = 0 if is_simulated() else int(self._on_host)
        if not found:
            return
        if self.bits.is_cuda:
            # A later call's copy may be under way.
            torch.cuda.synchronize(self.bits.device)
        self.bits.zero_()
        self._on_host.zero_()
        name = "targets_N" if found & TARGET else "ids_GK"
        raise ValueError(
            f"{name} of an earlier call held an id outside [0, V) (a target that is out of range "
            "has loss NaN, a candidate counts as an empty slot); CUDA_LAUNCH_BLOCKING=1 finds the "
            "call"
        )


_OF_DEVICE: dict[torch.device, Faults] = {}


def faults_of(device: torch.device) -> Faults:
    """The faults of a device, made once."""
    if is_simulated():
        return Faults(device)
    if device not in _OF_DEVICE:
        _OF_DEVICE[device] = Faults(device)
    return _OF_DEVICE[device]


def mark_bad_ids(ids_GK: Tensor, num_items: int, faults: Faults | None) -> Tensor:
    """Lists as int32 whose every id is in the catalogue, or -1.

    Args:
        ids_GK: Lists, int64 or int32, -1 for an empty slot.
        num_items: V.
        faults: Where to note other ids; None: they have been noted.
    """
    bad_GK = (ids_GK < -1) | (ids_GK >= num_items)
    if faults is not None:
        faults.bits.bitwise_or_(bad_GK.any().to(torch.int32) * CANDIDATE)
    return ids_GK.masked_fill(bad_GK, -1).to(torch.int32).contiguous()
