"""Does a study waste time on trials that do not fit, or take more than its budget?

python -m benchmarks.budget [--data FILE] [--n-trials 100] [--memory-budget 6GiB]
    [--max-epochs 1] [--timeout TIME] [--output FILE]

A study by `python -m study.run`, of a space of which half does not fit, while NVML is asked every
20 ms what the study's process holds of the card. `refused` configurations never ran;
`infeasible_share` is the time from asking for a configuration that does not fit to having told
so, probes that decided included, as a share of the study's wall time. `context_bytes` is what NVML
says of a process that has multiplied two matrices and captured a graph, beyond what torch
reserves: the driver's share. `over_budget_bytes` is what the study held at most, less the budget
and that share.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import RESULTS, append, machine
from study.budget import format_bytes
from study.front import hypervolume
from study.records import StudyRecord, find, read

_SPACE = {
    "width": ["256", "512"],
    "num_blocks": ["2", "8"],
    "num_heads": ["4"],
    "max_length": ["200"],
    "batch_size": ["256", "4096"],
    "negatives": ["64", "3000"],
    "learning_rate": ["1e-4", "1e-2"],
}
_CONTEXT = """
import sys, torch
from kernels import layer_norm
square = torch.randn(1024, 1024, device="cuda").bfloat16()
layer_norm(square @ square, square[0].float(), square[0].float())
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    square @ square
print(torch.cuda.memory_reserved(), flush=True)
sys.stdin.read()
"""


class _Watch(threading.Thread):
    """Asks NVML what a process holds of the first card, until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._pid = pid
        self._stopped = threading.Event()

    def run(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(0).uuid
        card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        while not self._stopped.wait(0.02):
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(card):
                if process.pid == self._pid:
                    self.most = max(self.most, process.usedGpuMemory or 0)

    def stop(self) -> int:
        """Bytes that it held at most."""
        self._stopped.set()
        self.join()
        return self.most


def context_bytes() -> int:
    """What NVML says of a process beyond what torch reserves."""
    command = [sys.executable, "-c", _CONTEXT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reserved = int(process.stdout.readline())
        watch = _Watch(process.pid)
        watch.start()
        time.sleep(0.5)
        held = watch.stop()
        process.kill()
    return held - reserved


def run(arguments: argparse.Namespace, folder: Path) -> tuple[StudyRecord, float, int]:
    """The study, its seconds, and the bytes that it held of the card at most."""
    command = [sys.executable, "-m", "study.run", "--study", "budget"]
    command += ["--data", str(arguments.data), "--n-trials", str(arguments.n_trials)]
    command += ["--memory-budget", arguments.memory_budget, "--min-item-users", "1"]
    command += ["--columns.time", "none"]
    command += ["--timeout", arguments.timeout, "--output-dir", str(folder)]
    command += ["--pruning", "none"]
    space = {**_SPACE, "max_epochs": [str(arguments.max_epochs)]}
    for name, values in space.items():
        command += [f"--space.{name}", *values]
    begin = time.perf_counter()
    with subprocess.Popen(command) as process:
        watch = _Watch(process.pid)
        watch.start()
    seconds = time.perf_counter() - begin
    held = watch.stop()
    if process.returncode:
        sys.exit(process.returncode)
    return read(find("budget", None, folder)), seconds, held


def row_of(record: StudyRecord, seconds: float, held: int, context: int) -> dict[str, Any]:
    """What a study shows."""
    infeasible = [trial for trial in record.trials if trial.outcome == "infeasible"]
    spent = [
        (trial.finished - trial.started).total_seconds()
        for trial in infeasible
        if trial.started and trial.finished
    ]
    refusals = [
        (trial.finished - trial.started).total_seconds()
        for trial in record.refused
        if trial.started and trial.finished
    ]
    return {
        "memory_budget_bytes": record.budget,
        "finished": len(record.finished),
        "complete": len(record.complete),
        "failed": sum(trial.outcome == "failed" for trial in record.trials),
        "refused": len(record.refused),
        "probed_over": sum(trial.reason == "probed" for trial in infeasible),
        "out_of_memory": sum(trial.reason == "out-of-memory" for trial in infeasible),
        "wall_seconds": round(seconds, 1),
        "infeasible_seconds": round(sum(spent), 3),
        "infeasible_share": round(sum(spent) / seconds, 5),
        "refusal_median_ms": round(1e3 * statistics.median(refusals), 1) if refusals else "",
        "most_peak_bytes": max(trial.peak_memory or 0 for trial in record.complete),
        "most_reserved_bytes": max(trial.peak_reserved or 0 for trial in record.complete),
        "held_bytes": held,
        "context_bytes": context,
        "over_budget_bytes": held - record.budget - context,
        "hypervolume": round(
            hypervolume(list(map(record.point, record.complete)), *record.limits), 5
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data/ml-1m.parquet"))
    parser.add_argument("--n-trials", type=int, default=100)
    parser.add_argument("--memory-budget", default="6GiB")
    parser.add_argument("--max-epochs", type=int, default=1)
    parser.add_argument("--timeout", default="10m")
    parser.add_argument("--output", type=Path, default=RESULTS / "budget.csv")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("python -m benchmarks.budget: what a GPU holds is measured, and there is none")
    context = context_bytes()
    with tempfile.TemporaryDirectory() as folder:
        row = row_of(*run(arguments, Path(folder)), context)
    append(arguments.output, [{**machine(), "data": arguments.data.stem, **row}])
    for name, value in row.items():
        shown = format_bytes(value) if name.endswith("_bytes") else value
        print(f"{name:22} {shown}")


if __name__ == "__main__":
    main()
