"""How many histories a second are answered, as an evaluation ranks them, and what does int8 lose?

python -m benchmarks.serving --data globo-news.parquet [--batch N] [--output FILE]

The ten best of all items of the data, seen ones removed, for test histories (leave-one-out, no
item or user filtered), in calls of 256: by the registered model as MLflow loads it, a data frame
with raw ids in and one with lists out, with and without a table of bytes (`int8`). The model is a
SASRec of width 128 with two blocks, trained for two epochs of 5,000 of the sequences.

`equal` is the share of the lists that are those of an evaluation of the same histories, in its own
batches, and `recall` the share of their items that are among the ten answered ones. Times are of
the wall, as median, and of the 20 % and 80 % quantile.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import torch

from benchmarks._machine import RESULTS, append, machine
from kernels import top_k
from objectives.config import DataConfig, TrialConfig
from objectives.data import PreparedData, Sequences, Targets, prepare
from objectives.data.sequences import DeviceTargets
from objectives.evaluation import encode
from objectives.recommending import raw_ids
from objectives.saved_model import SavedModel
from study import cli
from study.environment import choose_device
from study.records import StudyRecord, TrialRecord
from study.registry import as_pyfunc
from study.retrain import Retraining

_K = 10
_SETTINGS = {
    "width": 128,
    "num_blocks": 2,
    "num_heads": 2,
    "max_length": 50,
    "positions": "rotary",
    "table_scale": 0.3,
    "negatives": 256,
    "batch_size": 256,
    "max_epochs": 2,
}
_SEQUENCES = 5_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.csv")
    arguments = parser.parse_args()
    request = DataConfig(data=str(arguments.data), min_item_users=1, min_user_items=1)
    data = prepare(request)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _train(data, request, folder)
        test = _first(data.test, arguments.batch * arguments.calls)
        expected = _evaluated(SavedModel.load(folder / "model"), test)
        rows = [
            {
                "data": data.name,
                "num_items": data.num_items,
                "batch": arguments.batch,
                "k": _K,
                "int8": int8,
                "threads": torch.get_num_threads(),
                **_answer(folder, test, data, expected, arguments.batch, int8=int8),
                **machine(),
            }
            for int8 in (False, True)
        ]
    append(arguments.output, rows)
    for row in rows:
        cli.say(json.dumps(row))


def _train(data: PreparedData, request: DataConfig, folder: Path) -> None:
    config = TrialConfig.from_flat(_SETTINGS)
    identity = {"request": request.model_dump(exclude_none=True), "data": {}}
    trial = TrialRecord(0, "complete", config=config.flat(), best_epoch=2, tags={"seed": "0"})
    record = StudyRecord("serving", {**identity, "memory_budget": 1 << 34}, (trial,), {}, None)
    retraining = Retraining(record, trial, device="auto", folder=folder, say=cli.say)
    some = _head(data.train, _SEQUENCES)
    data = dataclasses.replace(data, train=some)
    training = retraining.training(data, 0, retraining.epochs)
    fitted = retraining.train(data, training, folder / "model")
    retraining.saved(data, training, fitted).save(folder / "model")


def _head(sequences: Sequences, count: int) -> Sequences:
    offsets = sequences.offsets[: count + 1]
    return Sequences(sequences.items[: offsets[-1]], offsets)


def _first(targets: Targets, count: int) -> Targets:
    return Targets(_head(targets.inputs, count), targets.items[:count])


def _evaluated(saved: SavedModel, test: Targets) -> list[list[int]]:
    """The lists of an evaluation."""
    device = choose_device("auto")
    model = saved.build(device)
    batches = DeviceTargets(test, device).batches(
        saved.batch_tokens, model.config.max_length, masked=False
    )
    lists: list[list[int]] = []
    for batch in batches:
        lists += top_k(encode(model, batch), model.outputs.weight, _K, batch.seen).tolist()
    return lists


def _answer(
    folder: Path,
    test: Targets,
    data: PreparedData,
    expected: list[list[int]],
    batch: int,
    *,
    int8: bool,
) -> dict[str, Any]:
    path = folder / f"pyfunc-{int8}"
    mlflow.pyfunc.save_model(path, **as_pyfunc(folder / "model", int8=int8))
    model = mlflow.pyfunc.load_model(str(path))
    ids = np.array(raw_ids(data.item_ids))
    histories = np.split(ids[test.inputs.items], test.inputs.offsets[1:-1])
    lists: list[list[Any]] = []
    seconds = []
    model.predict(pd.DataFrame({"history": histories[:2]}))
    for first in range(0, len(histories), batch):
        frame = pd.DataFrame({"history": histories[first : first + batch]})
        begin = time.perf_counter()
        lists += model.predict(frame)["items"].tolist()
        seconds.append(time.perf_counter() - begin)
    true = [ids[items].tolist() for items in expected]
    hits = [len(set(a) & set(b)) / len(a) for a, b in zip(true, lists, strict=True)]
    low, median, high = np.quantile(seconds, (0.2, 0.5, 0.8)) * 1e3
    return {
        "answers_per_second": batch / median * 1e3,
        "median_ms": median,
        "p20_ms": low,
        "p80_ms": high,
        "histories": len(lists),
        "equal": float(np.mean([a == b for a, b in zip(true, lists, strict=True)])),
        "recall": float(np.mean(hits)),
    }


if __name__ == "__main__":
    main()
