"""How long does an epoch take, and how much memory, against other people's systems?

python -m benchmarks.training [--systems SYSTEM ...] [--users 138000] [--time-limit SECONDS]
    [--steps 300] [--device cuda | cpu] [--output FILE]

Data of MovieLens-20M's shape, made up: 138,000 users, 15,000 items with a Zipf-like popularity,
sequences of 88 items in the mean and with a heavy tail. SASRec of width 256, two blocks, four
heads and dropout 0.2; 256 sequences a step, the last 512 predictions of each; K = 511 where a loss
samples. Every system gets the same arrays in the form that it takes, and a process of its own.

- `median_step_ms`, `p20_step_ms` and `p80_step_ms` are wall times of a training step with all that
  it waits for, its batch too, over windows of five steps, each of which ends with a
  synchronisation; of a peer without the first ten steps, of ours without the first epoch.
- `epoch_seconds` is the median step times the steps of an epoch. `mean_step_ms`, of ours alone, is
  the mean over the epochs, with whatever was compiled or captured in them.
- `tokens_per_second` counts predictions, not padding: an item of a sequence each, but the first.
- `token_share` is these over the positions that the model computes.
- `peak_bytes` is the most that the process has allocated on the device, from its start to the end
  of the timed steps.
- `gpu_idle_share`, `attention_share`, `loss_share` and `optimizer_share` are of the wall time of a
  few more steps under torch's profiler, by the names of the kernels. The loss of a peer is what
  has a name of its own, without matrix products. `gpu_waiting_share` is the part of idleness that
  is spent in gaps of more than 10 microseconds: the device waits for data or Python.
- `data_share` is the time that the host takes to make batches, or to wait for them, over the time
  of the timed steps. The device may have work meanwhile.
- `evaluation_seconds` is the time of the metrics of all users over the whole catalogue.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import _training_peers
from benchmarks._machine import RESULTS, append, machine
from benchmarks._training_setup import (
    Arrays,
    Setup,
    result_path,
    save_setup,
    synthesize,
)

_OURS = "ours"
_SETUP_COLUMNS = (
    *("users", "items", "max_length", "batch_size", "negatives", "width", "blocks", "heads"),
    *("dropout", "seed"),
)
_COLUMNS = (
    *("system", "version", "loss", "precision", "workers", *_SETUP_COLUMNS),
    *("mean_length", "timed_steps", "median_step_ms", "p20_step_ms", "p80_step_ms"),
    *("epoch_seconds", "tokens_per_second", "token_share", "peak_bytes", "final_loss"),
    *("data_share", "attention_share", "loss_share", "optimizer_share", "gpu_idle_share"),
    *("gpu_waiting_share", "mean_step_ms"),
    *("evaluation_seconds", "outcome"),
)
_VERSION_OF = {"rectools": "rectools", "replay": "replay-rec"}
_PUBLISHED_COMMIT = "bb3e04d3b7ef"
_SECONDS_BESIDES = 400
"""What a system may take besides training: imports, its form of the data, evaluation."""


def _measure(system: str, setup: Setup, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """One system in a process of its own; what goes wrong is a row too."""
    module = "_training_ours" if system == _OURS else "_training_peers"
    command = [sys.executable, "-m", f"benchmarks.{module}", system, str(folder)]
    path = result_path(folder, system)
    path.unlink(missing_ok=True)
    try:
        code = subprocess.run(
            command, timeout=2 * setup.time_limit + _SECONDS_BESIDES, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        code = 124
    result: dict[str, Any] = {"outcome": f"failed: exit status {code}"}
    if path.exists():
        result = json.loads(path.read_text())
    step = result.get("median_step_ms")
    if step is not None:
        tokens = arrays.num_tokens(setup.max_length)
        epoch = step / 1e3 * setup.steps_per_epoch
        result |= {"epoch_seconds": epoch, "tokens_per_second": tokens / epoch}
        if "tokens_per_step" in result:
            computed = result.pop("tokens_per_step") * setup.steps_per_epoch
            result["token_share"] = tokens / computed
    return result


def _version(system: str) -> str:
    """That of a peer; ours is the commit of the row."""
    if system == "published":
        return _PUBLISHED_COMMIT
    package = _VERSION_OF.get(system.partition("-")[0])
    try:
        return "" if package is None else version(package)
    except PackageNotFoundError:
        return ""


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _print(rows: list[dict[str, Any]]) -> None:
    """A line for each system, and ratios to ours."""
    ours = next((row for row in rows if row["system"] == _OURS and row["outcome"] == "ok"), None)
    print(
        f"\n{'system':17} {'loss':24} {'precision':10} {'step ms':>9} {'epoch s':>8} "
        f"{'M tokens/s':>10} {'peak GiB':>8} {'real':>5} {'idle':>5}  over ours: time, peak"
    )
    for row in rows:
        if row["outcome"] != "ok":
            print(f"{row['system']:17} {row['outcome']}")
            continue
        line = (
            f"{row['system']:17} {row['loss']:24} {row['precision']:10} "
            f"{row['median_step_ms']:9.1f} {row['epoch_seconds']:8.2f} "
            f"{row['tokens_per_second'] / 1e6:10.3f} "
            f"{_number(row['peak_bytes'], 8, 1, 2**30)} {_number(row['token_share'], 5, 3)} "
            f"{_number(row['gpu_idle_share'], 5, 3)}"
        )
        if ours is not None and row is not ours:
            line += f"  {row['epoch_seconds'] / ours['epoch_seconds']:.1f}x"
            if row["peak_bytes"] and ours["peak_bytes"]:
                line += f", {row['peak_bytes'] / ours['peak_bytes']:.1f}x"
        print(line)
    if ours is not None:
        print("\nOurs, shares of the time:")
        for name in ("data", "attention", "loss", "optimizer", "gpu_idle", "gpu_waiting"):
            print(f"  {name:11} {_number(ours[f'{name}_share'], 6, 3)}")
        epoch, evaluation = ours["epoch_seconds"], ours["evaluation_seconds"]
        print(f"  evaluation  {evaluation:6.2f} s, an epoch {epoch:.2f} s")


def _number(value: Any, width: int, digits: int, unit: float = 1.0) -> str:
    return f"{'-':>{width}}" if value == "" else f"{value / unit:{width}.{digits}f}"


def main() -> None:
    systems = (_OURS, *_training_peers.SYSTEMS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--users", type=int, default=138_000)
    parser.add_argument("--items", type=int, default=15_000)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300, help="timed steps of a peer at most")
    parser.add_argument(
        "--time-limit", type=float, default=40.0, metavar="SECONDS", help="for each system"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=RESULTS / "training.csv")
    arguments = parser.parse_args()
    setup = Setup.like_movielens(arguments, width=256, steps=arguments.steps)
    about = machine()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrays = synthesize(setup)
        arrays.save(folder)
        save_setup(setup, folder)
        for system in arguments.systems:
            begin = time.monotonic()
            print(f"\n{system} ...", flush=True)
            row = {**about, **dict.fromkeys(_COLUMNS, "")}
            row |= {column: getattr(setup, column) for column in _SETUP_COLUMNS}
            row |= {"system": system, "version": _version(system)}
            row["mean_length"] = float(arrays.lengths.mean())
            row |= _measure(system, setup, arrays, folder)
            rows.append({column: _rounded(value) for column, value in row.items()})
            append(arguments.output, rows[-1:])
            print(f"{row['outcome']}, {time.monotonic() - begin:.0f} s", flush=True)
    _print(rows)


if __name__ == "__main__":
    main()
