"""How near does a refresh come to a training from scratch, and in what share of its time?

python -m benchmarks.refresh --data globo-news.parquet [--sample N] [--seeds N] [--output FILE]

The champion is trained on the first 80 % of the interactions by time, and goes on as `study.best
--since` does, on the users who were active in the tenth after that, in a quarter of the steps. The
other model is trained from scratch on all 90 %. Both, and the champion as it was, answer the test
histories of the last tenth (the temporal split): NDCG@10 of their lists. The configuration is
small enough for a CPU, with `--sample 16`, one of 16 users; `--width` and `--epochs` change it.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks._machine import RESULTS, append, machine
from objectives.config import DataConfig, TrialConfig
from study import cli
from study.records import StudyRecord, TrialRecord
from study.refresh import Refresh
from study.retrain import Retraining

_SINCE, _CUT = 0.8, 0.9
_SETTINGS = {
    "num_blocks": 1,
    "max_length": 20,
    "positions": "rotary",
    "table_scale": 0.3,
    "negatives": 256,
    "group_size": 128,
    "batch_size": 32,
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "warmup": 0.05,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a Parquet file with a column ts")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sample", type=int, default=1, help="one of so many users")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "refresh.csv")
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        rows = [
            {
                "data": arguments.data.stem,
                "sample": arguments.sample,
                "width": arguments.width,
                "epochs": arguments.epochs,
                "seed": seed,
                "since_quantile": _SINCE,
                "model": name,
                **figures,
                **machine(),
            }
            for name, figures in _judge(arguments, seed).items()
        ]
        append(arguments.output, rows)
        for row in rows:
            cli.say(json.dumps(row))


def _judge(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    table = pq.read_table(arguments.data)
    table = table.filter(table["user"].to_numpy() % arguments.sample == 0)
    times = table["ts"].to_numpy()
    since = int(np.quantile(times, _SINCE))
    config = TrialConfig.from_flat(
        {**_SETTINGS, "width": arguments.width, "max_epochs": arguments.epochs}
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        early, whole = folder / "early.parquet", folder / "whole.parquet"
        pq.write_table(table.filter(times < since), early)
        pq.write_table(table, whole)

        def retraining(data: Path) -> Retraining:
            request = DataConfig(data=str(data), split="temporal")
            identity = {
                "request": request.model_dump(exclude_none=True),
                "data": {},
                "memory_budget": 1 << 34,
            }
            trial = TrialRecord(
                0,
                "complete",
                config=config.flat(),
                best_epoch=arguments.epochs,
                tags={"seed": str(seed)},
            )
            record = StudyRecord("refresh", identity, (trial,), {}, None)
            return Retraining(record, trial, device="auto", folder=folder, say=cli.say)

        first = retraining(early)
        data = first.data("none")
        training = first.training(data, seed, arguments.epochs)
        fitted = first.train(data, training, folder / "champion")
        champion = first.saved(data, training, fitted)
        asked = Refresh(champion, retraining(whole), str(since))
        return asked.judge(str(np.quantile(times, _CUT)), against_scratch=True)


if __name__ == "__main__":
    main()
