"""Does a training that is killed reach what it would have reached, and how much is done again?

python -m benchmarks.retried [--data FILE] [--max-epochs N] [--kills N] [--output FILE]

The same deterministic study of one trial twice, by `python -m study.run` with one supervised
worker: once left alone, once with its worker killed (SIGKILL) at random moments while it trains.
`equal` and `equal_peak` say whether it has the same metrics, and the same peak, in both;
`redone_epochs` is how many epochs of a killed try its next one trained again, at most.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from benchmarks._machine import RESULTS, append, machine
from objectives.errors import UserError
from study.ledger import Ledger
from study.records import TrialRecord, find, read
from study.workers import live_workers


def run(arguments: argparse.Namespace, folder: Path, kills: int) -> tuple[Ledger, int]:
    """The study, and how often its worker was killed."""
    place = ["--gpus", "0"] if torch.cuda.is_available() else ["--workers", "1"]
    epochs = str(arguments.max_epochs)
    command = [sys.executable, "-m", "study.run", "--study", "retried", *place]
    command += ["--data", str(arguments.data), "--min-item-users", "1", "--columns.time", "none"]
    command += ["--n-trials", "1", "--output-dir", str(folder)]
    command += ["--sampler", "random", "--pruning", "none", "--max-retries", "100"]
    command += ["--space.max_epochs", epochs, "--space.patience", epochs]
    command += ["--space.arithmetic", "deterministic", *arguments.space]
    draw, done = random.Random(0), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        ledger: Ledger | None = None
        while process.poll() is None:
            time.sleep(0.1)
            try:
                ledger = ledger or find("retried", None, folder)
            except UserError:
                continue
            running = [trial for trial in read(ledger).trials if trial.outcome == "running"]
            if done < kills and running and len(ledger.epochs(running[0].number)) >= 1:
                time.sleep(draw.uniform(0, arguments.within))
                for row in live_workers(ledger):
                    if read(ledger).trials[running[0].number].outcome == "running":
                        with contextlib.suppress(psutil.NoSuchProcess):
                            psutil.Process(int(row.worker.rsplit(":", 2)[1])).kill()
                            done += 1
    if process.returncode:
        sys.exit(process.returncode)
    return find("retried", None, folder), done


def redone(ledger: Ledger) -> int:
    """Epochs of a try that the next one trained again, at most."""
    most = 0
    for trial in read(ledger).trials:
        if trial.retry_of is not None:
            # What comes from a checkpoint took the same time to the last digit.
            took = [
                [epoch.metrics["train/epoch_seconds"] for epoch in ledger.epochs(number)]
                for number in (trial.retry_of, trial.number)
            ]
            kept = sum(a == b for a, b in zip(*took, strict=False))
            most = max(most, len(took[0]) - kept)
    return most


def _trained(ledger: Ledger) -> TrialRecord:
    (trial,) = read(ledger).complete
    return trial


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(".data/ml-1m.parquet"))
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--within", type=float, default=4.0, help="seconds until a kill, at most")
    parser.add_argument("--output", type=Path, default=RESULTS / "retried.csv")
    arguments, space = parser.parse_known_args()
    arguments.space = space
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        alone, _ = run(arguments, Path(one), 0)
        killed, kills = run(arguments, Path(other), arguments.kills)
        row = {
            **machine(),
            "data": arguments.data.stem,
            "max_epochs": arguments.max_epochs,
            "kills": kills,
            "failed": sum(trial.outcome == "failed" for trial in read(killed).trials),
            "redone_epochs": redone(killed),
            "equal": _trained(alone).metrics == _trained(killed).metrics,
            "equal_peak": _trained(alone).peak_memory == _trained(killed).peak_memory,
        }
    append(arguments.output, [row])
    for name, value in row.items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
