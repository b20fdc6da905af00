"""How long do the losses take, and how much memory, against other people's?

python -m benchmarks.kernels [--only bars | sweeps] [--time-limit SECONDS] [--output FILE]

Shapes: N rows, K candidates, V items, D width, R rows of a group.

`median_ms`, `p20_ms` and `p80_ms` are times of the device, between two CUDA events around one
call. Before each call the gradients are dropped, the L2 cache is flushed, and a kernel that spins
for about 6 ms is put in front of the first event: the CPU runs ahead, so that the work is measured
and not its launches. A loss that reads a value back waits for that kernel; its launches do count.
`wall_ms` is the other view, the mean wall time of calls back to back with one synchronisation at
their end: where the device has to wait for launches, it shows.

`peak_bytes` is what one forward and backward pass allocates at its peak beyond the inputs,
`workspace_bytes` the same without the gradients that it returns. The errors are relative Frobenius
norms against float64 with the loss's own draws, at N = 2,048, V = 20,000 and K of at most 255. The
pass "forward" computes the loss with gradients enabled.
"""

import argparse
import dataclasses
import functools
import gc
import itertools
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks._machine import RESULTS, append, machine
from benchmarks._peers import (
    APPLE,
    APPLE_EXACT,
    EAGER_FULL,
    EAGER_SAMPLED,
    LIGER,
    PUBLISHED,
    TORCH,
    Implementation,
    Unavailable,
    candidate_loss,
    full_loss,
)
from benchmarks._timing import device_ms, wall_ms
from kernels import Uniform, full_cross_entropy, sampled_cross_entropy
from kernels.candidates import Draws, draw

_COLUMNS = (
    *("case", "implementation", "pass", "num_rows", "num_items", "num_candidates", "group_size"),
    *("width", "dtype", "table_gradient", "seed", "repetitions", "median_ms", "p20_ms", "p80_ms"),
    *("wall_ms", "peak_bytes", "workspace_bytes", "states_error", "table_error", "matrix_share"),
    "outcome",
)
COMMON_SIZES = {"num_rows": 32_768, "num_items": 1_000_000, "num_candidates": 511}
"""What the sweeps of CE- share, but for the size that each varies."""
FULL_ROWS = 16_384
"""Rows of the sweep of the full softmax."""

_FORWARD, _BOTH = "forward", "forward+backward"
_DEVICE = "cuda"
_SEED = 0
_REPETITIONS = 20
_REPETITIONS_ABOVE_1_S = 3
_WALL_REPETITIONS_ABOVE_50_MS = 5


class Inputs(NamedTuple):
    """What a loss is computed of."""

    states_ND: Tensor
    table_VD: Tensor
    targets_N: Tensor


@dataclass(frozen=True)
class Case:
    """One shape and what is measured on it; num_candidates is 0 for the full softmax."""

    name: str
    num_rows: int
    num_items: int
    num_candidates: int
    implementations: tuple[Implementation, ...]
    width: int = 256

    def inputs(self, logit_deviation: float) -> Inputs:
        """Random bf16 inputs whose logits have this standard deviation."""
        generator = torch.Generator(_DEVICE).manual_seed(_SEED)
        normal = functools.partial(
            torch.randn, device=_DEVICE, dtype=torch.bfloat16, generator=generator
        )
        return Inputs(
            normal(self.num_rows, self.width),
            normal(self.num_items, self.width).mul_(logit_deviation / math.sqrt(self.width)),
            torch.randint(self.num_items, (self.num_rows,), device=_DEVICE, generator=generator),
        )


def ours(group_size: int, table_gradient: str = "dense") -> Implementation:
    """Our CCE-."""

    def loss(
        states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, num_candidates: int, seed: int
    ) -> Tensor:
        return sampled_cross_entropy(
            states_ND,
            table_VD,
            targets_N,
            Uniform(num_candidates, seed),
            group_size=group_size,
            table_gradient=table_gradient,
        )

    def truth(
        states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, num_candidates: int, seed: int
    ) -> Tensor:
        num_groups = math.ceil(len(targets_N) / group_size)
        draws = Draws(num_candidates, seed)
        ids_GK = draw(draws, 0, num_groups, len(table_VD), targets_N.device)
        ids_NK = ids_GK.repeat_interleave(group_size, dim=0)[: len(targets_N)]
        return candidate_loss(states_ND, table_VD, targets_N, ids_NK)

    return Implementation("ours", loss, truth, group_size, table_gradient, torch.float32)


def _our_full_loss(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, *_: int) -> Tensor:
    return full_cross_entropy(states_ND, table_VD, targets_N)


OURS_FULL = Implementation("ours", _our_full_loss, full_loss)


def cases() -> list[Case]:
    """All cases, in the order of the run."""
    sampled = (ours(128), ours(1), PUBLISHED, EAGER_SAMPLED)
    full = (OURS_FULL, APPLE, APPLE_EXACT, TORCH, EAGER_FULL, LIGER)
    rows, items, candidates = COMMON_SIZES.values()
    catalogues = (10_000, 30_000, 100_000, 300_000, items, 3_000_000, 10_000_000)
    shapes = [(rows, items, 2**power - 1) for power in range(6, 13)]
    shapes += [(rows, num_items, candidates) for num_items in catalogues]
    shapes += [(2**power, items, candidates) for power in range(12, 18)]
    # R = 1 and R = 128 come with the shape that the sweeps share.
    groups = tuple(ours(group_size) for group_size in (16, 32, 64, 512, rows))
    return [
        Case("bars", 131_072, 1_500_000, 2047, sampled),
        Case("bars", 65_536, 1_000_000, 511, sampled),
        Case("bars", 32_768, 60_000, 255, (ours(128), PUBLISHED, EAGER_SAMPLED), width=128),
        Case("bars", 32_768, 5_000_000, 511, (ours(128, "touched"), ours(128), PUBLISHED)),
        Case("bars", 65_536, 1_000_000, 0, full),
        Case("sweeps", rows, items, candidates, groups),
        *(Case("sweeps", n, v, k, sampled) for n, v, k in dict.fromkeys(shapes)),
        *(Case("sweeps", FULL_ROWS, v, 0, full) for v in catalogues if v <= items),
    ]


class Step:
    """One loss on one set of inputs; every call is another step, with another seed."""

    def __init__(self, case: Case, implementation: Implementation, inputs: Inputs) -> None:
        self._loss, self._num_candidates = implementation.loss, case.num_candidates
        self._seeds = itertools.count(_SEED)
        self._targets_N = inputs.targets_N
        self.states_ND = inputs.states_ND.detach().requires_grad_()
        self.table_VD = inputs.table_VD.detach().requires_grad_()
        self.table_VD.grad_dtype = implementation.table_grad_dtype

    def forward(self) -> Tensor:
        """The loss."""
        return self._loss(
            self.states_ND,
            self.table_VD,
            self._targets_N,
            self._num_candidates,
            next(self._seeds),
        )

    def forward_and_backward(self) -> None:
        """The loss and its gradients."""
        self.forward().backward()  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Drops the gradients."""
        self.states_ND.grad = self.table_VD.grad = None

    def memory(self) -> dict[str, int]:
        """Bytes at the peak of one forward and backward pass."""
        self.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.forward_and_backward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        gradients = _num_bytes(self.states_ND.grad) + _num_bytes(self.table_VD.grad)
        return {"peak_bytes": peak, "workspace_bytes": peak - gradients}


class Run:
    """Measures, and writes every row as soon as it is there."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._machine = machine()
        self._zeros: set[tuple[int, int]] = set()
        self._matrix_rate = 0.0
        self.rows: list[dict[str, Any]] = []

    def measure_machine(self) -> None:
        """The two ceilings: operations per second and bytes per second."""
        size = 8192
        normal = functools.partial(torch.randn, device=_DEVICE, dtype=torch.bfloat16)
        left, right = normal(2, size, size)
        times = _times(lambda: left @ right)
        self._matrix_rate = 2 * size**3 / times["median_ms"] * 1e3
        shape = {"num_rows": size, "num_items": size, "width": size}
        outcome = f"ok: {self._matrix_rate / 1e12:.0f} TFLOP/s"
        self._write(
            case="machine", implementation="torch.matmul", outcome=outcome, **shape, **times
        )
        source = normal(1 << 20, 2048)
        destination = torch.empty_like(source)
        times = _times(lambda: destination.copy_(source))
        rate = 2 * _num_bytes(source) / times["median_ms"] * 1e3
        shape = {"num_rows": source.shape[0], "width": source.shape[1]}
        outcome = f"ok: {rate / 1e12:.2f} TB/s, read and written"
        self._write(
            case="machine", implementation="Tensor.copy_", outcome=outcome, **shape, **times
        )

    def measure(self, case: Case, implementation: Implementation, inputs: Inputs) -> None:
        """One row for each pass; what goes wrong is a row too."""
        for name in (_BOTH, _FORWARD) if case.name == "bars" else (_BOTH,):
            row: dict[str, Any] = {
                "case": case.name,
                "implementation": implementation.name,
                "pass": name,
                "num_rows": case.num_rows,
                "num_items": case.num_items,
                "num_candidates": case.num_candidates or "",
                "group_size": implementation.group_size or "",
                "width": case.width,
                "table_gradient": implementation.table_gradient,
                "outcome": "ok",
            }
            try:
                self._fill(row, case, implementation, inputs)
            except Unavailable as reason:
                row["outcome"] = f"skipped: {reason}"
            except torch.OutOfMemoryError:
                row["outcome"] = "out of memory"
            except Exception as error:
                traceback.print_exc()
                row["outcome"] = f"failed: {(str(error) or repr(error)).splitlines()[0]}"
            self._write(**row)
            gc.collect()
            torch.cuda.empty_cache()
            if row["outcome"] != "ok":
                break

    def _fill(
        self, row: dict[str, Any], case: Case, implementation: Implementation, inputs: Inputs
    ) -> None:
        step = Step(case, implementation, inputs)
        if row["pass"] == _FORWARD:
            row |= _times(step.forward, step.clear)
            return
        step.forward_and_backward()  # Compiles.
        row |= step.memory()
        row |= _times(step.forward_and_backward, step.clear)
        step.clear()
        if implementation.name == "ours" and case.num_candidates:
            if implementation.table_gradient == "dense":
                self._measure_zeros(case)
            # Two operations a multiply-add; four products: the logits twice, and two gradients.
            operations = 8 * case.num_rows * case.num_candidates * case.width
            row["matrix_share"] = _rounded(operations / row["median_ms"] * 1e3 / self._matrix_rate)
        if case.name == "bars":
            row["states_error"], row["table_error"] = _errors(case, implementation)

    def _measure_zeros(self, case: Case) -> None:
        """How long the zeros take that a dense gradient of the table usually starts from."""
        shape = case.num_items, case.width
        if shape not in self._zeros:
            self._zeros.add(shape)
            times = _times(lambda: torch.zeros(shape, dtype=torch.float32, device=_DEVICE))
            self._write(
                case=case.name,
                implementation="torch.zeros",
                num_items=case.num_items,
                width=case.width,
                dtype="float32",
                outcome="ok",
                **times,
            )

    def _write(self, **values: Any) -> None:
        row = {**self._machine, **dict.fromkeys(_COLUMNS, ""), "dtype": "bfloat16", "seed": _SEED}
        row |= values
        append(self._output, [row])
        self.rows.append(row)
        print(
            f"{row['case']:7} {_shape(row)} {_name(row):26} {row['pass']:16} "
            f"{row['median_ms'] or '-':>8} ms {_mebibytes(row['workspace_bytes']):>9} MiB  "
            f"{row['outcome']}",
            flush=True,
        )


def _times(
    call: Callable[[], object], clear: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Repetitions and milliseconds of a call, under the names of the columns."""
    probe = wall_ms(call, 1, clear)
    if probe < 200:
        wall_ms(call, 3, clear)
    repetitions = _REPETITIONS if probe < 1000 else _REPETITIONS_ABOVE_1_S
    p20, median, p80 = np.quantile(device_ms(call, repetitions, clear), (0.2, 0.5, 0.8)).tolist()
    # Launches are nothing to a long call.
    wall_repetitions = _REPETITIONS if probe < 50 else _WALL_REPETITIONS_ABOVE_50_MS
    return {
        "repetitions": repetitions,
        "median_ms": _rounded(median),
        "p20_ms": _rounded(p20),
        "p80_ms": _rounded(p80),
        "wall_ms": _rounded(wall_ms(call, min(repetitions, wall_repetitions), clear)),
    }


def _errors(case: Case, implementation: Implementation) -> tuple[float, float]:
    """Relative errors of the gradients of the states and of the table."""
    num_candidates = min(case.num_candidates, 255)
    small = dataclasses.replace(
        case, num_rows=2048, num_items=20_000, num_candidates=num_candidates
    )
    # A softmax that is neither flat nor a spike.
    inputs = small.inputs(logit_deviation=2.0)
    step = Step(small, implementation, inputs)
    torch.manual_seed(_SEED)
    step.forward_and_backward()
    states_ND = inputs.states_ND.double().requires_grad_()
    table_VD = inputs.table_VD.double().requires_grad_()
    loss = implementation.truth(states_ND, table_VD, inputs.targets_N, num_candidates, _SEED)
    loss.backward()  # type: ignore[no-untyped-call]
    return _error(step.states_ND, states_ND), _error(step.table_VD, table_VD)


def _error(leaf: Tensor, exact: Tensor) -> float:
    assert leaf.grad is not None
    assert exact.grad is not None
    difference = leaf.grad.to_dense().double() - exact.grad
    return _rounded(float(difference.norm() / exact.grad.norm()))


def _num_bytes(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    if tensor.is_sparse:
        return _num_bytes(tensor._indices()) + _num_bytes(tensor._values())
    return tensor.numel() * tensor.element_size()


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _shape(row: dict[str, Any]) -> str:
    sizes = (row["num_rows"], row["num_items"], row["num_candidates"])
    return " x ".join("-" if size == "" else f"{size:,}" for size in sizes).ljust(27)


def _name(row: dict[str, Any]) -> str:
    if row["implementation"] != "ours" or not row["group_size"]:
        return str(row["implementation"])
    return f"ours, R = {row['group_size']}, {row['table_gradient']}"


def _mebibytes(num_bytes: int | str) -> str:
    return f"{num_bytes / 2**20:,.1f}" if isinstance(num_bytes, int) else "-"


def print_ratios(rows: list[dict[str, Any]]) -> None:
    """Ours against everything else on the same shape, over the bars that were measured."""
    shape = ("num_rows", "num_items", "num_candidates", "width", "pass")
    bars = [row for row in rows if row["case"] == "bars" and row["outcome"] == "ok"]
    print("\nOurs against the others (N x V x K): time and workspace of the other over ours")
    for mine, other in itertools.product(bars, bars):
        same = all(mine[column] == other[column] for column in shape)
        if mine["implementation"] != "ours" or not same or other is mine:
            continue
        line = f"{mine['median_ms']:g} and {other['median_ms']:g} ms: "
        line += f"{other['median_ms'] / mine['median_ms']:.2f}x"
        if mine["workspace_bytes"]:
            line += f", workspace {other['workspace_bytes'] / mine['workspace_bytes']:.2f}x"
        print(f"{_shape(mine)} {mine['pass']:16} {_name(mine):24} {_name(other):26} {line}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("bars", "sweeps"))
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels.csv")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here, and there is nothing else to measure")
    deadline = time.monotonic() + arguments.time_limit
    run = Run(arguments.output)
    run.measure_machine()
    for case in cases():
        if arguments.only not in (None, case.name) or time.monotonic() > deadline:
            continue
        # A flat softmax, as of a model that has learned little.
        inputs = case.inputs(logit_deviation=1.0)
        for implementation in case.implementations:
            if time.monotonic() < deadline:
                run.measure(case, implementation, inputs)
        del inputs
    print_ratios(run.rows)
    if time.monotonic() > deadline:
        print("The time limit was reached: not all cases were measured.")


if __name__ == "__main__":
    main()
