"""How long a call takes, on the device and on the clock of the wall."""

import time
from collections.abc import Callable

import torch

_FLUSH_BYTES = 1 << 28
_SPIN_CYCLES = 10_000_000


def device_ms(
    call: Callable[[], object],
    repetitions: int,
    clear: Callable[[], object] = lambda: None,
) -> list[float]:
    """Milliseconds of the device between two events around a call, for every repetition.

    Before each call `clear` is called, the L2 cache is flushed, and a kernel that spins for about
    6 ms is put in front of the first event: the CPU runs ahead, so that the work is measured and
    not its launches.
    """
    flushed = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repetitions):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        clear()
        flushed.zero_()
        torch.cuda._sleep(_SPIN_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def wall_ms(
    call: Callable[[], object],
    repetitions: int,
    clear: Callable[[], object] = lambda: None,
) -> float:
    """Mean wall time of calls back to back, with one synchronisation at their end."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repetitions):
        clear()
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repetitions * 1e3
