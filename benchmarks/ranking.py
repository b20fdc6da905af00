"""How long does ranking take, and how much memory, against chunked logits and top-k?

python -m benchmarks.ranking [--only catalogue | evaluation] [--time-limit SECONDS] [--output FILE]

Shapes: B rows, V items, D width, K places of a list, P seen pairs.

The case "catalogue" ranks random targets, and lists the best 100 items, of 65,536 users over a
million items of width 256, of which every user has seen 50: ours with several tiles (the first is
the one in use) and, as the baseline, `torch.topk` of the logits of as many users as take 4 GiB,
with seen items set to -inf. In float32 TF32 is off. "bfloat16 states" have a float32 table, as a
trial has under autocast: the baseline takes one type, and multiplies them in float32.

The case "evaluation" is one validation of a SASRec (width 128, two blocks, random weights) on
300,000 users and 46,000 items, histories of 10 items on average, as a trial of batch size 512
makes it: by ranks alone, and with lists.

Times are of the device, the L2 cache flushed before each call (`benchmarks._timing`); those of the
evaluation, and all without a GPU, of the wall. `peak_bytes` is beyond the inputs. Of 256 rows,
`equal` is the share of ranks, or of places in lists, that equal those of float64 products of the
same inputs, and `largest_difference` that of the ranks.
"""

import argparse
import contextlib
import functools
import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks._machine import RESULTS, append, machine
from benchmarks._timing import device_ms, wall_ms
from kernels import target_ranks, top_k, triton_ranking_launch
from kernels.launch import Tile
from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.data.sequences import DeviceTargets
from objectives.sequential import SequentialObjective

_COLUMNS = (
    *("case", "implementation", "operation", "num_rows", "num_items", "width", "seen", "dtype"),
    *("tile", "seed", "repetitions", "median_ms", "p20_ms", "p80_ms", "peak_bytes", "equal"),
    *("largest_difference", "outcome"),
)
_Kernels = Literal["ranks", "lists"]
_PLACES = 100
_SEED = 0
_LOGIT_BYTES = 4 << 30
_CHECKED_ROWS = 256
_REPETITIONS = 10
_REPETITIONS_ABOVE_1_S = 3
_DTYPES = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "bfloat16 states": (torch.bfloat16, torch.float32),
    "float32": (torch.float32, torch.float32),
}
"""Types of states and tables."""
_TILES: dict[str, dict[_Kernels, list[Tile | None]]] = {
    "bfloat16": {
        "ranks": [
            None,
            Tile(128, 128, 8, 2),
            Tile(128, 64, 8, 4),
            Tile(64, 128, 4, 2),
            Tile(128, 64, 4, 4),
        ],
        "lists": [None, Tile(128, 128, 8, 2), Tile(128, 64, 8, 4), Tile(128, 64, 8, 3)],
    },
    "bfloat16 states": {
        "ranks": [
            None,
            Tile(128, 64, 4, 2),
            Tile(128, 128, 8, 2),
            Tile(64, 64, 4, 3),
            Tile(64, 64, 4, 2),
        ],
        "lists": [None, Tile(64, 64, 4, 3), Tile(32, 64, 4, 3)],
    },
    "float32": {
        "ranks": [
            None,
            Tile(128, 128, 8, 3),
            Tile(128, 128, 8, 2),
            Tile(128, 64, 8, 4),
            Tile(64, 128, 4, 3),
            Tile(64, 64, 4, 4),
        ],
        "lists": [None, Tile(128, 64, 8, 4), Tile(64, 64, 4, 3), Tile(64, 32, 4, 3)],
    },
}
"""Tiles to measure; None is the one in use."""


class Inputs(NamedTuple):
    """What is ranked; the seen pairs are in the order of their rows."""

    states_BD: Tensor
    table_VD: Tensor
    targets_B: Tensor
    seen: tuple[Tensor, Tensor]


class Shape(NamedTuple):
    """Sizes of the case "catalogue"."""

    num_rows: int
    num_items: int
    width: int
    seen: int

    def inputs(self, dtype: str, device: torch.device) -> Inputs:
        """Random inputs whose scores have a standard deviation of 1."""
        states_dtype, table_dtype = _DTYPES[dtype]
        generator = torch.Generator(device).manual_seed(_SEED)
        normal = functools.partial(torch.randn, device=device, generator=generator)
        ids = functools.partial(torch.randint, self.num_items, device=device, generator=generator)
        rows_B = torch.arange(self.num_rows, device=device)
        return Inputs(
            normal(self.num_rows, self.width, dtype=states_dtype),
            normal(self.num_items, self.width, dtype=table_dtype).mul_(1 / math.sqrt(self.width)),
            ids((self.num_rows,)),
            (rows_B.repeat_interleave(self.seen), ids((self.num_rows * self.seen,))),
        )


def chunked_top_k(inputs: Inputs, places: int) -> Tensor:
    """The baseline: logits of some rows, seen items at -inf, top-k [B, places]."""
    states_BD, table_VD, _, (rows_P, ids_P) = inputs
    num_rows, num_items = len(states_BD), len(table_VD)
    seen = len(rows_P) // num_rows
    rows_per_chunk = max(1, _LOGIT_BYTES // (num_items * table_VD.element_size()))
    best_BK = torch.empty(num_rows, places, dtype=torch.int64, device=states_BD.device)
    for first in range(0, num_rows, rows_per_chunk):
        last = min(first + rows_per_chunk, num_rows)
        logits_bV = states_BD[first:last].to(table_VD.dtype) @ table_VD.T
        pairs = slice(first * seen, last * seen)
        logits_bV[rows_P[pairs] - first, ids_P[pairs]] = -torch.inf
        best_BK[first:last] = logits_bV.topk(places, dim=1).indices
    return best_BK


def exact(inputs: Inputs, places: int) -> tuple[Tensor, Tensor]:
    """Ranks and lists of the first rows by float64 products, a few rows at a time."""
    states_BD, table_VD, targets_B, (rows_P, ids_P) = inputs
    table_VD = table_VD.double()
    ids_V = torch.arange(len(table_VD), device=table_VD.device)
    ranks, lists = [], []
    for row in range(min(_CHECKED_ROWS, len(states_BD))):
        scores_V = table_VD @ states_BD[row].double()
        scores_V[ids_P[rows_P == row]] = -torch.inf
        own = scores_V[targets_B[row]]
        above_V = (scores_V > own) | ((scores_V == own) & (ids_V < targets_B[row]))
        ranks.append(torch.where(own > -torch.inf, above_V.sum() + 1, len(table_VD) + 1))
        lists.append(scores_V.topk(places).indices)
    return torch.stack(ranks), torch.stack(lists)


@contextlib.contextmanager
def tile_in_use(kernels: _Kernels, tile: Tile | None) -> Iterator[None]:
    """Puts a tile in the place of the chosen one."""
    triton_ranking_launch._MEASURED = None if tile is None else {kernels: tile}
    try:
        yield
    finally:
        triton_ranking_launch._MEASURED = None


class Run:
    """Measures, and writes every row as soon as it is there."""

    def __init__(self, output: Path, device: torch.device, deadline: float) -> None:
        self._output, self._device, self._deadline = output, device, deadline
        self._machine = machine()

    def catalogue(self, shape: Shape) -> None:
        """The baseline and ours, in all types."""
        places = min(_PLACES, shape.num_items)
        for dtype in _DTYPES:
            inputs = shape.inputs(dtype, self._device)
            states_BD, table_VD, targets_B, seen = inputs
            ranks, lists = exact(inputs, places)
            row = {"case": "catalogue", "dtype": dtype, **shape._asdict()}
            self.measure(
                {**row, "implementation": "chunked torch.topk", "operation": "lists"},
                functools.partial(chunked_top_k, inputs, places),
                lists,
            )
            calls: dict[_Kernels, tuple[Callable[[], Tensor], Tensor]] = {
                "ranks": (
                    functools.partial(target_ranks, states_BD, table_VD, targets_B, seen),
                    ranks,
                ),
                "lists": (functools.partial(top_k, states_BD, table_VD, places, seen), lists),
            }
            for kernels, (call, expected) in calls.items():
                for tile in _TILES[dtype][kernels]:
                    name = "in use" if tile is None else "x".join(map(str, tile))
                    ours = {**row, "implementation": "ours", "operation": kernels, "tile": name}
                    with tile_in_use(kernels, tile):
                        self.measure(ours, call, expected)

    def evaluation(self, num_users: int, num_items: int) -> None:
        """A validation from start to end."""
        objective = SequentialObjective(random_data(num_users, num_items), self._device)
        settings = {"width": 128, "num_blocks": 2, "num_heads": 2, "batch_size": 512}
        trainer = objective._trainer(TrialConfig.from_flat(settings), _SEED, 1 << 36)
        data = objective.data.validation
        targets = DeviceTargets(data, self._device)
        row = {
            **{"case": "evaluation", "implementation": "ours", "dtype": "bfloat16 states"},
            **{"num_rows": num_users, "num_items": num_items, "width": 128},
        }
        move = functools.partial(DeviceTargets, data, self._device)
        self.measure({**row, "operation": "split to device"}, move, wall=True)
        for name, lists in (("ranks", False), ("ranks and lists", True)):
            call = functools.partial(objective._evaluate, trainer, "val", targets, lists=lists)
            self.measure({**row, "operation": name}, call, wall=True)

    def measure(
        self,
        values: dict[str, Any],
        call: Callable[[], object],
        expected: Tensor | None = None,
        *,
        wall: bool = False,
    ) -> None:
        """One row; what goes wrong is a row too, and after the time limit there are none."""
        if time.monotonic() > self._deadline:
            return
        row = {**self._machine, **dict.fromkeys(_COLUMNS, ""), "seed": _SEED, **values}
        row["outcome"] = "ok"
        try:
            self._fill(row, call, expected, wall)
        except torch.OutOfMemoryError:
            row["outcome"] = "out of memory"
        except Exception as error:
            traceback.print_exc()
            row["outcome"] = f"failed: {(str(error) or repr(error)).splitlines()[0]}"
        append(self._output, [row])
        peak = row["peak_bytes"]
        print(
            f"{row['case']} {row['num_rows']:,} x {row['num_items']:,} x {row['width']} "
            f"{row['dtype']:15} {row['implementation']:18} {row['operation']:15} {row['tile']:13} "
            f"{row['median_ms'] or '-':>8} ms {'-' if peak == '' else f'{peak / 2**20:,.0f}':>6} "
            f"MiB  equal {row['equal']} {row['largest_difference']} {row['outcome']}",
            flush=True,
        )
        gc.collect()
        torch.cuda.empty_cache()

    def _fill(
        self, row: dict[str, Any], call: Callable[[], object], expected: Tensor | None, wall: bool
    ) -> None:
        on_card = self._device.type == "cuda"
        result = call()  # Compiles.
        if isinstance(result, Tensor) and expected is not None:
            found = result[: len(expected)]
            row["equal"] = float(f"{(found == expected).double().mean():.5g}")
            if row["operation"] == "ranks":
                row["largest_difference"] = int((found - expected).abs().max())
        del result
        if on_card:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        probe = self._wall_ms(call)
        if on_card:
            row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        row["repetitions"] = _REPETITIONS if probe < 1000 else _REPETITIONS_ABOVE_1_S
        if on_card and not wall:
            times = device_ms(call, row["repetitions"])
        else:
            times = [self._wall_ms(call) for _ in range(row["repetitions"])]
        for name, share in (("p20_ms", 0.2), ("median_ms", 0.5), ("p80_ms", 0.8)):
            row[name] = float(f"{np.quantile(times, share):.5g}")

    def _wall_ms(self, call: Callable[[], object]) -> float:
        if self._device.type == "cuda":
            return wall_ms(call, 1)
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3


def random_data(num_users: int, num_items: int) -> PreparedData:
    """Histories of 1 to 50 items, 10 on average, that are those of all splits."""
    draw = np.random.default_rng(_SEED)
    lengths = np.minimum(draw.geometric(0.1, num_users), 50)
    items = draw.integers(0, num_items, lengths.sum()).astype(np.int32)
    histories = Sequences(items, np.concatenate([[0], np.cumsum(lengths)]))
    targets = Targets(histories, draw.integers(0, num_items, num_users).astype(np.int32))
    item_ids = pa.array(range(num_items))
    return PreparedData("random", "0", num_items, item_ids, histories, targets, targets, ())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("catalogue", "evaluation"))
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--output", type=Path, default=RESULTS / "ranking.csv")
    parser.add_argument(
        "--small", action="store_true", help="tiny shapes, on any device: does it run?"
    )
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.small):
        parser.error("torch sees no CUDA device here; --small runs without one")
    torch.set_float32_matmul_precision("highest")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + arguments.time_limit
    run = Run(arguments.output, device, deadline)
    if arguments.only != "evaluation":
        run.catalogue(
            Shape(70, 300, 32, 5) if arguments.small else Shape(65_536, 1_000_000, 256, 50)
        )
    if arguments.only != "catalogue":
        run.evaluation(*((200, 500) if arguments.small else (300_000, 46_000)))
    if time.monotonic() > deadline:
        print("The time limit was reached: not everything was measured.")


if __name__ == "__main__":
    main()
