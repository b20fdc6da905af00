"""How good are the models that the losses train? Several seeds each, one setting for a data set.

python -m benchmarks.losses [--folder FOLDER]
    [--compare quickstart | sharing | tables | configs | ml-1m | beauty | globo-news]
    [--seeds 3] [--processes 1] [--time-limit SECONDS] [--output FILE]

quickstart: is CCE- with K = 1024 as good as the full softmax on ml-100k?
sharing: does it cost quality that 128 rows share their K = 1024 negatives? On MovieLens-1M and
    Amazon Beauty, whose files ml-1m.parquet and amazon-beauty-bert4rec.parquet the folder holds.
tables: does it cost quality to move only the touched rows of the item table, on Amazon Beauty?
configs: how good are the configurations in `configs/`, how good is the full softmax on globo-news,
    and row-wise Adam on Amazon Beauty? The folder holds globo-news.parquet too.
ml-1m, beauty, globo-news: that configuration alone.

Leave-one-out but on globo-news, NDCG@10 over the whole catalogue, tested with the weights of the
best validation epoch. The differences are to the first loss with the same seed. The jobs of one
seed come before those of the next, each in a process of its own; what runs when the time limit
comes may end. With several processes at a time, `seconds` is the time of a job beside the others.
"""

import argparse
import functools
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import RESULTS, append, machine
from objectives.config import DataConfig, TrialConfig
from objectives.data import prepare
from objectives.sequential import SequentialObjective
from objectives.trial import TrialResult
from study.budget import resolve_budget
from study.environment import choose_device
from study.spec import load_spec

_R1, _R128 = "cce- K=1024 R=1", "cce- K=1024 R=128"
_LOSSES: dict[str, dict[str, Any]] = {
    "cce": {"loss": "cce"},
    _R1: {"negatives": 1024, "group_size": 1},
    _R128: {"negatives": 1024, "group_size": 128},
    "cce- K=128 R=128": {"negatives": 128, "group_size": 128},
}
_SHARED = _LOSSES[_R128]
_TABLES: dict[str, dict[str, Any]] = {
    "table dense": {**_SHARED, "table_updates": "dense"},
    "table adam": {**_SHARED, "table_updates": "adam"},
    "table adam bf16": {**_SHARED, "table_updates": "adam", "table_dtype": "bfloat16"},
}
_CONFIGURED, _FULL = "as configured", "as configured, cce"
_VARIANTS_BY_ROWS: dict[str, dict[str, Any]] = {
    "as configured, table adam": {"table_updates": "adam"},
    "as configured, table adam bf16": {"table_updates": "adam", "table_dtype": "bfloat16"},
}
_VARIANTS = {_CONFIGURED: {}, _FULL: {"loss": "cce"}, **_VARIANTS_BY_ROWS}
_SETTINGS = _LOSSES | _TABLES | _VARIANTS
_CONFIGS = Path(__file__).parents[1] / "configs"
_JOBS_OF_CONFIG = {
    "ml-1m": ("ml-1m.parquet", (_CONFIGURED,)),
    "beauty": ("amazon-beauty-bert4rec.parquet", (_CONFIGURED, *_VARIANTS_BY_ROWS)),
    "globo-news": ("globo-news.parquet", (_CONFIGURED, _FULL)),
}

_QUICKSTART = {"batch_size": 64, "learning_rate": 2e-3, "max_epochs": 60, "patience": 8}
_SETTING_OF_FILE: dict[str, dict[str, Any]] = {
    "ml-1m.parquet": {
        "max_length": 200,
        "width": 128,
        "dropout": 0.2,
        "batch_size": 128,
        "learning_rate": 2e-3,
        "max_epochs": 50,
        "patience": 8,
    },
    "amazon-beauty-bert4rec.parquet": {
        "max_length": 50,
        "width": 128,
        "dropout": 0.5,
        "batch_size": 512,
        "learning_rate": 2e-3,
        "max_epochs": 30,
        "patience": 5,
    },
}


@dataclass(frozen=True)
class Job:
    """One training."""

    data: DataConfig
    setting: Mapping[str, Any]
    loss: str
    seed: int

    @property
    def name(self) -> str:
        """The data set, for people."""
        return f"{Path(self.data.data).stem} {self.data.split}"

    def __str__(self) -> str:
        return f"{self.name}, {self.loss}, seed {self.seed}"


class _Context:
    leaving = False

    def __init__(self, seed: int, memory_budget: int) -> None:
        self.seed = seed
        self.memory_budget = memory_budget
        self.checkpoint = None

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Nothing waits for it."""


def quickstart(folder: Path, seeds: int) -> list[Job]:
    """All losses on the data of the quickstart, which needs no folder."""
    return [
        Job(DataConfig(), _QUICKSTART, loss, seed) for seed in range(seeds) for loss in _LOSSES
    ]


def sharing(folder: Path, seeds: int) -> list[Job]:
    """CCE- with negatives of its own for every row, and shared by 128 rows."""
    settings = [
        # Every item, as in the results that are published on these files.
        (DataConfig(data=str(folder / file), min_item_users=1), setting)
        for file, setting in _SETTING_OF_FILE.items()
    ]
    return [
        Job(data, setting, loss, seed)
        for seed in range(seeds)
        for data, setting in settings
        for loss in (_R1, _R128)
    ]


def tables(folder: Path, seeds: int) -> list[Job]:
    """A table that is moved whole, or by its touched rows, on Amazon Beauty."""
    file = "amazon-beauty-bert4rec.parquet"
    data = DataConfig(data=str(folder / file), min_item_users=1)
    return [
        Job(data, _SETTING_OF_FILE[file], table, seed)
        for seed in range(seeds)
        for table in _TABLES
    ]


def configs(folder: Path, seeds: int, names: Iterable[str] = _JOBS_OF_CONFIG) -> list[Job]:
    """The configurations that users are given."""
    jobs = []
    for seed in range(seeds):
        for name in names:
            file, variants = _JOBS_OF_CONFIG[name]
            spec = load_spec({}, _CONFIGS / f"{name}.toml")
            data = spec.data_config.model_copy(update={"data": str(folder / file)})
            jobs += [Job(data, spec.space, variant, seed) for variant in variants]
    return jobs


_COMPARISONS: dict[str, Callable[[Path, int], list[Job]]] = {
    "quickstart": quickstart,
    "sharing": sharing,
    "tables": tables,
    "configs": configs,
    **{name: functools.partial(configs, names=[name]) for name in _JOBS_OF_CONFIG},
}


def _train(job: Job, processes: int, results: Connection) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    device = choose_device("auto")
    config = TrialConfig.from_flat({**job.setting, **_SETTINGS[job.loss]})
    context = _Context(job.seed, resolve_budget(None, device) // processes)
    results.send(SequentialObjective(prepare(job.data), device)(config, context))


def _results(
    jobs: list[Job], processes: int, time_limit: float
) -> Iterator[tuple[Job, TrialResult | None]]:
    """The jobs as they end, with None for one that failed; each has a process of its own."""
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    longest: dict[tuple[str, str], float] = {}
    running: dict[Connection, tuple[Job, SpawnProcess, float]] = {}
    waiting = iter(jobs)
    while True:
        while len(running) < processes and (job := next(waiting, None)):
            now = time.perf_counter()
            if now - start + longest.get((job.name, job.loss), 0.0) > time_limit:
                print(f"{job}: no time left", flush=True)
                continue
            receiver, sender = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_train, args=(job, processes, sender), daemon=True)
            process.start()
            sender.close()
            running[receiver] = job, process, now
        if not running:
            return
        wait(list(running))
        for receiver in [receiver for receiver in running if receiver.poll()]:
            job, process, begin = running.pop(receiver)
            try:
                result = receiver.recv()
            except EOFError:  # What went wrong has been printed by the process.
                result = None
            process.join()
            if result:
                kind = job.name, job.loss
                longest[kind] = max(longest.get(kind, 0.0), time.perf_counter() - begin)
            yield job, result


def _row(job: Job, result: TrialResult) -> dict[str, Any]:
    training = ("batch_size", "learning_rate", "max_epochs", "patience")
    return {
        "data": job.name,
        "loss": job.loss,
        **{name: job.setting[name] for name in training},
        "seed": job.seed,
        "val_ndcg_at_10": round(result.quality, 5),
        "test_ndcg_at_10": round(result.metrics["test/ndcg_at_10"], 5),
        "peak_bytes": result.peak_memory,
        "memory_source": result.memory_source,
        "epochs": result.epochs,
        "seconds": round(result.seconds, 2),
    }


def _print_summary(rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, and differences to the first loss over the seeds of both."""
    for data in dict.fromkeys(row["data"] for row in rows):
        for split in ("val", "test"):
            print(f"\n{data}, {split} NDCG@10")
            of_loss = {
                loss: {
                    row["seed"]: row[f"{split}_ndcg_at_10"]
                    for row in rows
                    if (row["data"], row["loss"]) == (data, loss)
                }
                for loss in _SETTINGS
            }
            first, *others = (loss for loss, of_seed in of_loss.items() if of_seed)
            for loss in (first, *others):
                values = list(of_loss[loss].values())
                print(
                    f"  {loss:25} {statistics.mean(values):.4f} +- {_deviation(values):.4f} "
                    f"(standard deviation, {len(values)} seeds)"
                )
            for loss in others:
                seeds = of_loss[first].keys() & of_loss[loss].keys()
                pairs = [of_loss[loss][seed] - of_loss[first][seed] for seed in seeds]
                if pairs:
                    print(
                        f"  {loss} - {first}: {statistics.mean(pairs):+.4f} "
                        f"+- {_deviation(pairs) / math.sqrt(len(pairs)):.4f} "
                        f"(standard error, {len(pairs)} pairs)"
                    )


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compare", choices=_COMPARISONS, default="quickstart")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".data"),
        help="of the files that sharing, tables and configs train on",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="jobs at a time")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="start no job that would end later, going by the longest of its kind so far",
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "losses.csv")
    arguments = parser.parse_args()

    jobs = _COMPARISONS[arguments.compare](arguments.folder, arguments.seeds)
    for data in dict.fromkeys(job.data for job in jobs):
        prepare(data)  # Once, into the cache, before the processes ask for it.
    about = machine()
    rows: list[dict[str, Any]] = []
    failed = 0
    for job, result in _results(jobs, arguments.processes, arguments.time_limit):
        if result is None:
            failed += 1
            print(f"{job}: failed", flush=True)
            continue
        rows.append(_row(job, result))
        append(arguments.output, [{**about, **rows[-1]}])
        print(
            f"{job}: val {rows[-1]['val_ndcg_at_10']:.4f} "
            f"test {rows[-1]['test_ndcg_at_10']:.4f}, best epoch {result.best_epoch} of "
            f"{result.epochs}, {result.seconds:.0f} s",
            flush=True,
        )
    _print_summary(rows)
    if failed:
        sys.exit(f"{failed} of {len(jobs)} jobs failed")


if __name__ == "__main__":
    main()
