"""A card that is shared: what other processes leave of its memory, who they are, and waiting."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch

from objectives.trial import MachineFault

WAIT_SECONDS = 180.0
"""So long a trial waits for memory that others hold."""
_POLL_SECONDS = 2.0
_OWN_OVERHEAD = 2 << 30
"""Bytes of a card beyond those that torch allocates, which no other process takes: the driver's,
and this process's context, code, graphs and NCCL (1.16 GiB in all on an H100, before the first
step). A generous bound, so that nobody else is blamed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CardProcess:
    """A process that holds memory of a card.

    Attributes:
        pid: Its number.
        name: Of its program.
        memory_bytes: What it holds; None where the driver does not tell.
    """

    pid: int
    name: str
    memory_bytes: int | None

    def __str__(self) -> str:
        held = "memory" if self.memory_bytes is None else _gib(self.memory_bytes)
        return f"process {self.pid} ({self.name}) holds {held}"


def available_memory(device: torch.device) -> int:
    """Bytes of the card that others leave to this process, those that it holds included."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def missing_memory(device: torch.device, budget: int) -> str:
    """Which part of the budget other processes hold, as a clause; empty if they leave it all.

    A budget of nearly the whole card is left if others hold nothing to speak of.
    """
    card = torch.cuda.get_device_properties(device)
    available = available_memory(device)
    if available >= min(budget, card.total_memory - _OWN_OVERHEAD):
        return ""
    holders = ", ".join(str(process) for process in other_processes(str(card.uuid)))
    return (
        f"{device} has {_gib(available)} left for this process, less than the budget of "
        f"{_gib(budget)}: {holders or 'something else holds its memory'}"
    )


def wait_for_memory(device: torch.device, budget: int) -> None:
    """Returns when other processes leave the budget to this one; logs once that it waits.

    Raises:
        MachineFault: They have not after `WAIT_SECONDS`; it names them.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    missing = missing_memory(device, budget)
    if missing:
        _log.warning("%s; waiting for it, %.0f s at most", missing, WAIT_SECONDS)
    while missing:
        if time.monotonic() >= deadline:
            raise MachineFault(missing)
        time.sleep(_POLL_SECONDS)
        missing = missing_memory(device, budget)


def other_processes(uuid: str) -> list[CardProcess]:
    """The other processes that hold memory of a card, as NVML reports them, the largest first.

    Empty where that cannot be known: without NVML, and where it does not list this process, as in
    a container with process numbers of its own.

    Args:
        uuid: The card's, as in torch's properties: `CUDA_VISIBLE_DEVICES` renumbers cards.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        running = [
            *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
            *pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
        ]
        held = {process.pid: process.usedGpuMemory for process in running}
        if os.getpid() not in held:
            return []
        processes = [
            CardProcess(pid, _program(pynvml, pid), memory)
            for pid, memory in held.items()
            if pid != os.getpid()
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
    return sorted(processes, key=lambda process: process.memory_bytes or 0, reverse=True)


def _program(nvml: Any, pid: int) -> str:
    try:
        command = nvml.nvmlSystemGetProcessName(pid).split()
    except nvml.NVMLError:
        command = []
    return PurePath(command[0]).name if command else "unknown"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
