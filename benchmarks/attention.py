"""Which attention is fastest over packed sequences of many lengths, and in how much memory?

python -m benchmarks.attention [--static] [--device cuda | cpu] [--time-limit SECONDS]
    [--output FILE]

Shapes: T tokens, H heads, C width of a head, B sequences, L tokens of the longest.

All attend over the same bf16 queries, keys and values [T, 3, H, C] as a block's projection gives
them, and pass their gradient back to these:

- `varlen` is what the models use, flash attention over the packed tokens.
- `flex` is compiled FlexAttention over the packed tokens with a mask of sequences, whose blocks
  `create_block_mask`, compiled too, finds anew in every call, as it must in every step; `flex,
  known mask` has them already. A step of several blocks finds them once.
- `padded` is torch's attention over [B, L].
- `bucketed` is the same over a few groups of sequences, each padded to a power of two. Its
  sequences come sorted by length, which a loader can see to; those of the others do not.

Calls take turns with two batches of the same lengths in another order: `recompilations` are those
of the timed calls. FlexAttention is compiled once for all numbers of tokens and sequences, as
training needs it, or with --static for each case.

`median_ms`, `p20_ms`, `p80_ms` and `wall_ms` are as in `benchmarks.kernels`; `first_seconds` is
the first call, with its compilation. `peak_bytes` is what a forward and backward pass allocates at
its peak beyond the inputs and a known mask, the gradient of the inputs included. The errors are
largest absolute differences from padded attention in float64; inputs and the gradient of the
output are standard normal. On a CPU, which proves that all is there, FlexAttention has no backward
pass and is not compiled.
"""

import argparse
import gc
import itertools
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from benchmarks._machine import RESULTS, append, machine
from benchmarks._timing import device_ms, wall_ms
from benchmarks._training_setup import Setup, synthesize
from models.blocks import _attend_padded, attend
from models.packing import Packing

_SEED = 0
_REPETITIONS = 20
_USERS = 10_000
_NARROWEST_BUCKET = 16
_COLUMNS = (
    *("case", "causal", "implementation", "pass", "num_sequences", "num_tokens", "longest"),
    *("width", "num_heads", "dtype", "compiled", "seed", "repetitions", "median_ms", "p20_ms"),
    *("p80_ms", "wall_ms", "first_seconds", "recompilations", "peak_bytes", "output_error"),
    *("gradient_error", "outcome"),
)


@dataclass(frozen=True)
class Case:
    """Sequences of these lengths, and the heads that attend over them."""

    name: str
    lengths: tuple[int, ...]
    longest: int
    width: int
    num_heads: int


def _lengths(num_sequences: int, mean: int, longest: int) -> tuple[int, ...]:
    """Lengths of a batch of the users that `benchmarks.training` makes up."""
    # Nothing but lengths is used of it.
    setup = Setup(
        _USERS, 100, mean, longest, num_sequences, 1, 1, _SEED, device="cpu", steps=0, time_limit=0
    )
    lengths = np.minimum(synthesize(setup).lengths - 1, longest)
    return tuple(lengths[:num_sequences].tolist())


def cases(device: str) -> list[Case]:
    """All cases; small ones on a CPU."""
    if device == "cpu":
        lengths = _lengths(12, 12, 40)
        return [Case("small", lengths, 40, 32, 2), Case("uniform", (24,) * 4, 24, 32, 1)]
    long = _lengths(256, 88, 512)
    return [
        Case("ml-20m", long, 512, 256, 4),
        Case("uniform", (512,) * 64, 512, 256, 4),
        Case("beauty", _lengths(512, 8, 50), 50, 128, 2),
        Case("ml-20m", long, 512, 256, 1),
    ]


class Batch:
    """Packed sequences, and what is found of them before the clock starts.

    Attributes:
        packing: Where they lie.
        causal: Whether tokens see only those before them.
    """

    def __init__(
        self, lengths: tuple[int, ...], longest: int, device: torch.device, *, causal: bool
    ) -> None:
        self._lengths = lengths
        self._longest = longest
        self._device = device
        self.causal = causal
        self.packing = self._packing(lengths, longest)

    def _packing(self, lengths: tuple[int, ...], longest: int) -> Packing:
        offsets_B1 = torch.tensor([0, *itertools.accumulate(lengths)], device=self._device)
        return Packing(offsets_B1, sum(lengths), longest)

    @cached_property
    def buckets(self) -> list[Packing]:
        """Of sequences that are sorted by length."""

        def bucket(length: int) -> int:
            return min(self._longest, max(_NARROWEST_BUCKET, 1 << (length - 1).bit_length()))

        groups = itertools.groupby(self._lengths, bucket)
        return [self._packing(tuple(group), longest) for longest, group in groups]

    @cached_property
    def known_mask(self) -> BlockMask:
        """That of `find_mask`."""
        return self.find_mask()

    def find_mask(self) -> BlockMask:
        """Which blocks of tokens see each other."""
        sequence_T, causal = self.packing.sequence_T, self.causal

        def sees(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = sequence_T[query] == sequence_T[key]
            return same & (query >= key) if causal else same

        num_tokens = self.packing.num_tokens
        found: BlockMask = _create_block_mask(
            sees, None, None, num_tokens, num_tokens, device=self._device
        )
        return found


_create_block_mask: Callable[..., Any] = create_block_mask
_flex_attention: Callable[..., Any] = flex_attention


def _compile(*, dynamic: bool) -> None:
    global _create_block_mask, _flex_attention
    # Compiled again for causal attention, and for widths and numbers of heads.
    torch._dynamo.config.recompile_limit = 64
    _create_block_mask = torch.compile(create_block_mask, dynamic=dynamic)
    _flex_attention = torch.compile(flex_attention, dynamic=dynamic)


def _varlen(qkv_T3HC: Tensor, batch: Batch) -> Tensor:
    return attend(qkv_T3HC, batch.packing, causal=batch.causal)


def _flex(qkv_T3HC: Tensor, mask: BlockMask) -> Tensor:
    query, key, value = qkv_T3HC.permute(1, 2, 0, 3)[:, None]
    output_1HTC: Tensor = _flex_attention(query, key, value, block_mask=mask)
    return output_1HTC[0].transpose(0, 1)


def _padded(qkv_T3HC: Tensor, batch: Batch) -> Tensor:
    return _attend_padded(qkv_T3HC, batch.packing, causal=batch.causal)


def _bucketed(qkv_T3HC: Tensor, batch: Batch) -> Tensor:
    parts = torch.split(qkv_T3HC, [bucket.num_tokens for bucket in batch.buckets])
    return torch.cat(
        [
            _attend_padded(part, bucket, causal=batch.causal)
            for part, bucket in zip(parts, batch.buckets, strict=True)
        ]
    )


class Implementation(NamedTuple):
    """attend(qkv_T3HC, batch) is [T, H, C]."""

    name: str
    attend: Callable[[Tensor, Batch], Tensor]
    is_flex: bool = False
    sorts: bool = False


IMPLEMENTATIONS = (
    Implementation("varlen", _varlen),
    Implementation("padded", _padded),
    Implementation("bucketed", _bucketed, sorts=True),
    Implementation("flex", lambda qkv, batch: _flex(qkv, batch.find_mask()), is_flex=True),
    Implementation(
        "flex, known mask", lambda qkv, batch: _flex(qkv, batch.known_mask), is_flex=True
    ),
)


class Step:
    """Attention and its gradient; every call is for the next of two batches."""

    def __init__(
        self, case: Case, implementation: Implementation, device: torch.device, *, causal: bool
    ) -> None:
        shuffled = np.random.default_rng(_SEED).permutation(case.lengths).tolist()
        orders = case.lengths, tuple(shuffled)
        self.batches = [
            Batch(
                tuple(sorted(lengths)) if implementation.sorts else lengths,
                case.longest,
                device,
                causal=causal,
            )
            for lengths in orders
        ]
        self.differentiates = device.type == "cuda" or not implementation.is_flex
        self._turns = itertools.cycle(self.batches)
        self._attend = implementation.attend
        generator = torch.Generator(device).manual_seed(_SEED)
        num_tokens, head_width = sum(case.lengths), case.width // case.num_heads
        values = torch.randn(
            num_tokens, 4, case.num_heads, head_width, device=device, generator=generator
        ).bfloat16()
        self.qkv_T3HC = values[:, :3].contiguous().requires_grad_(self.differentiates)
        self._grad_THC = values[:, 3].contiguous()

    def __call__(self) -> None:
        """Forward and, where there is one, backward."""
        self._run(next(self._turns))

    def _run(self, batch: Batch) -> Tensor:
        output_THC = self._attend(self.qkv_T3HC, batch)
        if self.differentiates:
            output_THC.backward(self._grad_THC)  # type: ignore[no-untyped-call]
        return output_THC.detach()

    def clear(self) -> None:
        """Drops the gradient."""
        self.qkv_T3HC.grad = None

    def peak_bytes(self) -> int | str:
        """What a call allocates; nothing on a CPU."""
        if not self.qkv_T3HC.is_cuda:
            return ""
        self.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def errors(self) -> dict[str, float]:
        """Largest absolute errors of the output and of the gradient of the inputs."""
        batch = self.batches[0]
        self.clear()
        output_THC = self._run(batch)
        exact_T3HC = self.qkv_T3HC.detach().double().requires_grad_()
        exact_THC = _attend_padded(exact_T3HC, batch.packing, causal=batch.causal)
        errors = {"output_error": _largest(output_THC - exact_THC.detach())}
        if self.differentiates:
            exact_THC.backward(self._grad_THC.double())  # type: ignore[no-untyped-call]
            assert self.qkv_T3HC.grad is not None
            assert exact_T3HC.grad is not None
            errors["gradient_error"] = _largest(self.qkv_T3HC.grad - exact_T3HC.grad)
        return errors


def _largest(difference: Tensor) -> float:
    return _rounded(float(difference.abs().max()))


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _num_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def _times(step: Step) -> dict[str, float]:
    """Milliseconds of a call, under the names of the columns."""
    if step.qkv_T3HC.is_cuda:
        wall_ms(step, 4, step.clear)
        times = device_ms(step, _REPETITIONS, step.clear)
        wall = wall_ms(step, _REPETITIONS, step.clear)
    else:
        times = []
        for _ in range(_REPETITIONS):
            step.clear()
            begin = time.perf_counter()
            step()
            times.append((time.perf_counter() - begin) * 1e3)
        wall = float(np.mean(times))
    p20, median, p80 = np.quantile(times, (0.2, 0.5, 0.8)).tolist()
    return {
        "repetitions": _REPETITIONS,
        "median_ms": _rounded(median),
        "p20_ms": _rounded(p20),
        "p80_ms": _rounded(p80),
        "wall_ms": _rounded(wall),
    }


def measure(
    case: Case, implementation: Implementation, device: torch.device, *, causal: bool
) -> dict[str, Any]:
    """What the row says of it; what goes wrong is said too."""
    row: dict[str, Any] = {"outcome": "ok"}
    try:
        step = Step(case, implementation, device, causal=causal)
        row["pass"] = "forward+backward" if step.differentiates else "forward"
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        row["first_seconds"] = _rounded(time.perf_counter() - begin)
        step()  # The other batch.
        row |= step.errors()
        graphs = _num_graphs()
        row["peak_bytes"] = step.peak_bytes()
        row |= _times(step)
        row["recompilations"] = _num_graphs() - graphs
    except torch.OutOfMemoryError:
        row["outcome"] = "out of memory"
    except Exception as error:
        traceback.print_exc()
        row["outcome"] = f"failed: {(str(error) or repr(error)).splitlines()[0]}"
    return row


def _print(row: dict[str, Any]) -> None:
    peak = f"{row['peak_bytes'] / 2**20:,.1f}" if row["peak_bytes"] != "" else "-"
    print(
        f"{row['case']:8} {row['num_heads']} heads {'causal' if row['causal'] else 'full':6} "
        f"{row['implementation']:17} {row['median_ms'] or '-':>8} ms "
        f"({row['p20_ms']} to {row['p80_ms']}), wall {row['wall_ms'] or '-':>7} ms, "
        f"{peak:>8} MiB, errors {row['output_error']} {row['gradient_error']}, "
        f"first {row['first_seconds']} s, {row['outcome']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--static", action="store_true", help="compile for each case anew")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--output", type=Path, default=RESULTS / "attention.csv")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    compiled = ""
    if device.type == "cuda":
        compiled = "static" if arguments.static else "dynamic"
        _compile(dynamic=not arguments.static)
    deadline = time.monotonic() + arguments.time_limit
    about = machine()
    runs = itertools.product(cases(device.type), (True, False), IMPLEMENTATIONS)
    # What compiles comes last: it takes most of the time.
    for case, causal, implementation in sorted(runs, key=lambda run: run[2].is_flex):
        if time.monotonic() > deadline:
            print("The time limit was reached: not all was measured.")
            break
        row = {**about, **dict.fromkeys(_COLUMNS, "")}
        row |= {
            "case": case.name,
            "causal": int(causal),
            "implementation": implementation.name,
            "num_sequences": len(case.lengths),
            "num_tokens": sum(case.lengths),
            "longest": case.longest,
            "width": case.width,
            "num_heads": case.num_heads,
            "dtype": "bfloat16",
            "compiled": compiled if implementation.is_flex else "",
            "seed": _SEED,
        }
        row |= measure(case, implementation, device, causal=causal)
        append(arguments.output, [row])
        _print(row)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
