"""How many trials does a search need for the front of a recorded grid?

python -m benchmarks.search --table ../shared/data/recorded-grid.csv [--data SET ...]
    [--samplers NAME ...] [--warm-start one|all] [--seeds 20] [--trials 60] [--processes 2]
    [--output FILE]

A trial is looked up in a table of finished runs (`objectives.recorded`): negatives, batch size and
length are categories, full softmax is a loss of its own, and a cell that is not there ran out of
memory. `trials_to_95` is the number of trials, those that ran out of memory included, until the
area under the front, of NDCG against the logarithm of memory up to the largest peak, is 95 % of
the whole grid's; empty if it never is, and `hours_to_95` the time that they had trained when they
were recorded. `regret_30` is what is missing of the whole area after 30 trials, as a share, and
`regret_time` after as much training as 30 average runs of the table take. `suggestion_ms` is the
median time that a sampler took for a trial.

With `--warm-start`, `front` starts from 60 random runs of each of the other data sets, one or all
of them. At the end all rows of the output are summarised.
"""

import argparse
import csv
import math
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from scipy.stats import rankdata, t

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
from study.warm_start import Source, runs_of_table

_SAMPLERS = ("front", "tpe", "gp", "nsga2", "random")
_ENOUGH, _EARLY = 0.95, 30
_SOURCE_RUNS = 60
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
    seed, checkpoint, leaving = 0, None, False

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
    objective: RecordedObjective,
    name: str,
    seed: int,
    num_trials: int,
    *,
    prunes: bool = False,
    sources: Sequence[Source] = (),
) -> Iterator[Found]:
    """A search by the sampler of a name; prunes: as a study does by default."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = space_of(objective)
    _, budget = whole_grid(objective)

    def peak(config: TrialConfig) -> int:
        return objective.predicted_peak(config, budget)

    sampler = build_sampler(name, seed, 0, space, peak, budget, sources=sources)
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


def source(table: Path, data: str, seed: int) -> Source:
    """A study of random runs of a data set."""
    runs = runs_of_table(RecordedObjective(table, data))
    chosen = np.random.default_rng(seed).permutation(len(runs))[:_SOURCE_RUNS]
    return Source(data, [runs[place] for place in chosen])


def run(
    table: Path, data: str, name: str, seed: int, num_trials: int, warm_start: Sequence[str] = ()
) -> dict[str, Any]:
    """One search."""
    objective = RecordedObjective(table, data)
    sources = [source(table, other, seed) for other in warm_start]
    everything, budget = whole_grid(objective)
    top = math.log2(budget)
    whole = area(everything, top)
    points: list[Point] = []
    shares = []
    trials = list(search(objective, name, seed, num_trials, sources=sources))
    for found in trials:
        if found.point is not None:
            points.append(found.point)
        shares.append(area(points, top) / whole)
    trained = list(accumulate(found.trained for found in trials))
    average = statistics.fmean(cell.seconds for cell in objective.cells.values())
    in_time = [
        share
        for share, seconds in zip(shares, trained, strict=True)
        if seconds <= _EARLY * average
    ]
    reached = [number for number, share in enumerate(shares, 1) if share >= _ENOUGH]
    return {
        "data": data,
        "sampler": name,
        "warm_start": "+".join(warm_start),
        "seed": seed,
        "trials": num_trials,
        "trials_to_95": reached[0] if reached else "",
        "hours_to_95": round(trained[reached[0] - 1] / 3600, 4) if reached else "",
        "regret_30": round(1 - shares[min(_EARLY, num_trials) - 1], 5),
        "regret_time": round(1 - max(in_time, default=0.0), 5),
        "regret_end": round(1 - shares[-1], 5),
        "out_of_memory": num_trials - len(points),
        "suggestion_ms": round(1e3 * statistics.median(found.suggestion for found in trials), 1),
    }


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of what every sampler needed: medians, means with 95 % intervals, mean ranks.

    A rank is that of a search among the samplers that have the same data and seed.
    """
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        name = row["sampler"] + (f", from {row['warm_start']}" if row["warm_start"] else "")
        groups.setdefault((row["data"], name), []).append(row)
    lines = [
        "| data | sampler | searches | trials to 95 %: median | mean | hours | regret at 30 | "
        "in the time of 30 |",
        "| --- " * 8 + "|",
    ]
    for (data, name), found in groups.items():
        needed = [float(row["trials_to_95"] or math.inf) for row in found]
        cells = [
            data,
            name,
            str(len(found)),
            f"{np.median(needed):g}",
            "-" if math.inf in needed else _interval(needed, 1),
            "-"
            if math.inf in needed
            else _interval([float(row["hours_to_95"]) for row in found], 2),
            *(
                _interval([float(row[column]) for row in found], 4)
                for column in ("regret_30", "regret_time")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    cold = [row for row in rows if not row["warm_start"]]
    for column in ("regret_30", "regret_time"):
        lines.append(f"mean rank by {column}: {_ranks(cold, column)}")
    return "\n".join(lines)


def _interval(values: Sequence[float], digits: int) -> str:
    half = 0.0
    if len(values) > 1:
        half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f}"


def _ranks(rows: Sequence[Mapping[str, str]], column: str) -> str:
    searches: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        searches.setdefault((row["data"], row["seed"]), {})[row["sampler"]] = float(row[column])
    most = max(map(len, searches.values()), default=0)
    complete = [found for found in searches.values() if len(found) == most]
    ranks: dict[str, list[float]] = {}
    for found in complete:
        for name, rank in zip(found, rankdata(list(found.values())), strict=True):
            ranks.setdefault(name, []).append(float(rank))
    means = sorted((statistics.fmean(each), name) for name, each in ranks.items())
    return ", ".join(f"{name} {mean:.2f}" for mean, name in means) + f" ({len(complete)} searches)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, required=True, help="CSV of finished runs")
    parser.add_argument(
        "--data", nargs="+", default=["30music", "gowalla", "megamarket", "movielens_20m"]
    )
    parser.add_argument("--samplers", nargs="+", choices=_SAMPLERS, default=list(_SAMPLERS))
    parser.add_argument("--warm-start", choices=["one", "all"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "search.csv")
    arguments = parser.parse_args()
    about = machine()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, spawn) as pool:
        jobs = [
            pool.submit(run, arguments.table, data, name, seed, arguments.trials, sources)
            for data in arguments.data
            for name, sources in _searches(arguments, data)
            for seed in range(arguments.seeds)
        ]
        for job in jobs:
            append(arguments.output, [{**about, **job.result()}])
    with arguments.output.open(newline="") as stream:
        print(summary(list(csv.DictReader(stream))))


def _searches(arguments: argparse.Namespace, data: str) -> list[tuple[str, list[str]]]:
    """Samplers and what each starts from."""
    others = [other for other in arguments.data if other != data]
    if arguments.warm_start == "all":
        return [("front", others)]
    if arguments.warm_start == "one":
        return [("front", [other]) for other in others]
    return [(name, []) for name in arguments.samplers]


if __name__ == "__main__":
    main()
