"""Which tiles are fastest on this card? Measures them and writes the best to the launch table.

python -m benchmarks.tune [--widths 64 128 256] [--dtype bfloat16] [--table-dtype float32]
    [--output FILE]

Every tile is compiled first, in parallel; one that does not fit the card is left out. Times are
medians of ten passes, forward or over the table's gradient, on random data, the L2 cache flushed
before each.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from triton.runtime.errors import OutOfResources

from benchmarks._timing import device_ms
from kernels import launch, triton_backend
from kernels.candidates import Draws
from kernels.launch import Key, Tile, Tiles
from kernels.reference import Problem

_SHAPE = (65_536, 1_000_000, 511)
"""Rows, items and candidates; the catalogue is cut to a tenth for the kernels that walk all."""
_GROUP = 128
_REPETITIONS = 10
_CANDIDATES = (64, 128, 32)
_ROWS_WARPS_STAGES = ((128, 8, 5), (128, 8, 3), (128, 4, 3), (128, 4, 2), (64, 4, 3), (64, 4, 2))
_BY_ROWS = [Tile(r, k, w, s) for k in _CANDIDATES for r, w, s in _ROWS_WARPS_STAGES]
_POOLS = ((64, 128, 8), (32, 128, 8), (64, 64, 4), (32, 64, 4))
_CANDIDATE_TILES: dict[str, list[Tile]] = {
    "forward": _BY_ROWS,
    "catalogue": _BY_ROWS,
    "group": [tile for tile in _BY_ROWS if tile.block_r == _GROUP],
    "pool": [Tile(*shape, num_stages) for shape in _POOLS for num_stages in (5, 3, 2)],
    "row": [Tile(1, k, 1, 1) for k in (4, 8, 16)],
    "segment": [Tile(1, k, 1, 1) for k in (4, 8, 16)],
}


class _Job(NamedTuple):
    kernel: str
    tile: Tile
    width: int
    dtype: torch.dtype
    table_dtype: torch.dtype

    @property
    def key(self) -> Key:
        """The row of the table that it is for."""
        return Key(
            torch.cuda.get_device_capability()[0],
            self.dtype.itemsize,
            self.table_dtype.itemsize,
            launch.block_of(self.width),
        )


def _problem(job: _Job, num_rows: int, num_items: int, num_candidates: int) -> Problem:
    generator = torch.Generator("cuda").manual_seed(0)

    def random(rows: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(rows, job.width, device="cuda", dtype=dtype, generator=generator)

    whole = job.kernel in ("catalogue", "pool")
    if whole:
        num_items //= 10
    table_VD = random(num_items, job.table_dtype) * job.width**-0.5
    targets_N = torch.randint(num_items, (num_rows,), device="cuda", generator=generator)
    draws = None if whole else Draws(num_candidates, seed=1)
    group_size = 1 if job.kernel in ("row", "segment") else _GROUP
    return Problem(
        random(num_rows, job.dtype),
        table_VD,
        targets_N,
        draws,
        group_size,
        "none" if whole else "logq",
        operand_dtype=job.dtype,
    )


def _kernel(job: _Job, problem: Problem) -> Callable[[], object]:
    """A launch of the job's kernel with the job's tile, everything before it done."""
    tiles = launch.default_tiles(job.dtype.itemsize, job.key.block_d)
    launch._table()[job.key] = tiles._replace(**{job.kernel: job.tile})
    launch.config_of.cache_clear()
    faults = torch.zeros(1, dtype=torch.int32, device="cuda")

    def forward() -> triton_backend.Saved:
        return triton_backend.forward(problem, "dense", True, None, faults)

    if job.kernel in ("forward", "catalogue", "row"):
        return forward
    saved = forward()
    weight_N = torch.ones(1, device="cuda").expand(len(problem.states_ND))
    return lambda: triton_backend.table_gradients(
        problem, "dense", saved, None, weight_N, None, None
    )


def _compile(job: _Job) -> str:
    """Compiles a job's kernel on a small problem; why it cannot be, if so."""
    try:
        _kernel(job, _problem(job, 256, 20_000, 255))()
        torch.cuda.synchronize()
    except OutOfResources as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    types = ["bfloat16", "float16", "float32"]
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--dtype", choices=types, default="bfloat16", help="of the operands")
    parser.add_argument("--table-dtype", choices=types, default="float32")
    parser.add_argument("--output", type=Path, default=launch.TABLE)
    arguments = parser.parse_args()
    dtypes = getattr(torch, arguments.dtype), getattr(torch, arguments.table_dtype)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        for width in arguments.widths:
            jobs = [
                _Job(kernel, tile, width, *dtypes)
                for kernel, tiles in _CANDIDATE_TILES.items()
                for tile in tiles
            ]
            faults = pool.map(_compile, jobs)
            fitting = [job for job, fault in zip(jobs, faults, strict=True) if not fault]
            _write(arguments.output, fitting[0].key, _fastest(fitting))


def _fastest(jobs: list[_Job]) -> Tiles:
    """The fastest tile of every kernel."""
    best = {}
    for kernel in Tiles._fields:
        rivals = [job for job in jobs if job.kernel == kernel]
        problem = _problem(rivals[0], *_SHAPE)
        times = {}
        for job in rivals:
            run = _kernel(job, problem)
            run()
            times[job.tile] = statistics.median(device_ms(run, _REPETITIONS))
            print(f"{kernel:9} {job.key} {tuple(job.tile)}: {times[job.tile]:.3f} ms", flush=True)
        best[kernel] = min(times, key=times.__getitem__)
    return Tiles(**best)


def _write(output: Path, key: Key, tiles: Tiles) -> None:
    """Replaces a row of the table, or adds one."""
    rows = {
        Key(*(row[field] for field in Key._fields)): row for row in json.loads(output.read_text())
    }
    rows[key] = key._asdict() | tiles._asdict()
    lines = ",\n".join(f"  {json.dumps(rows[key])}" for key in sorted(rows))
    output.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
