"""How long do SCE, RECE, BCE+ and gBCE take, and how much memory, against released code?

python -m benchmarks.released_losses [--losses LOSS ...] [--time-limit SECONDS]
    [--device cuda | cpu] [--rows N] [--items V] [--output FILE]

Shapes: N rows, V items, D width, B sequences, L positions, K candidates.

A call is a forward and backward pass, to the gradients of random states and of a random float32
table, whose logits have a standard deviation of 1. Every system has a process of its own.

- `precision`: of "float32" all is float32; "bfloat16" is under autocast, with states as a model
  ends in then: bfloat16 for ours, float32, which a LayerNorm makes, for the others.
- `median_ms`, `p20_ms`, `p80_ms` and `wall_ms` are as in `benchmarks.kernels`, but that slow calls
  are repeated for about 3 s, 3 times at least. On a CPU all are wall times, of 3 calls.
- `table_gradient`: ours of SCE is measured with touched rows, too, as a catalogue of this size is
  trained.
- `peak_bytes` is what a call allocates at its peak beyond the inputs, `workspace_bytes` the same
  without the gradients that it returns, `total_peak_bytes` all: inputs, gradients and workspace.
- `loss_value` is that of the first call, for which torch's generator is seeded alike.
"""

import argparse
import functools
import gc
import itertools
import math
import multiprocessing
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import _peers
from benchmarks._machine import RESULTS, append, machine
from benchmarks._timing import device_ms, wall_ms
from benchmarks._training_setup import spread
from kernels import (
    Uniform,
    calibrated_weight,
    reduced_cross_entropy,
    sampled_binary_cross_entropy,
    scalable_cross_entropy,
)
from kernels.candidates import Draws, draw

_COLUMNS = (
    *("loss", "system", "version", "precision", "num_rows", "num_items", "width", "num_buckets"),
    *("bucket_rows", "bucket_items", "mix", "neighbours", "rounds", "num_candidates"),
    *("group_size", "table_gradient", "seed", "repetitions", "median_ms", "p20_ms", "p80_ms"),
    *("wall_ms", "peak_bytes", "workspace_bytes", "total_peak_bytes", "loss_value", "outcome"),
)
_BINARY = ("bce+", "gbce")
_LOSSES = ("sce", "rece", *_BINARY)
_OURS, _RECTOOLS = "ours", "rectools"
_PRECISIONS = ("float32", "bfloat16")
_WIDTHS = (64, 256)
_LENGTH = 128
_BUCKET_ITEMS, _NEIGHBOURS, _ROUNDS = 512, 1, (1, 4)
_CANDIDATES, _CALIBRATION = 256, 0.75
_SEED = 0
_REPETITIONS, _LEAST_REPETITIONS, _SECONDS = 20, 3, 3.0
_THEIR_NAMES = {
    "num_buckets": "n_buckets",
    "bucket_rows": "bucket_size_x",
    "bucket_items": "bucket_size_y",
    "mix": "mix_x",
    "neighbours": "n_extra_chunks",
    "rounds": "rounds",
    "num_candidates": "n_neg_samples",
}
"""Of the sizes of a case, in Scalable-SASRec and RECE."""


class Case(NamedTuple):
    """One loss of one shape; `sizes` are its own, by the names of our arguments."""

    loss: str
    num_rows: int
    num_items: int
    width: int
    sizes: dict[str, Any]

    def inputs(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """states_ND, table_VD and targets_N."""
        generator = torch.Generator(device).manual_seed(_SEED)
        normal = functools.partial(torch.randn, device=device, generator=generator)
        return (
            normal(self.num_rows, self.width),
            normal(self.num_items, self.width).div_(math.sqrt(self.width)),
            torch.randint(self.num_items, (self.num_rows,), device=device, generator=generator),
        )


def cases(loss: str, num_rows: int, num_items: int) -> list[Case]:
    """The cases of a loss; numbers of buckets are those that its authors advise."""
    all_sizes: list[dict[str, Any]] = [{"num_candidates": _CANDIDATES}]
    if loss == "sce":
        number = int(2 * math.sqrt(num_rows))
        rows_and_items = {"bucket_rows": number, "bucket_items": min(_BUCKET_ITEMS, num_items)}
        all_sizes = [{"num_buckets": number, **rows_and_items, "mix": True}]
    elif loss == "rece":
        number = int(math.sqrt(4 * (1 + 2 * _NEIGHBOURS) * min(num_rows, num_items)))
        hashes = {"num_buckets": number, "neighbours": _NEIGHBOURS}
        all_sizes = [{**hashes, "rounds": rounds} for rounds in _ROUNDS]
    else:
        num_rows //= 2
    return [
        Case(loss, num_rows, num_items, width, sizes) for sizes in all_sizes for width in _WIDTHS
    ]


@dataclass(frozen=True)
class Step:
    """A loss to call, and the two leaves that it has gradients of."""

    states: Tensor
    table: Tensor
    loss: Callable[[], Tensor]
    precision: str

    def __call__(self) -> Tensor:
        """The loss; its gradients are then there."""
        is_mixed = self.precision == "bfloat16"
        # Entered by every call: what it has cast is kept until its end.
        with torch.autocast(self.states.device.type, torch.bfloat16, enabled=is_mixed):
            loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def clear(self) -> None:
        """Drops the gradients."""
        self.states.grad = self.table.grad = None


def _ours(
    group_size: int, case: Case, precision: str, device: str, table_gradient: str = "dense"
) -> Step:
    states_ND, table_VD, targets_N = case.inputs(device)
    states_ND = states_ND.to(getattr(torch, precision)).requires_grad_()
    inputs = states_ND, table_VD.requires_grad_(), targets_N

    def loss() -> Tensor:
        if case.loss == "sce":
            return scalable_cross_entropy(*inputs, **case.sizes, table_gradient=table_gradient)
        if case.loss == "rece":
            return reduced_cross_entropy(*inputs, **case.sizes)
        num_candidates, weight = case.sizes["num_candidates"], 1.0
        if case.loss == "gbce":
            weight = calibrated_weight(num_candidates, case.num_items, _CALIBRATION)
        candidates = Uniform(num_candidates, _SEED)
        loss = sampled_binary_cross_entropy(
            *inputs, candidates, group_size=group_size, positive_weight=weight
        )
        return loss.div(num_candidates + 1)  # As the others have it.

    return Step(states_ND, table_VD, loss, precision)


def _theirs(name: str, case: Case, precision: str, device: str) -> Step:
    states_ND, table_VD, targets_N = case.inputs(device)
    states_BLD = states_ND.view(-1, _LENGTH, case.width).requires_grad_()
    targets_BL = targets_N.view(-1, _LENGTH)
    inputs = states_BLD, table_VD, targets_BL
    negatives_BLK = None
    if case.loss in _BINARY:
        # What ours draws with a group for each row; they get it from a loader.
        draws = Draws(case.sizes["num_candidates"], _SEED)
        negatives_NK = draw(draws, 0, case.num_rows, case.num_items, device)
        negatives_BLK = negatives_NK.view(*targets_BL.shape, -1)
    if name == _RECTOOLS:
        assert negatives_BLK is not None
        loss_name = {"bce+": "BCE", "gbce": "gBCE"}[case.loss]
        table, loss = _peers.rectools(loss_name, *inputs, negatives_BLK, _CALIBRATION)
    else:
        config = {_THEIR_NAMES[size]: value for size, value in case.sizes.items()}
        config |= {"fwd_type": case.loss.removesuffix("+"), "gbce_t": _CALIBRATION}
        table, loss = _peers.sasrec(name, *inputs, negatives_BLK, config)
    return Step(states_BLD, table, loss, precision)


class System(NamedTuple):
    """Who computes which losses; `version` is the commit of what lies in .peers."""

    name: str
    losses: tuple[str, ...]
    version: str = ""
    group_size: int | None = None
    precisions: tuple[str, ...] = _PRECISIONS
    table_gradient: str = "dense"

    def build(self, case: Case, precision: str, device: str) -> Step:
        """A step on the device."""
        if self.name == _OURS:
            return _ours(self.group_size or 1, case, precision, device, self.table_gradient)
        return _theirs(self.name, case, precision, device)


_SYSTEMS = (
    System(_OURS, ("sce",)),
    System(_OURS, ("sce",), table_gradient="touched"),
    System("scalable-sasrec", ("sce",), "cc08f3e082b6"),
    System(_OURS, ("rece",)),
    System("rece", ("rece",), "69bd892f70f6"),
    System(_OURS, _BINARY, group_size=128),
    System(_OURS, _BINARY, group_size=1),
    System(_RECTOOLS, _BINARY),
    # There is no matrix product in these that autocast would change.
    System("scalable-sasrec", _BINARY, "cc08f3e082b6", precisions=("float32",)),
)


def measure(system: System, case: Case, precision: str, device: str) -> dict[str, Any]:
    """Columns of a row, in the process of the system; what goes wrong is a row too."""
    # What was measured before may hang in a circle of references.
    gc.collect()
    torch.cuda.empty_cache()
    result: dict[str, Any] = {"outcome": "ok", "version": system.version}
    try:
        step = system.build(case, precision, device)
        if system.name == _RECTOOLS:
            result["version"] = version(_RECTOOLS)
        torch.manual_seed(_SEED)
        result["loss_value"] = float(step())  # Compiles.
        if device == "cuda":
            result |= _memory(step)
        result |= _times(step, device)
    except _peers.Unavailable as reason:
        result["outcome"] = f"skipped: {reason}"
    except torch.OutOfMemoryError:
        result["outcome"] = "out of memory"
    except Exception as error:
        traceback.print_exc()
        result["outcome"] = f"failed: {(str(error) or repr(error)).splitlines()[0]}"
    return result


def _memory(step: Step) -> dict[str, int]:
    """Bytes at the peak of one call."""
    step.clear()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    total = torch.cuda.max_memory_allocated()
    gradients = step.states.grad, step.table.grad
    return {
        "peak_bytes": total - before,
        "workspace_bytes": total - before - sum(map(_num_bytes, gradients)),
        "total_peak_bytes": total,
    }


def _num_bytes(gradient: Tensor | None) -> int:
    assert gradient is not None
    if gradient.is_sparse:
        return _num_bytes(gradient._indices()) + _num_bytes(gradient._values())
    return gradient.nbytes


def _times(step: Step, device: str) -> dict[str, float]:
    """Repetitions and milliseconds of a call, under the names of the columns."""
    on_gpu = device == "cuda"

    def wall(repetitions: int) -> float:
        if on_gpu:
            return wall_ms(step, repetitions, step.clear)
        begin = time.perf_counter()
        for _ in range(repetitions):
            step.clear()
            step()
        return (time.perf_counter() - begin) / repetitions * 1e3

    most = int(_SECONDS * 1e3 / wall(1)) if on_gpu else 0
    repetitions = max(_LEAST_REPETITIONS, min(_REPETITIONS, most))
    if on_gpu:
        times = device_ms(step, repetitions, step.clear)
    else:
        times = [wall(1) for _ in range(repetitions)]
    return {"repetitions": repetitions, **spread("ms", times), "wall_ms": wall(repetitions)}


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _name(row: dict[str, Any]) -> str:
    group = f", R = {row['group_size']}" if row["group_size"] else ""
    form = ", touched" if row["table_gradient"] == "touched" else ""
    return f"{row['system']}{group}{form}, {row['precision']}"


def _case(row: dict[str, Any]) -> str:
    rounds = f" x {row['rounds']}" if row["rounds"] else ""
    return f"{row['loss'] + rounds:8} D = {row['width']:<3}"


def _print(row: dict[str, Any]) -> None:
    peak, total = (
        f"{row[column] / 2**20:,.0f}" if row[column] != "" else "-"
        for column in ("peak_bytes", "total_peak_bytes")
    )
    print(
        f"{_case(row)}  {_name(row):26} {row['median_ms'] or '-':>9} ms  {peak:>8} of {total:>8} "
        f"MiB  loss {row['loss_value'] or '-':<8}  {row['outcome']}",
        flush=True,
    )


def print_ratios(rows: list[dict[str, Any]]) -> None:
    """Theirs over ours on the same shape, as far as they were measured."""
    columns = ("median_ms", "peak_bytes", "total_peak_bytes")
    print("\nThe others over ours: time, peak beyond the inputs, peak with inputs and gradients")
    measured = [row for row in rows if row["outcome"] == "ok"]
    for mine, other in itertools.product(measured, measured):
        is_pair = mine["system"] == _OURS != other["system"]
        if is_pair and _case(mine) == _case(other):
            ratios = (f"{other[name] / mine[name]:.1f}x" for name in columns if mine[name] != "")
            print(f"{_case(mine)}  {_name(mine):26} {_name(other):26} {', '.join(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", choices=_LOSSES, default=_LOSSES)
    parser.add_argument("--rows", type=int, default=131_072, help="half as many of BCE+ and gBCE")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=RESULTS / "released_losses.csv")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --device cpu shows that all is there")
    if arguments.rows < 1 or arguments.rows % (2 * _LENGTH):
        parser.error(f"--rows must be a multiple of {2 * _LENGTH}, not {arguments.rows}")
    deadline = time.monotonic() + arguments.time_limit
    about = machine()
    rows: list[dict[str, Any]] = []
    for system in _SYSTEMS:
        jobs = [
            (case, precision)
            for loss in system.losses
            if loss in arguments.losses
            for case in cases(loss, arguments.rows, arguments.items)
            for precision in system.precisions
        ]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            for case, precision in jobs:
                if time.monotonic() > deadline:
                    break
                row = {**about, **dict.fromkeys(_COLUMNS, ""), **case._asdict()}
                row |= row.pop("sizes")
                row |= {"system": system.name, "group_size": system.group_size or ""}
                row |= {"table_gradient": system.table_gradient}
                row |= {"precision": precision, "seed": _SEED}
                try:
                    work = process.submit(measure, system, case, precision, arguments.device)
                    row |= work.result()
                except BrokenProcessPool:
                    row["outcome"] = "failed: its process died"
                rows.append({column: _rounded(value) for column, value in row.items()})
                append(arguments.output, rows[-1:])
                _print(rows[-1])
    print_ratios(rows)
    if time.monotonic() > deadline:
        print("The time limit was reached: not all cases were measured.")


if __name__ == "__main__":
    main()
