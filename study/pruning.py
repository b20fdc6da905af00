"""Which trial to stop on its way: one that others with no more memory will stay ahead of.

A trial's peak memory is known after its first epoch, so only its quality is open. That of others
is known epoch by epoch, too, and two rules compare it. Both were chosen by the 288 curves of
`objectives/grids` (docs/search.md).

*Dominance.* Curves cross early and seldom late: a trial is stopped where the best that it has
shown is below that of another, at the same epoch, by more than (1 - e / 0.75)^2.5 of it, for e the
share of the longest training so far; from three quarters on by anything.

*Successive halving* (asynchronous, as in ASHA, Li et al. 2020): at a quarter and at half of the
longest training a trial goes on only if it is in the best third of those that came as far.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

from objectives.trial import QUALITY
from study.front import DEFAULT_OBJECTIVES
from study.ledger import Epoch, Ledger

_SETTLED = 0.75
"""Share of a training after which curves hardly cross."""
_STEEPNESS = 2.5
_RUNGS = (0.25, 0.5)
_REDUCTION = 3


class Curve(NamedTuple):
    """What a trial has shown.

    Attributes:
        number: Its number.
        best: The best quality up to each epoch.
        seconds: Seconds of training up to each epoch.
        peak: Bytes.
        complete: Whether it trained to its end.
    """

    number: int
    best: tuple[float, ...]
    seconds: tuple[float, ...]
    peak: float
    complete: bool


class Dominated(optuna.TrialPruned):
    """A trial that will not reach the front.

    Attributes:
        expected: The quality that it would have reached, staying as far behind as it is.
    """

    def __init__(self, reason: str, expected: float) -> None:
        super().__init__(reason)
        self.expected = expected


class Pruner:
    """Knows the curves of a study's trials, those that are running included."""

    def __init__(self, ledger: Ledger, objectives: Sequence[str] = DEFAULT_OBJECTIVES) -> None:
        """Prepares; objectives: of the study."""
        self._ledger = ledger
        self._objectives = objectives
        self._ended: dict[int, Curve | None] = {}

    def check(self, number: int) -> None:
        """Ends a trial that has just reported an epoch, if it will not reach the front.

        Raises:
            Dominated: It will not.
        """
        mine = curve_of(number, self._ledger.epochs(number), complete=False)
        if mine is not None:
            check(mine, self._others(number), self._objectives)

    def _others(self, number: int) -> list[Curve]:
        curves = []
        for trial in self._ledger.study.get_trials(deepcopy=False):
            if trial.number == number or trial.state in (TrialState.WAITING, TrialState.FAIL):
                continue
            curve = self._ended.get(trial.number)
            if trial.number not in self._ended:
                complete = trial.state == TrialState.COMPLETE
                curve = curve_of(trial.number, self._ledger.epochs(trial.number), complete)
                if trial.state.is_finished():
                    self._ended[trial.number] = curve
            if curve is not None:
                curves.append(curve)
        return curves


def curve_of(number: int, epochs: Sequence[Epoch], complete: bool) -> Curve | None:
    """The curve of a trial's epochs, if it has any."""
    if not epochs:
        return None
    best, seconds = [], []
    highest, elapsed = -math.inf, 0.0
    for epoch in epochs:
        highest = max(highest, epoch.metrics[QUALITY])
        elapsed += epoch.metrics.get("train/epoch_seconds", 0.0)
        best.append(highest)
        seconds.append(elapsed)
    peak = epochs[-1].metrics["memory/peak_bytes"]
    return Curve(number, tuple(best), tuple(seconds), peak, complete)


def check(
    mine: Curve, others: Sequence[Curve], objectives: Sequence[str] = DEFAULT_OBJECTIVES
) -> None:
    """Ends a trial that will not reach the front.

    Args:
        mine: What it has shown.
        others: What others have.
        objectives: With memory among them it is not stopped for one that needs more; with time
            not for one that has trained for longer at the same epoch.

    Raises:
        Dominated: It should end after its last epoch.
    """
    epoch = len(mine.best)
    longest = max((len(other.best) for other in others if other.complete), default=0)
    if not longest:
        return
    rivals = [other for other in others if other.complete or len(other.best) >= epoch]
    if "memory" in objectives:
        rivals = [other for other in rivals if other.peak <= mine.peak]
    if "time" in objectives:
        rivals = [other for other in rivals if _at(other.seconds, epoch) <= mine.seconds[-1]]
    if not rivals:
        return
    quality = mine.best[-1]
    ahead = max(rivals, key=lambda other: _at(other.best, epoch))
    best = _at(ahead.best, epoch)
    margin = max(0.0, 1 - epoch / longest / _SETTLED) ** _STEEPNESS
    better = sum(_at(other.best, epoch) > quality for other in rivals)
    if quality < (1 - margin) * best:
        who = f"trial {ahead.number} had {best:.4f}"
    elif (
        epoch in {max(1, round(share * longest)) for share in _RUNGS}
        and len(rivals) >= _REDUCTION
        and better > len(rivals) // _REDUCTION
    ):
        who = f"{better} of {len(rivals)} trials had more"
    else:
        return
    costs = " and ".join(name for name in objectives if name != "quality")
    raise Dominated(
        f"{quality:.4f} after {epoch} epochs, where {who}"
        + (f" with no more {costs}" if costs else ""),
        expected=ahead.best[-1] * quality / best if best else quality,
    )


def _at(values: Sequence[float], epoch: int) -> float:
    """The value after an epoch, or the last."""
    return values[min(epoch, len(values)) - 1]
