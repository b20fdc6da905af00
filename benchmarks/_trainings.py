"""Trainings beside each other, on one card or several, of data that `configs/` is for."""

import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import optuna
import torch

from objectives.config import DataConfig
from objectives.data import prepare
from objectives.sequential import SequentialObjective
from study.environment import choose_device
from study.spec import StudySpec, load_spec

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = {
    "ml-1m": "ml-1m.parquet",
    "beauty": "amazon-beauty-bert4rec.parquet",
    "globo-news": "globo-news.parquet",
    "ciao": "ciao.parquet",
}
_CONFIG_OF = {"ciao": "beauty"}
"""Data without a configuration of its own: whose it takes."""


class Context:
    """What a training is given; keeps what it reports."""

    checkpoint = None
    leaving = False

    def __init__(self, seed: int, memory_budget: int) -> None:
        self.seed = seed
        self.memory_budget = memory_budget
        self.reports: list[dict[str, float]] = []

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of an epoch."""
        self.reports.append(dict(metrics))


class Job(Protocol):
    """A training."""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others."""


def config_of(data: str) -> StudySpec:
    """The configuration that the data set has, or that of another."""
    return load_spec({}, CONFIGS / f"{_CONFIG_OF.get(data, data)}.toml")


def data_config(data: str, folder: Path) -> DataConfig:
    """The interactions, split as in the configuration that the data set has."""
    config = config_of(data).data_config
    return config.model_copy(update={"data": str(folder / FILES[data])})


@cache
def objective_of(config: DataConfig, device: torch.device) -> SequentialObjective:
    """One for every data set and device of a process."""
    return SequentialObjective(prepare(config), device)


_device: torch.device


def device() -> torch.device:
    """The device of this process of a pool."""
    return _device


def _begin(places: Any, processes: int) -> None:
    """Gives a process its card, and its share of the host."""
    global _device
    _device = choose_device("auto")
    if _device.type == "cuda":
        _device = torch.device("cuda", places.get())
        torch.cuda.set_device(_device)
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


J = TypeVar("J", bound=Job)


def train_all(
    missing: Callable[[], Sequence[J]],
    train: Callable[[J], dict[str, Any]],
    done: Callable[[J, dict[str, Any]], None],
    *,
    processes: int,
    gpus: int,
    deadline: float,
) -> None:
    """Trains what is missing, several at a time, until nothing is or the time is over.

    Args:
        missing: What could be trained now, the most urgent first; asked after every training.
        train: In one of the processes, whose device `device()` is: a training's row.
        done: Told every row.
        processes: Trainings at a time.
        gpus: Cards that they are dealt out to.
        deadline: By `time.monotonic`; nothing starts later.
    """
    spawn = multiprocessing.get_context("spawn")
    places = spawn.Queue()
    for number in range(processes):
        places.put(number % gpus)
    with ProcessPoolExecutor(
        processes, spawn, initializer=_begin, initargs=(places, processes)
    ) as pool:
        running: dict[Future[dict[str, Any]], J] = {}
        failed: set[tuple[str, ...]] = set()
        while True:
            busy = {job.key for job in running.values()} | failed
            waiting = [job for job in missing() if job.key not in busy]
            while waiting and len(running) < processes and time.monotonic() < deadline:
                job = waiting.pop(0)
                running[pool.submit(train, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    row = future.result()
                except Exception as error:
                    failed.add(job.key)
                    print(f"{' '.join(job.key)}: {type(error).__name__}: {error}", flush=True)
                else:
                    done(job, row)
