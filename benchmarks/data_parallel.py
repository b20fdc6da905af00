"""How much faster do several cards train one model than one, and in how much memory each?

python -m benchmarks.data_parallel [--processes N ...] [--num-items V ...] [--width D]
    [--batch-size B] [--max-length L] [--steps N] [--epochs N] [--output FILE]

The same batches of B sequences of L tokens on 1, 2, 4 and 8 cards, or as many as there are:
torchrun starts a process for each, which trains on its share of every batch. SASRec with CCE-; a
large table moves by its rows. Items are drawn evenly from the catalogue: no batch of real data
touches, and so exchanges, more rows. One epoch comes before those that are timed; it compiles, and
captures what is captured. `step_ms` is the wall time of an epoch over its steps, as median and
range over the epochs; `peak_bytes` is that of the process that took most, `predicted_bytes` what
was predicted of it. Without CUDA processes share the cores, and times say nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import RESULTS, append, machine
from benchmarks.table import random_sequences
from kernels.gpu import gpu_of
from objectives.config import TrialConfig
from objectives.data.sequences import DeviceSequences
from objectives.losses import build_loss
from objectives.memory import measured_memory
from objectives.memory_model import DataShape, MemoryModel
from objectives.parallel import Group
from objectives.training import Trainer
from study.budget import format_bytes, total_memory

_SEED = 0
_SETTINGS = {"negatives": 511, "group_size": 128, "num_heads": 4}


def _measure(shape: argparse.Namespace) -> dict[str, Any]:
    """One process of several, as torchrun has started it."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    group = Group.join(device)
    settings = {name: getattr(shape, name) for name in ("width", "max_length", "batch_size")}
    (num_items,) = shape.num_items
    config = TrialConfig.from_flat(_SETTINGS | settings).resolved(num_items)
    # One item more than tokens: each token predicts the item behind it.
    length = shape.max_length + 1
    sequences = random_sequences(num_items, shape.steps * shape.batch_size, length)
    torch.manual_seed(_SEED)
    # NCCL's part of the card is not torch's.
    with measured_memory(device, total_memory(device) - (2 << 30)) as memory:
        with device:
            model = config.build_model(num_items)
        loss = build_loss(config.loss, _SEED, model.outputs.sink)
        data = DeviceSequences(sequences, device)
        trainer = Trainer(model, loss, data, config.training, _SEED, group)
        trainer.train_epoch()
        step_ms = []
        for _ in range(shape.epochs):
            group.agree()
            begin = time.perf_counter()
            mean = trainer.train_epoch()  # Waits for the device at its end.
            step_ms.append((time.perf_counter() - begin) / shape.steps * 1e3)
        peak = max(group.agree(memory.peak))
    del trainer, model, loss
    group.leave()
    predicted: int | str = ""
    if gpu := gpu_of(device):
        users = DataShape.of_length(num_items, shape.steps * shape.batch_size, length)
        model_of_memory = MemoryModel(users, gpu, group.size)
        predicted = model_of_memory.predict(config, total_memory(device)).peak
    median = statistics.median(step_ms)
    num_tokens = shape.batch_size * shape.max_length
    return {
        "processes": group.size,
        "num_items": num_items,
        **settings,
        **_SETTINGS,
        "table_updates": config.training.table_updates,
        "num_tokens": num_tokens,
        "seed": _SEED,
        "steps": shape.steps,
        "epochs": shape.epochs,
        "step_ms": _rounded(median),
        "least_step_ms": _rounded(min(step_ms)),
        "most_step_ms": _rounded(max(step_ms)),
        "tokens_per_second": _rounded(num_tokens / median * 1e3),
        "peak_bytes": peak,
        "predicted_bytes": predicted,
        "memory_source": memory.source,
        "final_loss": _rounded(mean),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def measure(processes: int, num_items: int) -> dict[str, Any] | None:
    """A row of so many processes; None if they failed, which have said why."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m", "benchmarks.data_parallel"]
        command += [*sys.argv[1:], "--num-items", str(num_items), "--result", str(result)]
        subprocess.run(command, check=False)
        row: dict[str, Any] | None = None
        if result.is_file():
            row = json.loads(result.read_text())
        return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    most = torch.cuda.device_count() or 2
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[n for n in (1, 2, 4, 8) if n <= most]
    )
    parser.add_argument("--num-items", type=int, nargs="+", default=[4_000, 1_000_000])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=7, help="that are timed")
    parser.add_argument("--output", type=Path, default=RESULTS / "data_parallel.csv")
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.result is not None:
        found = _measure(arguments)
        if os.environ["RANK"] == "0":
            arguments.result.write_text(json.dumps(found))
        return
    about = machine()
    for num_items in arguments.num_items:
        first: dict[str, Any] = {}
        for processes in arguments.processes:
            row = measure(processes, num_items)
            if row is None:
                print(f"{processes} processes failed", flush=True)
                continue
            append(arguments.output, [{**about, **row}])
            first = first or row
            print(
                f"{num_items} items, {processes} processes: {row['step_ms']:8.2f} ms a step "
                f"({row['least_step_ms']} to {row['most_step_ms']}), "
                f"{row['tokens_per_second'] / 1e6:.2f} M tokens a second, "
                f"{first['step_ms'] / row['step_ms']:.2f}x the first; "
                f"peak {format_bytes(row['peak_bytes'])} each",
                flush=True,
            )


if __name__ == "__main__":
    main()
