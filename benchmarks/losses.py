"""Is CCE- with K = 1024 as good as the full softmax on ml-100k? Several seeds each, one setting.

python -m benchmarks.losses [--seeds 3] [--output FILE]
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._machine import RESULTS, append, machine
from objectives.config import DataConfig, TrialConfig
from objectives.data import prepare
from objectives.sequential import SequentialObjective
from study.budget import resolve_budget
from study.environment import choose_device

_SETTING = {"batch_size": 64, "learning_rate": 2e-3, "max_epochs": 60, "patience": 8}
_LOSSES: dict[str, dict[str, Any]] = {
    "cce": {"loss": "cce"},
    "cce- K=1024 R=1": {"negatives": 1024, "group_size": 1},
    "cce- K=1024 R=128": {"negatives": 1024, "group_size": 128},
    "cce- K=128 R=128": {"negatives": 128, "group_size": 128},
}


class _Context:
    def __init__(self, seed: int, memory_budget: int) -> None:
        self.seed = seed
        self.memory_budget = memory_budget

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Nothing waits for it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "losses.csv")
    arguments = parser.parse_args()
    device = choose_device("auto")
    objective = SequentialObjective(prepare(DataConfig()), device)
    budget = resolve_budget(None, device)
    for name, loss in _LOSSES.items():
        rows = []
        for seed in range(arguments.seeds):
            config = TrialConfig.from_flat({**_SETTING, **loss})
            result = objective(config, _Context(seed, budget))
            rows.append(
                {
                    **machine(),
                    "data": "ml-100k leave-one-out",
                    "loss": name,
                    **_SETTING,
                    "seed": seed,
                    "val_ndcg_at_10": round(result.quality, 5),
                    "test_ndcg_at_10": round(result.metrics["test/ndcg_at_10"], 5),
                    "peak_bytes": result.peak_memory,
                    "memory_source": result.memory_source,
                    "epochs": result.epochs,
                    "seconds": round(result.seconds, 2),
                }
            )
            append(arguments.output, rows[-1:])
        for split in ("val", "test"):
            values = [row[f"{split}_ndcg_at_10"] for row in rows]
            print(
                f"{name:20} {split:4} NDCG@10 {statistics.mean(values):.4f} "
                f"+- {statistics.stdev(values):.4f} (standard deviation, {len(values)} seeds)",
                flush=True,
            )


if __name__ == "__main__":
    main()
