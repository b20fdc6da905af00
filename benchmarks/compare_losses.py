"""Which loss is best on which data, each tuned as long under one memory budget?

python -m benchmarks.compare_losses [--folder .data] [--data ml-1m beauty globo-news ciao]
    [--losses cce- cce bce bce+ gbce sce rece] [--trials 8] [--seeds 3] [--memory-budget 6GiB]
    [--processes 1] [--gpus 1] [--time-limit SECONDS] [--output FILE] [--plot FILE]

Every loss is tuned by as many random trials of its own space on every data set: learning rate,
batch size, and what the loss has (`_SPACE`); model and schedule are those of `configs/`, with a
third of the epochs, or with all of them where a third leaves trials alike (`_WHOLE`). A
configuration that does not fit the budget is a row, and does not count. The configuration with the
best validation NDCG@10 is then trained with every epoch and several seeds.

A row is a training; what stands in the output already is not trained again, so that the comparison
can be spread over several runs. `epoch_seconds` is the median of a training's epochs, beside the
other processes of its card. `--time-limit` starts nothing later than that.
"""

import argparse
import csv
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from benchmarks._machine import RESULTS, append, machine
from benchmarks._trainings import (
    FILES,
    Context,
    config_of,
    data_config,
    device,
    objective_of,
    train_all,
)
from objectives.config import TrialConfig
from objectives.data import prepare
from objectives.sequential import SequentialObjective
from objectives.trial import DivergedTrial, InfeasibleTrial
from study.budget import format_bytes, resolve_budget
from study.environment import choose_device
from study.front import pareto_front
from study.space import Space, build_space, limits
from study.spec import parse_budget

_WHOLE = {("ml-1m", "gbce"), ("beauty", "bce+"), ("beauty", "gbce")}
"""What is tuned with every epoch: after a third of them all trials still rank by popularity."""
_SPACE: dict[str, dict[str, Any]] = {
    "cce-": {"negatives": [64, 8192], "group_size": 128},
    "cce": {},
    "bce": {},
    "bce+": {"negatives": [64, 8192], "group_size": 128},
    "gbce": {"negatives": [64, 8192], "group_size": 128, "calibration": [0.0, 1.0]},
    "sce": {"bucket_items": [64, 4096], "centres": ["mixed", "random"]},
    "rece": {"rounds": [1, 2, 4], "neighbours": [0, 1, 2]},
}
_SHARED = {"learning_rate": [3e-4, 5e-3], "batch_size": [64, 512]}
_OF_A_LOSS = ("loss", "negatives", "group_size")
_TUNING_SHARE = 3
_METRICS = ("ndcg_at_10", "coverage_at_10")


class Job(NamedTuple):
    """A training: trial `number` of the tuning or, with stage "final", the seed `number`."""

    data: str
    loss: str
    stage: str
    number: int
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others."""
        return self.data, self.loss, self.stage, str(self.number)


def _tuning_epochs(data: str, loss: str) -> int:
    epochs: int = config_of(data).space["max_epochs"]
    return epochs if (data, loss) in _WHOLE else max(1, epochs // _TUNING_SHARE)


def space_of(data: str, loss: str, objective: SequentialObjective) -> Space:
    """What tuning chooses from."""
    fixed = dict(config_of(data).space)
    for name in _OF_A_LOSS:
        fixed.pop(name, None)
    epochs = _tuning_epochs(data, loss)
    asked = {**fixed, "max_epochs": epochs, "patience": epochs, "loss": loss}
    sizes = objective.data.num_items, len(objective.data.train.lengths)
    ranges = {**_SHARED, **_SPACE[loss]}
    for name, (limit, _) in limits(*sizes).items():
        if name in ranges:
            ranges[name] = [min(value, limit) for value in ranges[name]]
    return build_space({**asked, **ranges}, *sizes)


def _trial(space: Space, data: str, loss: str, number: int) -> TrialConfig:
    """The same for the same number, in every run."""
    seed = sum(ord(letter) for letter in data + loss) * 1_000 + number
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return space.suggest(study.ask())


def _train(job: Job, folder: Path, budget: int) -> dict[str, Any]:
    """A row, in one of the processes."""
    objective = objective_of(data_config(job.data, folder), device())
    space = space_of(job.data, job.loss, objective)
    if job.stage == "tuning":
        config, seed = _trial(space, job.data, job.loss, job.number), 0
    else:
        config, seed = TrialConfig.from_flat(dict(job.settings)), job.number
    context = Context(seed, budget)
    chosen = {name: value for name, value in config.flat().items() if name in space.open}
    row = {"settings": json.dumps(chosen), **dict.fromkeys(_columns(), "")}
    try:
        result = objective(config, context)
    except (InfeasibleTrial, DivergedTrial) as error:
        outcome = "infeasible" if isinstance(error, InfeasibleTrial) else "diverged"
        return {**row, "peak_bytes": error.peak_bytes, "outcome": outcome}
    shown = {
        f"{split}_{name}": round(result.metrics[f"{split}/{name}"], 5)
        for split in ("val", "test")
        for name in _METRICS
    }
    return {
        **row,
        **shown,
        "peak_bytes": result.peak_memory,
        "epochs": result.epochs,
        "epoch_seconds": round(
            statistics.median(each["train/epoch_seconds"] for each in context.reports), 4
        ),
        "seconds": round(result.seconds, 2),
        "outcome": "ok",
    }


def _columns() -> list[str]:
    metrics = [f"{split}_{name}" for split in ("val", "test") for name in _METRICS]
    return [*metrics, "peak_bytes", "epochs", "epoch_seconds", "seconds", "outcome"]


class Comparison:
    """The rows that are there, and what is still to be trained."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.budget = resolve_budget(parse_budget(arguments.memory_budget), choose_device("auto"))
        self.rows: list[dict[str, Any]] = []
        if arguments.output.exists():
            with arguments.output.open(newline="") as stream:
                rows = list(csv.DictReader(stream))
            self.rows = [row for row in rows if row["memory_budget_bytes"] == str(self.budget)]

    def tuning(self, data: str, loss: str) -> list[dict[str, Any]]:
        """The trials of a loss that count, as many as are asked for."""
        found = [row for row in self._tried(data, loss) if row["outcome"] != "infeasible"]
        return found[: self.arguments.trials]

    def finals(self, data: str, loss: str) -> list[dict[str, Any]]:
        """The trainings of its best configuration."""
        best = self._best(data, loss)
        found = self._of(data, loss, "final")
        of_best = [row for row in found if best and row["settings"] == best["settings"]]
        return of_best[: self.arguments.seeds]

    def _best(self, data: str, loss: str) -> dict[str, Any] | None:
        learned = [row for row in self.tuning(data, loss) if row["outcome"] == "ok"]
        return max(learned, key=lambda row: float(row["val_ndcg_at_10"]), default=None)

    def _tried(self, data: str, loss: str) -> list[dict[str, Any]]:
        epochs = str(_tuning_epochs(data, loss))
        found = self._of(data, loss, "tuning")
        return [row for row in found if row["outcome"] != "ok" or str(row["epochs"]) == epochs]

    def _of(self, data: str, loss: str, stage: str) -> list[dict[str, Any]]:
        found = [r for r in self.rows if (r["data"], r["loss"], r["stage"]) == (data, loss, stage)]
        return sorted(found, key=lambda row: int(row["number"]))

    def missing(self) -> list[Job]:
        """What can be trained now: trials first, those of a round side by side."""
        jobs = []
        for data in self.arguments.data:
            for loss in self.arguments.losses:
                tried = self._tried(data, loss)
                done = {int(row["number"]) for row in tried}
                unfit = sum(row["outcome"] == "infeasible" for row in tried)
                numbers = set(range(self.arguments.trials + unfit)) - done
                jobs += [Job(data, loss, "tuning", number) for number in numbers]
                if not numbers:
                    jobs += self._missing_finals(data, loss)
        return sorted(jobs, key=lambda job: (job.stage == "final", job.number))

    def _missing_finals(self, data: str, loss: str) -> list[Job]:
        best = self._best(data, loss)
        if best is None:
            return []
        base = {**config_of(data).space, "loss": loss, **_fixed(loss)}
        settings = tuple({**base, **json.loads(best["settings"])}.items())
        seeds = set(range(self.arguments.seeds))
        seeds -= {int(row["number"]) for row in self.finals(data, loss)}
        return [Job(data, loss, "final", seed, settings) for seed in seeds]

    def add(self, job: Job, row: dict[str, Any], about: dict[str, Any]) -> None:
        """Keeps a row, on the disk too."""
        row = {
            **dict(zip(("data", "loss", "stage", "number"), job.key, strict=True)),
            "memory_budget_bytes": str(self.budget),
            **row,
        }
        self.rows.append(row)
        append(self.arguments.output, [{**about, **row}])


def _fixed(loss: str) -> dict[str, Any]:
    return {name: value for name, value in _SPACE[loss].items() if not isinstance(value, list)}


def run(comparison: Comparison) -> None:
    """Trains what is missing, several at a time, until nothing is or the time is over."""
    arguments, about = comparison.arguments, machine()
    deadline = time.monotonic() + arguments.time_limit
    for data in arguments.data:
        prepare(data_config(data, arguments.folder))  # Once, before the processes ask for it.

    def done(job: Job, row: dict[str, Any]) -> None:
        comparison.add(job, row, about)
        print(f"{' '.join(job.key)}: {_line(row)}", flush=True)

    train_all(
        comparison.missing,
        partial(_train, folder=arguments.folder, budget=comparison.budget),
        done,
        processes=arguments.processes,
        gpus=arguments.gpus,
        deadline=deadline,
    )


def _line(row: Mapping[str, Any]) -> str:
    if row["outcome"] != "ok":
        return f"{row['outcome']} {row['settings']}"
    return (
        f"val {row['val_ndcg_at_10']:.4f} test {row['test_ndcg_at_10']:.4f}, "
        f"{format_bytes(row['peak_bytes'])}, {row['seconds']:.0f} s {row['settings']}"
    )


def table(comparison: Comparison) -> Iterator[str]:
    """A line for each data set and loss: the mean of the seeds and its standard deviation."""
    arguments = comparison.arguments
    for data in arguments.data:
        yield f"\n{data}: test NDCG@10, Coverage@10, peak memory, seconds an epoch, settings"
        for loss in arguments.losses:
            rows = [row for row in comparison.finals(data, loss) if row["outcome"] == "ok"]
            trials = len(comparison.tuning(data, loss))
            if not rows:
                yield f"  {loss:5} {trials} of {arguments.trials} trials, not trained"
                continue
            ndcg, coverage, seconds = (
                [float(row[name]) for row in rows]
                for name in ("test_ndcg_at_10", "test_coverage_at_10", "epoch_seconds")
            )
            spread = statistics.stdev(ndcg) if len(ndcg) > 1 else math.nan
            yield (
                f"  {loss:5} {statistics.mean(ndcg):.4f} +- {spread:.4f} ({len(rows)} seeds)  "
                f"{statistics.mean(coverage):.3f}  "
                f"{format_bytes(max(int(row['peak_bytes']) for row in rows)):>10}  "
                f"{statistics.median(seconds):7.3f}  {rows[0]['settings']}"
            )


def plot(comparison: Comparison, path: Path) -> None:
    """The front of every loss, of its trials: a panel for each data set."""
    from plotly.subplots import make_subplots

    names = comparison.arguments.data
    drawing = make_subplots(rows=1, cols=len(names), subplot_titles=names)
    for column, data in enumerate(names, 1):
        for number, loss in enumerate(comparison.arguments.losses):
            points = _points(comparison.tuning(data, loss))
            front = [points[place] for place in pareto_front(points)]
            drawing.add_scatter(
                x=[memory / 2**30 for _, memory in front],
                y=[quality for quality, _ in front],
                mode="lines+markers",
                line={"shape": "hv", "color": _COLOURS[number % len(_COLOURS)]},
                name=loss,
                legendgroup=loss,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    drawing.update_xaxes(type="log", title="peak memory, GiB")
    drawing.update_yaxes(title="validation NDCG@10", col=1)
    drawing.update_layout(template="plotly_white", width=320 * len(names) + 120, height=380)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        drawing.write_html(path, include_plotlyjs="cdn")
    else:
        drawing.write_image(path)  # by kaleido


_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of Okabe and Ito, for eyes that see colours in other ways too."""


def _points(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [
        (float(row["val_ndcg_at_10"]), float(row["peak_bytes"]))
        for row in rows
        if row["outcome"] == "ok"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".data"), help="of the data's files")
    parser.add_argument("--data", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--losses", nargs="+", choices=_SPACE, default=list(_SPACE))
    parser.add_argument("--trials", type=int, default=8, help="of every loss on every data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--memory-budget", default="6GiB", help="of a training")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    parser.add_argument("--gpus", type=int, default=1, help="cards that they are dealt out to")
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--output", type=Path, default=RESULTS / "compare_losses.csv")
    parser.add_argument("--plot", type=Path, help="an .html, or by kaleido an .svg or .png")
    arguments = parser.parse_args()
    comparison = Comparison(arguments)
    run(comparison)
    print(*table(comparison), sep="\n")
    if arguments.plot:
        plot(comparison, arguments.plot)
    if missing := len(comparison.missing()):
        sys.exit(f"{missing} trainings or more are missing: the same command goes on")


if __name__ == "__main__":
    main()
