"""What the GPU does between its first and its last kernel, by the names of the kernels."""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

_ATTENTION = re.compile("fmha|flash|attention|attn", re.IGNORECASE)
_OPTIMIZER = re.compile("multi_tensor_apply|adam|_amp_foreach", re.IGNORECASE)
_LONGEST_GAP = 10.0
"""Microseconds between two kernels for which neither data nor Python is to blame."""
_ON_THE_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}


def start() -> profile:
    """A running profiler of the device; of the host it records only the CUDA calls."""
    profiler = profile(activities=[ProfilerActivity.CUDA])
    profiler.start()
    return profiler


def shares(profiler: profile, is_loss: Callable[[str], bool]) -> dict[str, float]:
    """Stops it, and divides the wall time between its first and last kernel.

    Returns:
        `attention_share`, `loss_share` and `optimizer_share`: their kernels' time over this wall
        time. `gpu_idle_share`: the part of it in which no kernel runs, nor a copy.
        `gpu_waiting_share`: what of this are gaps of more than 10 microseconds; one kernel that
        follows another in a queue or a graph leaves a gap of one or two. Nothing at all where the
        profiler saw no kernel.
    """
    profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in events
        if event.get("cat") in _ON_THE_GPU
    )
    if not spans:
        return {}
    seconds: dict[str, float] = defaultdict(float)
    busy, waiting, end = 0.0, 0.0, spans[0][0]
    for first, last, name in spans:
        seconds[_kind(name, is_loss)] += last - first
        busy += max(0.0, last - max(first, end))
        if first - end > _LONGEST_GAP:
            waiting += first - end
        end = max(end, last)
    wall = end - spans[0][0]
    parts = {f"{kind}_share": seconds[kind] / wall for kind in ("attention", "loss", "optimizer")}
    return {**parts, "gpu_idle_share": 1 - busy / wall, "gpu_waiting_share": waiting / wall}


def _kind(name: str, is_loss: Callable[[str], bool]) -> str:
    if is_loss(name):
        return "loss"
    if _ATTENTION.search(name):
        return "attention"
    return "optimizer" if _OPTIMIZER.search(name) else "other"
