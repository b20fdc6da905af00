"""Does it pay to compile the transformer's blocks?

python -m benchmarks.compiled_step [--users N] [--items V] [--max-length L] [--batch-size B]
    [--width D] [--epochs N] [--device cuda | cpu] [--time-limit SECONDS] [--output FILE]

SASRec trains on what `benchmarks.training` makes up, of MovieLens-20M's shape: once as it is, and
once with `torch.compile(block.forward, dynamic=True)` in every block. On CUDA both are captured as
always, after a first step that runs as it is and compiles. A short training comes before, which
compiles Triton's kernels of both; what torch.compile keeps on the disk is not used.

`first_seconds` is the first epoch with its compilation and captures; the times of a step are those
of the later epochs over their steps, the host included, as median and quantiles. `graphs` are what
dynamo had compiled after the first step, `recompilations` what it compiled after that, through all
batches, of `shapes` shapes in the first epoch. `peak_bytes` is what was allocated at most in the
first step of a second training, which compiles nothing, and is on the batch with most tokens;
`first_peak_bytes` the same of the first training. `final_loss` is that of the last epoch.
"""

import argparse
import gc
import math
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from benchmarks._machine import RESULTS, append, machine
from benchmarks._training_setup import Setup, spread, synchronize, synthesize
from models.blocks import Block
from models.transformer import Transformer
from objectives.config import TrialConfig
from objectives.data import Sequences
from objectives.data.sequences import DeviceSequences
from objectives.losses import build_loss
from objectives.training import Trainer

_COLUMNS = (
    *("variant", "users", "items", "tokens_per_step", "batch_size", "max_length", "width"),
    *("blocks", "heads", "dropout", "negatives", "seed", "epochs", "steps", "shapes"),
    *("first_seconds", "median_step_ms", "p20_step_ms", "p80_step_ms", "graphs"),
    *("graph_breaks", "recompilations", "peak_bytes", "first_peak_bytes", "final_loss", "outcome"),
)
_SETUP_COLUMNS = (
    *("users", "items", "batch_size", "max_length", "width", "blocks", "heads", "dropout"),
    *("negatives", "seed"),
)
_VARIANTS = ("as it is", "compiled")
_SHORT_TRAINING = 4
"""Batches of the training that comes before."""


def _config(setup: Setup) -> TrialConfig:
    return TrialConfig.from_flat(setup.settings).resolved(setup.items)


def _model(setup: Setup) -> Transformer:
    torch.manual_seed(setup.seed)
    with torch.device(setup.device):
        return _config(setup).build_model(setup.items)


def _trainer(model: Transformer, setup: Setup, sequences: Sequences) -> Trainer:
    config = _config(setup)
    device = torch.device(setup.device)
    return Trainer(
        model,
        build_loss(config.loss, setup.seed, model.outputs.sink),
        DeviceSequences(sequences, device),
        config.training,
        setup.seed,
    )


def _compile_blocks(model: Transformer) -> None:
    for block in model.modules():
        if isinstance(block, Block):
            block.forward = torch.compile(block.forward, dynamic=True)  # type: ignore[method-assign]


def _num_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def _start_of_peak(setup: Setup) -> int:
    """Bytes that are there already."""
    gc.collect()
    if setup.device != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak_since(before: int, setup: Setup) -> int | str:
    return torch.cuda.max_memory_allocated() - before if setup.device == "cuda" else ""


def measure(
    variant: str, setup: Setup, sequences: Sequences, epochs: int, deadline: float
) -> dict[str, Any]:
    """What the row says of a variant; what goes wrong is said too."""
    torch._dynamo.reset()
    counters.clear()
    row: dict[str, Any] = {"outcome": "ok"}
    try:
        before = _start_of_peak(setup)
        model = _model(setup)
        if variant == "compiled":
            _compile_blocks(model)
        trainer = _trainer(model, setup, sequences)
        row |= _first_epoch(trainer, setup)
        row["first_peak_bytes"] = _peak_since(before, setup)
        graphs = _num_graphs()
        row |= _later_epochs(trainer, setup, epochs, deadline)
        row["recompilations"] += _num_graphs() - graphs
        del trainer
        _start_of_peak(setup)
        second = _trainer(model, setup, sequences)
        second.model.train()
        second.train_step(next(second.batches.epoch()))
        synchronize(setup)
        row["peak_bytes"] = _peak_since(before, setup)
    except torch.OutOfMemoryError:
        row["outcome"] = "out of memory"
    except Exception as error:
        traceback.print_exc()
        row["outcome"] = f"failed: {(str(error) or repr(error)).splitlines()[0]}"
    return row


def _first_epoch(trainer: Trainer, setup: Setup) -> dict[str, Any]:
    synchronize(setup)
    begin = time.perf_counter()
    trainer.model.train()
    shapes, graphs, breaks = set(), 0, 0
    for number, parts in enumerate(trainer.batches.epoch()):
        trainer.train_step(parts)
        shapes.add(parts[0].shape)
        if number == 0:
            graphs, breaks = _num_graphs(), sum(counters["graph_break"].values())
            for reason in counters["graph_break"]:
                print(f"graph break: {' '.join(reason.splitlines()[:2])}")
    synchronize(setup)
    return {
        "first_seconds": time.perf_counter() - begin,
        "shapes": len(shapes),
        "graphs": graphs,
        "graph_breaks": breaks,
        "recompilations": _num_graphs() - graphs,
    }


def _later_epochs(trainer: Trainer, setup: Setup, epochs: int, deadline: float) -> dict[str, Any]:
    """At least one, and so many if there is time."""
    step_ms: list[float] = []
    loss = 0.0
    while not step_ms or (len(step_ms) < epochs and time.monotonic() < deadline):
        synchronize(setup)
        begin = time.perf_counter()
        loss = trainer.train_epoch()
        synchronize(setup)
        step_ms.append((time.perf_counter() - begin) / setup.steps_per_epoch * 1e3)
    return {"epochs": len(step_ms), "final_loss": loss, **spread("step_ms", step_ms)}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _print(row: dict[str, Any]) -> None:
    peak = f"{row['peak_bytes'] / 2**20:,.0f}" if row["peak_bytes"] != "" else "-"
    print(
        f"{row['variant']:9} first epoch {row['first_seconds'] or '-':>7} s, step "
        f"{row['median_step_ms'] or '-':>7} ms ({row['p20_step_ms']} to {row['p80_step_ms']}), "
        f"peak {peak} MiB, {row['graphs']} graphs, {row['graph_breaks']} breaks, "
        f"{row['recompilations']} recompilations of {row['shapes']} shapes, "
        f"loss {row['final_loss']}, {row['outcome']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=15_000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=7, help="that are timed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--time-limit", type=float, default=math.inf, metavar="SECONDS", help="for timed epochs"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "compiled_step.csv")
    arguments = parser.parse_args()
    setup = Setup.like_movielens(arguments, width=arguments.width, steps=0)
    deadline = time.monotonic() + arguments.time_limit
    torch.compiler.config.force_disable_caches = True
    about = machine()
    arrays = synthesize(setup)
    sequences = Sequences(arrays.items, arrays.offsets)
    users = min(setup.users, _SHORT_TRAINING * setup.batch_size)
    few = Sequences(arrays.items[: arrays.offsets[users]], arrays.offsets[: users + 1])
    _trainer(_model(setup), setup, few).train_epoch()
    rows = []
    for variant in _VARIANTS:
        row = {**about, **dict.fromkeys(_COLUMNS, "")}
        row |= {column: getattr(setup, column) for column in _SETUP_COLUMNS}
        row |= {"variant": variant, "steps": setup.steps_per_epoch}
        row["tokens_per_step"] = arrays.num_tokens(setup.max_length) / setup.steps_per_epoch
        row |= measure(variant, setup, sequences, arguments.epochs, deadline)
        rows.append({column: _rounded(value) for column, value in row.items()})
        append(arguments.output, rows[-1:])
        _print(rows[-1])
    plain, compiled = rows
    if plain["outcome"] == compiled["outcome"] == "ok":
        gain_ms = plain["median_step_ms"] - compiled["median_step_ms"]
        print(f"compiled: {plain['median_step_ms'] / compiled['median_step_ms']:.3f}x as fast")
        cost_seconds = compiled["first_seconds"] - plain["first_seconds"]
        if gain_ms > 0:
            print(f"it pays after {cost_seconds / gain_ms * 1e3:,.0f} steps")


if __name__ == "__main__":
    main()
