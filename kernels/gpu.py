"""Which GPU computes, or which one is simulated where there is none.

Under a simulation the code of a GPU runs on fake tensors, which have shapes and no numbers: it
allocates what it would allocate there, and launches nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch


class Gpu(NamedTuple):
    """What the shapes of a kernel's work depend on.

    Attributes:
        capability: Major number of the compute capability.
        num_sms: Streaming multiprocessors.
    """

    capability: int
    num_sms: int


_simulated: list[Gpu] = []
"""The one that is simulated, if any; what torch.compile can read."""


def on_gpu(device: torch.device) -> bool:
    """Whether tensors of this device are those of a GPU, or taken to be."""
    return device.type == "cuda" or is_simulated()


def is_simulated() -> bool:
    """Whether there are no numbers to look at."""
    return len(_simulated) > 0


def gpu_of(device: torch.device) -> Gpu | None:
    """The GPU that computes for this device; None for another kind of device."""
    if _simulated:
        return _simulated[-1]
    return _real_gpu(device) if device.type == "cuda" else None


@cache
def _real_gpu(device: torch.device) -> Gpu:
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.major, properties.multi_processor_count)


@contextmanager
def simulated_gpu(gpu: Gpu) -> Iterator[None]:
    """Within the block every device counts as this one, and no Triton kernel is launched.

    Not for several threads at a time.

    Raises:
        ImportError: There is no Triton.
    """
    from triton.runtime import KernelInterface

    launch = KernelInterface.__getitem__
    KernelInterface.__getitem__ = _launches_nothing
    _simulated.append(gpu)
    try:
        yield
    finally:
        _simulated.pop()
        KernelInterface.__getitem__ = launch


def _launches_nothing(kernel: Any, grid: Any) -> Callable[..., None]:
    return lambda *arguments, **options: None
