"""How many trials does a search need for the front of a recorded grid?

python -m benchmarks.search --table ../shared/data/recorded-grid.csv [--data SET ...]
    [--samplers NAME ...] [--seeds 20] [--trials 60] [--processes 2] [--output FILE]

A trial is looked up in a table of finished runs (`objectives.recorded`): negatives, batch size and
length are categories, full softmax is a loss of its own, and a cell that is not there ran out of
memory. `trials_to_95` is the number of trials, those that ran out of memory included, until the
area under the front, of NDCG against the logarithm of memory up to the largest peak, is 95 % of
the whole grid's; empty if it never is. `regret_30` is what is missing of the whole area after 30
trials, as a share. `suggestion_ms` is the median time that a sampler took for a trial.
"""

import argparse
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna

from benchmarks._machine import RESULTS, append, machine
from objectives.config import TrialConfig
from objectives.recorded import RecordedObjective
from objectives.trial import DivergedTrial, InfeasibleTrial
from study.front import Point, pareto_front
from study.ledger import Epoch
from study.pruning import Curve, Dominated, check, curve_of
from study.records import RESULT
from study.sampling import build_sampler
from study.subject import space_of

_SAMPLERS = ("front", "tpe", "gp", "nsga2", "random")
_ENOUGH, _EARLY = 0.95, 30
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class Found(NamedTuple):
    """What a trial of a search found.

    Attributes:
        point: Quality and memory; None where it did not train to its end.
        suggestion: Seconds that its suggestion took.
        trained: Seconds that it trained, when it was recorded.
    """

    point: Point | None
    suggestion: float
    trained: float


class _Context:
    seed, checkpoint = 0, None

    def __init__(self, memory_budget: int, others: list[Curve] | None) -> None:
        self.memory_budget = memory_budget
        self.epochs: list[Epoch] = []
        self._others = others

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Keeps it, and ends a trial that others, if there are, are far ahead of."""
        self.epochs.append(Epoch(0, epoch, _ANY_TIME, dict(metrics)))
        if self._others is not None:
            check(self.curve(complete=False), self._others)

    def curve(self, complete: bool) -> Curve:
        """What has been reported."""
        curve = curve_of(0, self.epochs, complete)
        assert curve is not None
        return curve


def area(points: list[Point], top: float) -> float:
    """Under the front of quality against log2 of memory, up to `top`."""
    if not points:
        return 0.0
    front = [points[place] for place in pareto_front(points)]
    ends = [memory for _, memory in front[1:]] + [2.0**top]
    return sum(
        quality * (math.log2(end) - math.log2(memory))
        for (quality, memory), end in zip(front, ends, strict=True)
    )


def whole_grid(objective: RecordedObjective) -> tuple[list[Point], int]:
    """The points of all cells that trained, and the largest peak, which is the budget."""
    cells = objective.cells.values()
    points: list[Point] = [(cell.quality, cell.peak_bytes) for cell in cells if cell.epochs]
    return points, max(cell.peak_bytes for cell in cells)


def search(
    objective: RecordedObjective, name: str, seed: int, num_trials: int, *, prunes: bool = False
) -> Iterator[Found]:
    """A search by the sampler of a name; prunes: as a study does by default."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = space_of(objective)
    _, budget = whole_grid(objective)

    def peak(config: TrialConfig) -> int:
        return objective.predicted_peak(config, budget)

    sampler = build_sampler(name, seed, 0, space, peak, budget)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    others: list[Curve] | None = [] if prunes else None
    for _ in range(num_trials):
        begin = time.perf_counter()
        trial = study.ask()
        config = space.suggest(trial)
        seconds = time.perf_counter() - begin
        point = None
        context = _Context(budget, others)
        try:
            result = objective(config, context)
        except InfeasibleTrial as error:
            trial.set_constraint("memory", error.peak_bytes / budget)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except DivergedTrial:
            trial.set_user_attr(RESULT, {"outcome": "diverged"})
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except Dominated as error:
            shown = {"expected": error.expected, "peak_memory": context.curve(False).peak}
            trial.set_user_attr(RESULT, {"outcome": "pruned", **shown})
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            point = result.quality, float(result.peak_memory)
            study.tell(trial, point)
        trained = 0.0
        if context.epochs:
            curve = context.curve(complete=point is not None)
            trained = curve.seconds[-1]
            if others is not None:
                others.append(curve)
        yield Found(point, seconds, trained)


def run(table: Path, data: str, name: str, seed: int, num_trials: int) -> dict[str, Any]:
    """One search."""
    objective = RecordedObjective(table, data)
    everything, budget = whole_grid(objective)
    top = math.log2(budget)
    whole = area(everything, top)
    points: list[Point] = []
    shares, times = [], []
    for found in search(objective, name, seed, num_trials):
        if found.point is not None:
            points.append(found.point)
        times.append(found.suggestion)
        shares.append(area(points, top) / whole)
    reached = [number for number, share in enumerate(shares, 1) if share >= _ENOUGH]
    return {
        "data": data,
        "sampler": name,
        "seed": seed,
        "trials": num_trials,
        "trials_to_95": reached[0] if reached else "",
        "regret_30": round(1 - shares[min(_EARLY, num_trials) - 1], 5),
        "regret_end": round(1 - shares[-1], 5),
        "out_of_memory": num_trials - len(points),
        "suggestion_ms": round(1e3 * statistics.median(times), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="CSV of finished runs")
    parser.add_argument(
        "--data", nargs="+", default=["30music", "gowalla", "megamarket", "movielens_20m"]
    )
    parser.add_argument("--samplers", nargs="+", choices=_SAMPLERS, default=list(_SAMPLERS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "search.csv")
    arguments = parser.parse_args()
    about = machine()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, spawn) as pool:
        for data in arguments.data:
            for name in arguments.samplers:
                jobs = [
                    pool.submit(run, arguments.table, data, name, seed, arguments.trials)
                    for seed in range(arguments.seeds)
                ]
                rows = [job.result() for job in jobs]
                append(arguments.output, [{**about, **row} for row in rows])
                needed = [row["trials_to_95"] or math.inf for row in rows]
                print(
                    f"{data:14} {name:7} trials to 95 %: median {np.median(needed):5}, "
                    f"quartiles {np.quantile(needed, [0.25, 0.75], method='nearest')}; regret at "
                    f"{_EARLY} {np.mean([row['regret_30'] for row in rows]):.4f}; "
                    f"{np.median([row['suggestion_ms'] for row in rows]):.0f} ms a suggestion",
                    flush=True,
                )


if __name__ == "__main__":
    main()
