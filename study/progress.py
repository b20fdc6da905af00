"""What a person sees while trials run: a live line on a terminal, plain lines elsewhere."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from objectives.trial import QUALITY
from study.budget import format_bytes
from study.records import StudyRecord, TrialRecord
from study.stopping import expected_gain

_WORDS = {"complete": "ok", "infeasible": "over budget"}


class StudyProgress:
    """Use as a context manager around the trials; writes to standard error only."""

    def __init__(self, n_trials: int, console: Console, *, live: bool, speaker: str = "") -> None:
        """Prepares; speaker: who of several writes there."""
        self._speaker = f"{speaker}  " if speaker else ""
        self._console = console
        self._live = live
        self._bar = Progress(
            TextColumn("trials"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[tally]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[running]}"),
            console=console,
            disable=not live,
        )
        self._gain: float | None = None
        self._task = self._bar.add_task("trials", total=n_trials, tally="", running="")

    def __enter__(self) -> "StudyProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """A line of its own, above the live one."""
        self._console.print(
            f"{self._speaker}{message}", markup=False, highlight=False, soft_wrap=True
        )

    def started(self, record: StudyRecord, number: int) -> None:
        """A trial begins."""
        self._count(record, f"trial {number}")

    def epoch(self, number: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial has finished an epoch."""
        shown = f"trial {number}: epoch {epoch}, NDCG@10 {metrics.get(QUALITY, 0):.4f}"
        if "memory/peak_bytes" in metrics:
            shown += f", {format_bytes(metrics['memory/peak_bytes'])}"
        self._bar.update(self._task, running=shown)

    def ended(self, record: StudyRecord, trial: TrialRecord) -> None:
        """A trial has ended; one that was refused is only counted."""
        if not trial.was_refused:
            self._gain = expected_gain(record)
            self.say(trial_line(trial, record.best(), self._gain))
        self._count(record, "")

    def _count(self, record: StudyRecord, running: str) -> None:
        best = record.best()
        tally = f"{len(record.complete)} within budget"
        if record.refused:
            tally += f", {len(record.refused)} refused"
        if best is not None:
            tally += f", best {best.quality:.4f}"
        if self._gain is not None:
            tally += f", as many again may add {self._gain:.1%}"
        self._bar.update(self._task, completed=len(record.finished), tally=tally, running=running)


def trial_line(trial: TrialRecord, best: TrialRecord | None, gain: float | None) -> str:
    """One line for one trial: number, outcome, quality, memory, parameters, time, then the study.

    Args:
        trial: The trial.
        best: The best one so far.
        gain: What as many trials again may add to the hypervolume, as a share.
    """
    parts = [f"trial {trial.number:>3} {_WORDS.get(trial.outcome, trial.outcome):<11}"]
    if trial.repeat_of is not None:
        parts.append(f"repeats trial {trial.repeat_of}")
    if trial.quality is not None:
        parts.append(f"NDCG@10 {trial.quality:.4f}")
    if trial.peak_memory is not None:
        parts.append(("at least " if trial.at_least else "") + format_bytes(trial.peak_memory))
    parts += [f"{name} {short(value)}" for name, value in trial.params.items()]
    if trial.seconds is not None:
        parts.append(f"{trial.seconds:.1f} s")
    if trial.reason:
        parts.append(trial.reason)
    if best is not None:
        parts.append(f"best {best.quality:.4f} (trial {best.number})")
    if gain is not None:
        parts.append(f"as many trials again may add {gain:.1%}")
    return "  ".join(parts)


def short(value: Any) -> str:
    """A setting's value for people."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
