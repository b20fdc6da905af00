"""How far are predicted peaks from measured ones?

python -m benchmarks.memory [--configurations 90] [--seed 0]
    [--time-limit SECONDS] [--output FILE] [--plot FILE]

Random configurations over losses, models, optimizers and types, on three made-up data sets, whose
predicted peak is between 0.5 and 60 GiB. Each is predicted as a study does it, without what trials
have taught (`closed_ms`: by the trace of its structure, which is there; `trace_seconds`: by a
trace of its own), then measured by a probe: two training steps on the largest batch, and a batch
of an evaluation. Two processes for each data set share the card and take turns where their peaks,
which are their own, would not fit together.

`--plot` draws all rows of the output; with `--configurations 0` it needs no GPU.
"""

import argparse
import csv
import functools
import gc
import itertools
import math
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks._machine import RESULTS, append, machine
from kernels.gpu import Gpu, gpu_of
from objectives.config import TrialConfig
from objectives.data import PreparedData, Sequences, Targets
from objectives.memory_model import DataShape, MemoryModel
from objectives.sequential import SequentialObjective
from objectives.trial import InfeasibleTrial

_GIB = 1 << 30
_LEAST, _MOST = _GIB // 2, 60 * _GIB
_PROCESSES = 2
"""Of each catalogue."""
_SPARE = _GIB
"""A measurement may take this and an eighth more than predicted."""
_CONTEXT = _GIB
"""What a process holds of the card beside its tensors, generously."""
_CATALOGUES = {
    "20 k": (20_000, 60_000, 60),
    "500 k": (500_000, 100_000, 20),
    "5 M": (5_000_000, 200_000, 40),
}
"""Name -> items, users, and the mean of their lengths."""
_SPACE: dict[str, list[Any]] = {
    "loss": ["cce-", "cce-", "cce-", "cce", "gbce", "sce", "rece"],
    "architecture": ["sasrec", "sasrec", "bert4rec"],
    "width": [64, 128, 256],
    "num_blocks": [1, 2, 3],
    "num_heads": [1, 2, 4],
    "max_length": [50, 200, 512],
    "batch_size": [64, 128, 256, 512, 1024, 2048, 4096],
    "negatives": [64, 255, 1023, 4095],
    "group_size": [32, 128, 256],
    "norm": ["pre", "post"],
    "positions": ["learned", "rotary"],
    "feed_forward": ["gelu", "swiglu"],
    "table_updates": ["dense", "adam", "adagrad"],
    "table_dtype": ["float32", "bfloat16"],
    "output_table": ["tied", "tied", "separate"],
    "activations": ["kept", "kept", "recomputed"],
    "accumulation": [1, 1, 2],
    "clip_norm": [0.0, 1.0],
}


def made_up(num_items: int, num_users: int, mean_length: int) -> PreparedData:
    """Sequences of uniform items whose lengths are log-normal."""
    generator = np.random.default_rng(0)
    spread = generator.lognormal(math.log(mean_length) - 0.5, 1.0, num_users)
    lengths = spread.astype(np.int64).clip(2, 2000)
    items = generator.integers(num_items, size=lengths.sum(), dtype=np.int32)
    sequences = Sequences(items, np.concatenate([[0], lengths.cumsum()]))
    few = Sequences(items[: lengths[:20_000].sum()], sequences.offsets[:20_001])
    targets = Targets(few, generator.integers(num_items, size=20_000, dtype=np.int32))
    return PreparedData(
        f"{num_items} items", "made up", num_items, pa.array([]), sequences, targets, targets, ()
    )


def draw(generator: random.Random) -> tuple[str, dict[str, Any]]:
    """A catalogue and a configuration that is allowed."""
    while True:
        chosen = {name: generator.choice(values) for name, values in _SPACE.items()}
        try:
            TrialConfig.from_flat(chosen)
        except ValueError:
            continue
        return generator.choice(list(_CATALOGUES)), chosen


@cache
def _model(catalogue: str, gpu: Gpu) -> MemoryModel:
    return MemoryModel(DataShape.of(made_up(*_CATALOGUES[catalogue])), gpu)


def _predict(gpu: Gpu, drawn: tuple[str, dict[str, Any]]) -> tuple[int, float]:
    """Peak, and milliseconds of a prediction whose structure is known."""
    catalogue, chosen = drawn
    model, config = _model(catalogue, gpu), TrialConfig.from_flat(chosen)
    model.predict(config, _MOST)
    begin = time.perf_counter()
    peak = model.predict(config, _MOST).peak
    return peak, (time.perf_counter() - begin) * 1e3


def jobs(number: int, seed: int, gpu: Gpu) -> list[tuple[str, dict[str, Any], int, float]]:
    """Catalogue, configuration, predicted peak and milliseconds of the prediction."""
    generator = random.Random(seed)
    found: list[tuple[str, dict[str, Any], int, float]] = []
    predict = functools.partial(_predict, gpu)
    with multiprocessing.get_context("spawn").Pool(min(16, os.cpu_count() or 1)) as pool:
        while len(found) < number:
            drawn = [draw(generator) for _ in range(number)]
            for (catalogue, chosen), (peak, took) in zip(
                drawn, pool.map(predict, drawn, chunksize=1), strict=True
            ):
                if _LEAST <= peak <= _MOST:
                    found.append((catalogue, chosen, peak, took))
    return found[:number]


class _Card:
    """The memory of a card, which processes take parts of."""

    def __init__(self, size: int) -> None:
        """Begins with so many bytes."""
        spawn = multiprocessing.get_context("spawn")
        self._changed = spawn.Condition()
        self._free = spawn.Value("q", size, lock=False)

    @contextmanager
    def lends(self, size: int) -> Iterator[None]:
        """Waits until so many bytes are free; they are this process's within the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._free.value >= size)
            self._free.value -= size
        try:
            yield
        finally:
            gc.collect()
            torch.cuda.empty_cache()
            with self._changed:
                self._free.value += size
                self._changed.notify_all()


def _measure(catalogue: str, card: _Card, asked: Connection, results: Connection) -> None:
    """A process that measures configurations of one catalogue."""
    device = torch.device("cuda", 0)
    objective = SequentialObjective(made_up(*_CATALOGUES[catalogue]), device)
    gpu = gpu_of(device)
    assert gpu is not None
    model = _model(catalogue, gpu)
    while (job := asked.recv()) is not None:
        chosen, predicted = job
        config = TrialConfig.from_flat(chosen)
        begin = time.perf_counter()
        model.traced(config, _MOST)
        traced = time.perf_counter() - begin
        outcome, measured = "ok", math.nan
        room = predicted + predicted // 8 + _SPARE
        with card.lends(room):
            begin = time.perf_counter()
            try:
                measured = objective.probe(config, _MOST, room=room)
            except InfeasibleTrial as error:
                outcome, measured = error.source, error.peak_bytes
            except Exception as error:
                outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            seconds = time.perf_counter() - begin
        results.send((outcome, measured, traced, seconds))


def _run(
    found: list[tuple[str, dict[str, Any], int, float]], time_limit: float
) -> list[tuple[int, tuple[str, float, float, float]]]:
    """What was measured of each job; some processes for each catalogue."""
    deadline = time.monotonic() + time_limit
    spawn = multiprocessing.get_context("spawn")
    card = _Card(torch.cuda.mem_get_info()[0] - _PROCESSES * len(_CATALOGUES) * _CONTEXT)
    waiting = {
        catalogue: [place for place, job in enumerate(found) if job[0] == catalogue]
        for catalogue in _CATALOGUES
    }
    running: dict[Connection, tuple[str, Connection, int]] = {}
    measured = []

    def ask(receiver: Connection, catalogue: str, asked: Connection) -> None:
        if waiting[catalogue] and time.monotonic() < deadline:
            place = waiting[catalogue].pop(0)
            _, chosen, predicted, _ = found[place]
            asked.send((chosen, predicted))
            running[receiver] = catalogue, asked, place
        else:
            asked.send(None)

    for catalogue in _PROCESSES * list(_CATALOGUES):
        questions, asked = spawn.Pipe(duplex=False)
        receiver, answers = spawn.Pipe(duplex=False)
        spawn.Process(
            target=_measure, args=(catalogue, card, questions, answers), daemon=True
        ).start()
        answers.close()
        ask(receiver, catalogue, asked)
    while running:
        wait(list(running))
        for receiver in [receiver for receiver in running if receiver.poll()]:
            catalogue, asked, place = running.pop(receiver)
            try:
                measured.append((place, receiver.recv()))
            except EOFError:  # What went wrong has been printed by the process.
                continue
            ask(receiver, catalogue, asked)
    return measured


def summary(rows: list[dict[str, Any]]) -> str:
    """The bars of the comparison."""
    errors = [row["error"] for row in rows if row["outcome"] == "ok"]
    if not errors:
        return "nothing was measured"
    off = [abs(error) for error in errors]
    return (
        f"{len(errors)} configurations: mean error {np.mean(off):.2%} (standard deviation "
        f"{np.std(off):.2%}), worst {max(off):.2%}, most under {min(errors):.2%}, most over "
        f"{max(errors):.2%}; prediction {np.median([row['closed_ms'] for row in rows]):.2f} ms, "
        f"trace {np.median([row['trace_seconds'] for row in rows]):.2f} s (medians)"
    )


def plot(results: Path, path: Path) -> None:
    """Measured against predicted, and how far these are off; a colour for each catalogue."""
    from plotly.subplots import make_subplots

    with results.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["outcome"] == "ok"]
    drawing = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    ends = [_LEAST / _GIB, _MOST / _GIB]
    for column, heights in ((1, ends), (2, [0, 0])):
        line = {"color": "#999999", "width": 1}
        drawing.add_scatter(
            x=ends, y=heights, mode="lines", line=line, showlegend=False, row=1, col=column
        )
    for catalogue, colour in zip(_CATALOGUES, _COLOURS, strict=True):
        points = [row for row in rows if row["catalogue"] == catalogue]
        measured = [int(row["peak_bytes"]) / _GIB for row in points]
        predicted = [int(row["predicted_bytes"]) / _GIB for row in points]
        errors = [100 * float(row["error"]) for row in points]
        for column, x, y in ((1, predicted, measured), (2, measured, errors)):
            drawing.add_scatter(
                x=x,
                y=y,
                mode="markers",
                marker={"color": colour},
                name=f"{catalogue} items",
                showlegend=column == 1,
                row=1,
                col=column,
            )
    sizes = {"type": "log", "tickvals": [0.5, 1, 2, 5, 10, 20, 50]}
    drawing.update_xaxes(**sizes)
    drawing.update_xaxes(title="predicted peak, GiB", col=1)
    drawing.update_xaxes(title="measured peak, GiB", col=2)
    drawing.update_yaxes(**sizes, title="measured peak, GiB", col=1)
    drawing.update_yaxes(title="predicted too high by, %", col=2)
    drawing.update_layout(
        template="plotly_white",
        width=960,
        height=400,
        margin={"t": 20, "l": 60, "r": 20, "b": 60},
        legend={"orientation": "h", "y": -0.2},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        drawing.write_html(path, include_plotlyjs="cdn")
    else:
        drawing.write_image(path)  # by kaleido


_COLOURS = ("#0072b2", "#d55e00", "#009e73")
"""Of Okabe and Ito, for eyes that see colours in other ways too."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configurations", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--time-limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--output", type=Path, default=RESULTS / "memory.csv")
    parser.add_argument("--plot", type=Path, help="an .html, or by kaleido an .svg or .png")
    arguments = parser.parse_args()
    if arguments.configurations:
        measure(arguments)
    if arguments.plot:
        plot(arguments.output, arguments.plot)


def measure(arguments: argparse.Namespace) -> None:
    """Writes a row for every configuration, and says how far predictions are off."""
    if not torch.cuda.is_available():
        sys.exit("python -m benchmarks.memory: peaks are measured on a GPU, and there is none")
    about = machine()
    gpu = gpu_of(torch.device("cuda", 0))
    assert gpu is not None
    found = jobs(arguments.configurations, arguments.seed, gpu)
    rows = []
    for place, (outcome, measured, traced, seconds) in _run(found, arguments.time_limit):
        catalogue, chosen, predicted, milliseconds = found[place]
        known = TrialConfig.from_flat(chosen).flat()
        row = {
            "number": place,
            "catalogue": catalogue,
            **{name: value if name in known else "" for name, value in chosen.items()},
            "seed": arguments.seed,
            "predicted_bytes": predicted,
            "peak_bytes": measured,
            "error": round(predicted / measured - 1, 5),
            "closed_ms": round(milliseconds, 3),
            "trace_seconds": round(traced, 3),
            "seconds": round(seconds, 2),
            "outcome": outcome,
        }
        rows.append(row)
        append(arguments.output, [{**about, **row}])
        print(
            f"{place:3} {catalogue:6} predicted {predicted / _GIB:7.3f} measured "
            f"{measured / _GIB:7.3f} GiB {row['error']:+.2%} {outcome}",
            flush=True,
        )
    print(summary(rows))
    for row in itertools.islice(sorted(rows, key=lambda row: -abs(row["error"])), 5):
        print({key: value for key, value in row.items() if key != "seed"})


if __name__ == "__main__":
    main()
