"""Trains every cell of a grid, and records it with its curve: a table to judge searches by.

python -m benchmarks.grid [--folder .data] [--data ml-1m beauty] [--memory-budget 6GiB]
    [--processes 1] [--gpus 1] [--time-limit SECONDS] [--output FOLDER]

Model and schedule are those of `configs/`, smaller and with fewer epochs (`GRIDS`), so that a
grid of 144 cells takes minutes; its axes are open. A row is a training, in a table for each data
set that `objectives.recorded` reads: `ndcg_at_10` is that of validation, `curve` the same after
every epoch, `epoch_seconds` the median, beside the other processes of its card. What is in a
table already is not trained again.
"""

import argparse
import csv
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._machine import append, machine
from benchmarks._trainings import (
    Context,
    config_of,
    data_config,
    device,
    objective_of,
    train_all,
)
from objectives.config import TrialConfig
from objectives.data import prepare
from objectives.recorded import TABLES
from objectives.trial import QUALITY, DivergedTrial, InfeasibleTrial
from study.budget import resolve_budget
from study.environment import choose_device
from study.spec import parse_budget

GRIDS: dict[str, tuple[dict[str, Any], dict[str, Sequence[float]]]] = {
    "ml-1m": (
        {"width": 128, "num_blocks": 2, "max_epochs": 25, "patience": 25},
        {
            "max_length": (25, 50, 100, 200),
            "batch_size": (64, 128, 256, 512),
            "negatives": (32, 256, 2048),
            "learning_rate": (5e-4, 1.5e-3, 4.5e-3),
        },
    ),
    "beauty": (
        {"max_epochs": 12, "patience": 12},
        {
            "width": (32, 64, 128, 256),
            "batch_size": (64, 128, 256, 512),
            "negatives": (32, 512, 4096),
            "learning_rate": (5e-4, 1.5e-3, 4.5e-3),
        },
    ),
}
"""What is fixed beside the configuration, and the axes."""


class Cell(NamedTuple):
    """A training: its data and where it lies on the axes."""

    data: str
    values: tuple[float, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others."""
        return self.data, *(f"{value:g}" for value in self.values)


def _cells(data: str) -> Iterator[Cell]:
    """All of a grid, the small batches first, which take longest."""
    _, axes = GRIDS[data]
    place = list(axes).index("batch_size")
    cells = [Cell(data, values) for values in itertools.product(*axes.values())]
    yield from sorted(cells, key=lambda cell: cell.values[place])


def _train(cell: Cell, folder: Path, budget: int) -> dict[str, Any]:
    """A row of the table, but for what it says of the machine."""
    fixed, axes = GRIDS[cell.data]
    chosen = dict(zip(axes, cell.values, strict=True))
    settings = {**chosen, **config_of(cell.data).space, **fixed, **chosen}
    context = Context(0, budget)
    row = {"dataset": cell.data, **settings}
    try:
        objective = objective_of(data_config(cell.data, folder), device())
        result = objective(TrialConfig.from_flat(settings), context)
    except DivergedTrial as error:
        return {**row, **_measured(0.0, math.nan, error.peak_bytes, context.reports, epochs=0)}
    except InfeasibleTrial:
        return {}  # No cell of the table: what a reader takes for "out of memory".
    test = result.metrics["test/ndcg_at_10"]
    return {
        **row,
        **_measured(result.quality, test, result.peak_memory, context.reports, result.epochs),
    }


def _measured(
    quality: float, test: float, peak: int, reports: list[dict[str, float]], epochs: int
) -> dict[str, Any]:
    seconds = [report["train/epoch_seconds"] for report in reports]
    return {
        "ndcg_at_10": f"{quality:.5f}",
        "test_ndcg_at_10": f"{test:.5f}",
        "peak_memory_gib": peak / 2**30,
        "epoch_seconds": f"{statistics.median(seconds) if seconds else 0:.4f}",
        "epochs": epochs,
        "curve": " ".join(f"{report[QUALITY]:.5f}" for report in reports),
    }


def _trained(table: Path, data: str) -> set[tuple[str, ...]]:
    if not table.exists():
        return set()
    axes = GRIDS[data][1]
    with table.open(newline="") as stream:
        return {(data, *(row[name] for name in axes)) for row in csv.DictReader(stream)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".data"), help="of the data's files")
    parser.add_argument("--data", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--memory-budget", default="6GiB", help="of a training")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    parser.add_argument("--gpus", type=int, default=1, help="cards that they are dealt out to")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--output", type=Path, default=TABLES, help="folder of the tables")
    arguments = parser.parse_args()
    budget = resolve_budget(parse_budget(arguments.memory_budget), choose_device("auto"))
    tables = {data: arguments.output / f"{data}.csv" for data in arguments.data}
    deadline = time.monotonic() + arguments.time_limit
    about = machine()
    trained: set[tuple[str, ...]] = set()
    for data, table in tables.items():
        prepare(data_config(data, arguments.folder))  # Once, before the processes ask for it.
        trained |= _trained(table, data)
    # The data sets take turns, so that neither is left when the time is over.
    turns = itertools.zip_longest(*(_cells(data) for data in tables))
    cells = [cell for turn in turns for cell in turn if cell is not None]

    def missing() -> list[Cell]:
        return [cell for cell in cells if cell.key not in trained]

    def done(cell: Cell, row: dict[str, Any]) -> None:
        trained.add(cell.key)
        if row:
            append(tables[cell.data], [{**row, **about}])
        print(*cell.key, row.get("ndcg_at_10", "does not fit"), flush=True)

    train_all(
        missing,
        partial(_train, folder=arguments.folder, budget=budget),
        done,
        processes=arguments.processes,
        gpus=arguments.gpus,
        deadline=deadline,
    )
    print(f"{len(cells) - len(missing())} of {len(cells)} cells are trained")


if __name__ == "__main__":
    main()
