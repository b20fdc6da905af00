"""Which configuration next."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import optuna

from objectives.errors import UserError

if TYPE_CHECKING:
    from objectives.config import TrialConfig
    from study.space import Space
    from study.subject import Subject


def build_sampler(
    name: str,
    seed: int,
    num_trials: int,
    space: "Space",
    peak: "Callable[[TrialConfig], int] | None" = None,
    budget: int = 0,
) -> optuna.samplers.BaseSampler:
    """The sampler of a name.

    Args:
        name: "tpe", "front" or "random".
        seed: The study's seed.
        num_trials: Trials the study has already; a resumed study must not draw its first random
            points again.
        space: What a trial may vary.
        peak: Predicted peak of a configuration in bytes, for "front".
        budget: Bytes that a trial may allocate.
    """
    seed = (seed + num_trials * 7919) % 2**32
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "tpe":
        return tpe(seed)
    assert peak is not None
    # It imports scikit-learn, in a second.
    from study.front_sampler import FrontSampler

    return FrontSampler(space, peak, budget, seed)


def tpe(seed: int) -> optuna.samplers.TPESampler:
    """Multivariate TPE; of Optuna's samplers the one that learns from infeasible trials.

    Settings that the same trials have are modelled together, as those of one loss.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
        return optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed)


def check_front(subject: "Subject") -> None:
    """Refuses the sampler "front" where it cannot know what trials take.

    Raises:
        UserError: Peaks are not predicted, or not in milliseconds, or trials spend the budget.
    """
    objective, space = subject.objective, subject.space
    if space.spent:
        reason = f"with --spend-budget {next(iter(space.spent))} all trials take about as much"
    elif not objective.predicts:
        reason = f"peaks are predicted for a GPU with Triton, and this runs on {subject.place}"
    elif slow := [each for each in space.structures() if not objective.predicts_at_once(each)]:
        reason = f"peaks of {slow[0].loss.loss} here are not predicted in milliseconds"
    else:
        return
    raise UserError(f"--sampler front: {reason}; use --sampler tpe")
