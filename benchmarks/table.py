"""How fast does a large item table train, and in how much memory: whole, or by touched rows?

python -m benchmarks.table [--num-items V] [--width D] [--batch-size B] [--max-length L]
    [--steps N] [--epochs N] [--time-limit SECONDS] [--output FILE]

SASRec on random sequences of full length, whose items are drawn evenly from the catalogue: no
batch of real data touches more rows. Every variant has a process of its own, in which one epoch
comes before those that are timed; it compiles, and captures what is captured. `step_ms` is the
wall time of an epoch over its steps, the host included, as median and range over the epochs.
`peak_bytes` is what was allocated at most, from the table on; `table_bytes` is what
`least_table_memory` predicts of it. Without CUDA the peak is that of tracked tensors, and the
tracking makes the times useless.
"""

import argparse
import math
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._machine import RESULTS, append, machine
from objectives.config import TrialConfig
from objectives.data import Sequences
from objectives.data.sequences import DeviceSequences
from objectives.losses import build_loss
from objectives.memory import least_table_memory, measured_memory
from objectives.training import Trainer
from study.budget import format_bytes, total_memory
from study.environment import choose_device

_VARIANTS: tuple[dict[str, str], ...] = tuple(
    dict(zip(("table_updates", "table_dtype", "activations"), variant, strict=True))
    for variant in (
        ("dense", "float32", "kept"),
        ("dense", "float32", "recomputed"),
        ("adam", "float32", "kept"),
        ("adam", "float32", "recomputed"),
        ("adagrad", "float32", "kept"),
        ("adam", "bfloat16", "kept"),
        ("adagrad", "bfloat16", "kept"),
    )
)
_NEGATIVES, _GROUP_SIZE = 511, 128
_SEED = 0


def random_sequences(num_items: int, num_sequences: int, length: int) -> Sequences:
    """Sequences of this length whose items are drawn evenly."""
    items = np.random.default_rng(_SEED).integers(
        num_items, size=num_sequences * length, dtype=np.int32
    )
    return Sequences(items, np.arange(num_sequences + 1, dtype=np.int64) * length)


def _measure(variant: dict[str, str], shape: argparse.Namespace, results: Connection) -> None:
    """One variant, in a process of its own."""
    device = choose_device("auto")
    config = TrialConfig.from_flat(
        {
            **variant,
            "width": shape.width,
            "max_length": shape.max_length,
            "batch_size": shape.batch_size,
            "negatives": _NEGATIVES,
            "group_size": _GROUP_SIZE,
        }
    )
    # One item more than tokens: each token predicts the item behind it.
    sequences = random_sequences(
        shape.num_items, shape.steps * shape.batch_size, shape.max_length + 1
    )
    torch.manual_seed(_SEED)
    outcome, step_ms = "ok", [math.nan]
    with measured_memory(device, total_memory(device)) as memory:
        try:
            model = config.build_model(shape.num_items).to(device)
            trainer = Trainer(
                model,
                build_loss(config.loss, _SEED, model.outputs.sink),
                DeviceSequences(sequences, device),
                config.training,
                _SEED,
            )
            trainer.train_epoch()
            step_ms = []
            for _ in range(shape.epochs):
                begin = time.perf_counter()
                trainer.train_epoch()  # Waits for the device at its end.
                step_ms.append((time.perf_counter() - begin) / shape.steps * 1e3)
        except torch.OutOfMemoryError:
            outcome, step_ms = "out of memory", [math.nan]
    median = statistics.median(step_ms)
    results.send(
        {
            **variant,
            "num_items": shape.num_items,
            "width": shape.width,
            "batch_size": shape.batch_size,
            "num_tokens": shape.batch_size * shape.max_length,
            "negatives": _NEGATIVES,
            "group_size": _GROUP_SIZE,
            "seed": _SEED,
            "steps": shape.steps,
            "epochs": len(step_ms),
            "step_ms": _rounded(median),
            "least_step_ms": _rounded(min(step_ms)),
            "most_step_ms": _rounded(max(step_ms)),
            "steps_per_second": _rounded(1e3 / median),
            "peak_bytes": memory.peak,
            "reserved_bytes": memory.peak_reserved or "",
            "memory_source": memory.source,
            "table_bytes": least_table_memory(config, shape.num_items),
            "outcome": outcome,
        }
    )


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def measure(variant: dict[str, str], shape: argparse.Namespace) -> dict[str, Any] | None:
    """A row of one variant; None if its process failed, which has said why."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_measure, args=(variant, shape, sender), daemon=True)
    process.start()
    sender.close()
    try:
        row: dict[str, Any] | None = receiver.recv()
    except EOFError:
        row = None
    process.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-items", type=int, default=5_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=7, help="that are timed")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--output", type=Path, default=RESULTS / "table.csv")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.time_limit
    about = machine()
    first: dict[str, Any] = {}
    for variant in _VARIANTS:
        if time.monotonic() > deadline:
            print("The time limit was reached: not all variants were measured.")
            break
        name = " ".join(f"{value:10}" for value in variant.values())
        row = measure(variant, arguments)
        if row is None:
            print(f"{name} failed", flush=True)
            continue
        append(arguments.output, [{**about, **row}])
        first = first or row
        print(
            f"{name} {row['step_ms']:8.2f} ms a step ({row['least_step_ms']} to "
            f"{row['most_step_ms']}), {first['step_ms'] / row['step_ms']:.2f}x the first; "
            f"peak {format_bytes(row['peak_bytes'])}, "
            f"{row['peak_bytes'] / first['peak_bytes']:.2f} of the first; {row['outcome']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
