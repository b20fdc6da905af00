"""How much memory does training take in the cells of the CCE- paper, against what it reports?

python -m benchmarks.published_cells [--output FILE]

The batch size, length and negatives of the paper's CCE- rows of SASRec (width 256, two blocks,
two heads, dropout 0.1), on made-up data of as many items, users and interactions. A peak is that
of two training steps on the largest batch and of a batch of an evaluation, as a study probes a
trial; the paper's is that of a whole fit. For each cell: as a study would train it by default,
with activations computed again, and that with a bfloat16 table. Of 30Music the paper says neither
items nor users: taken are 1.05 million items, the most that 16 bytes an element leave room for in
its smallest peak, and 45,000 users of 600 items, a guess.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._machine import RESULTS, append, machine
from benchmarks.memory import made_up
from kernels.gpu import gpu_of
from objectives.config import TrialConfig
from objectives.memory_model import DataShape, MemoryModel
from objectives.sequential import SequentialObjective

_SHARE = 4
"""Data that is large beside this part of the published peak stays on the host."""


class _Cell(NamedTuple):
    num_items: int
    num_users: int
    mean_length: int
    batch_size: int
    max_length: int
    negatives: int
    published_gb: float


_CELLS = {
    "MegaMarket": _Cell(1_661_327, 350_267, 328, 5120, 320, 1023, 80.0),
    "30Music": _Cell(1_050_000, 45_000, 600, 256, 720, 4095, 34.0),
    "Zvuk": _Cell(893_022, 370_528, 657, 1024, 128, 2047, 14.0),
}
_MODEL = {"width": 256, "num_blocks": 2, "num_heads": 2, "dropout": 0.1}
_SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"activations": "recomputed"},
    {"activations": "recomputed", "table_dtype": "bfloat16"},
)


def rows_of(name: str, cell: _Cell) -> list[dict[str, Any]]:
    """A row for each setting."""
    device = torch.device("cuda", 0)
    data = made_up(cell.num_items, cell.num_users, cell.mean_length)
    objective = SequentialObjective(data, device)
    gpu = gpu_of(device)
    assert gpu is not None
    model = MemoryModel(DataShape.of(data), gpu)
    budget = int(cell.published_gb * 1e9 / _SHARE)
    shape = {name: getattr(cell, name) for name in ("batch_size", "max_length", "negatives")}
    rows = []
    for settings in _SETTINGS:
        config = TrialConfig.from_flat(_MODEL | shape | settings).resolved(data.num_items)
        predicted = model.predict(config, budget).peak
        peak = objective.probe(config, budget, room=2 * predicted)
        row = {
            "cell": name,
            "num_items": cell.num_items,
            "num_users": cell.num_users,
            "mean_length": cell.mean_length,
            **shape,
            "table_updates": config.training.table_updates,
            "table_dtype": config.training.table_dtype,
            "activations": config.training.activations,
            "published_bytes": int(cell.published_gb * 1e9),
            "predicted_bytes": predicted,
            "peak_bytes": peak,
            "share": round(peak / (cell.published_gb * 1e9), 4),
        }
        rows.append(row)
        print(
            f"{name:10} {row['table_dtype']:8} {row['activations']:10} {peak / 1e9:6.2f} GB of "
            f"{cell.published_gb:4.1f}: 1/{1 / row['share']:.1f}, predicted {predicted / 1e9:.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "published_cells.csv")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            "python -m benchmarks.published_cells: peaks are measured on a GPU, and there is none"
        )
    about = machine()
    for name, cell in _CELLS.items():
        append(arguments.output, [{**about, **row} for row in rows_of(name, cell)])


if __name__ == "__main__":
    main()
