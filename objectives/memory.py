"""Measures the peak memory of a trial, holds it to its budget, and says what it takes at least."""

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from objectives import card
from objectives.config import TrialConfig
from objectives.trial import DeviceLost, InfeasibleTrial, MachineFault, MemorySource


@dataclass
class MemoryMeter:
    """Peaks since the meter was opened.

    Attributes:
        source: Where the figures come from.
    """

    source: MemorySource
    _allocated: Callable[[], int]
    _reserved: Callable[[], int | None]

    @property
    def peak(self) -> int:
        """Bytes allocated at most so far."""
        return self._allocated()

    @property
    def peak_reserved(self) -> int | None:
        """Bytes reserved by the allocator at most so far; None without a GPU."""
        return self._reserved()


def least_table_memory(config: TrialConfig, num_items: int) -> int:
    """Bytes that the item tables take in training at least, whatever the batch.

    With V items of width D, each table takes::

        dense     16 V D            weights, gradient and two moments, float32
        adam      b V D + 8 V         weights of b bytes; a row's second moment and last step
        adagrad   b V D + 4 V         weights, and a row's accumulator

    What depends on the batch is left out: the rows of the gradient, which are not [V, D], and the
    activations.
    """
    training = config.resolved(num_items).training
    element, row = {"dense": (16, 0), "adam": (4, 8), "adagrad": (4, 4)}[training.table_updates]
    if training.table_dtype == "bfloat16":
        element -= 2
    tables = 2 if config.model.output_table == "separate" else 1
    return tables * num_items * (element * config.model.width + row)


def memory_source(device: torch.device) -> MemorySource:
    """What a peak on this device is measured by."""
    return "cuda" if device.type == "cuda" else "tracked"


@contextmanager
def measured_memory(device: torch.device, budget: int) -> Iterator[MemoryMeter]:
    """Measures what the block allocates and keeps it from allocating more than the budget.

    With CUDA the caching allocator enforces and counts. Elsewhere every tensor that an operator
    returns is tracked until its storage is freed; what operators use inside is not seen.

    While other processes hold memory of the card that the budget needs, the block waits to begin.

    Args:
        device: Where the block computes.
        budget: Bytes.

    Raises:
        InfeasibleTrial: The block ran out of memory at its budget.
        DeviceLost: The process cannot use the card any more.
        MachineFault: Other processes hold the card's memory: they did not give it back in
            `objectives.card.WAIT_SECONDS`, or the block ran out of memory before its budget.
    """
    gc.collect()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.empty_cache()
        card.wait_for_memory(device, budget)
        _grow_segments()
        torch.cuda.set_per_process_memory_fraction(min(budget / total, 1.0), device)
        torch.cuda.reset_peak_memory_stats(device)
        meter = MemoryMeter(
            "cuda",
            lambda: torch.cuda.max_memory_allocated(device),
            lambda: torch.cuda.max_memory_reserved(device),
        )
        try:
            yield meter
        except torch.OutOfMemoryError as error:
            if missing := card.missing_memory(device, budget):
                raise MachineFault(missing) from error
            raise InfeasibleTrial(max(meter.peak, budget), "out-of-memory") from None
        except RuntimeError as error:
            # Of torch, cuBLAS and Triton: what a kernel did wrong ends the context.
            if "CUDA" in str(error) and not _still_works(device):
                raise DeviceLost(f"{device}: {error}") from error
            raise
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    tracker = _AllocationTracker(budget)
    meter = MemoryMeter("tracked", lambda: tracker.peak, lambda: None)
    try:
        with tracker:
            yield meter
    except torch.OutOfMemoryError:
        raise InfeasibleTrial(max(meter.peak, budget), "out-of-memory") from None


def _still_works(device: torch.device) -> bool:
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _grow_segments() -> None:
    """Lets memory that the allocator holds grow in place, unless the user has set it up.

    What lies idle between allocations counts against the budget too.
    """
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"}:
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")


class _AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operators return, while they live."""

    def __init__(self, budget: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.budget = budget
        self.live: dict[int, tuple[int, weakref.KeyedRef[int, torch.UntypedStorage]]] = {}
        self.current = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "paretocut":
            # Our operators are made of others, whose tensors count too.
            with self:
                keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                output = func.redispatch(keys, *args, **(kwargs or {}))
        else:
            output = func(*args, **kwargs) if kwargs else func(*args)
        if isinstance(output, Tensor):
            self._track(output)
        elif isinstance(output, (tuple, list)):
            for value in output:
                if isinstance(value, Tensor):
                    self._track(value)
        return output

    def _track(self, tensor: Tensor) -> None:
        if tensor.is_sparse:
            self._track(tensor._indices())
            self._track(tensor._values())
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        known = self.live.get(key)
        if known is None:
            self.live[key] = size, weakref.KeyedRef(storage, self._free, key)
            self.current += size
        elif known[0] != size:  # resized in place
            self.live[key] = size, known[1]
            self.current += size - known[0]
        if self.current > self.peak:
            self.peak = self.current
            if self.peak > self.budget:
                raise torch.OutOfMemoryError(f"tracked tensors exceed {self.budget} bytes")

    def _free(self, reference: weakref.KeyedRef[int, torch.UntypedStorage]) -> None:
        self.current -= self.live.pop(reference.key)[0]
