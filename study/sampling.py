"""Which configuration next."""

import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from objectives.errors import UserError
from study.front import DEFAULT_OBJECTIVES

if TYPE_CHECKING:
    from objectives.config import TrialConfig
    from study.space import Space, Value
    from study.subject import Subject
    from study.warm_start import Source


def build_sampler(
    name: str,
    seed: int,
    num_trials: int,
    space: "Space",
    peak: "Callable[[TrialConfig], int] | None" = None,
    budget: int = 0,
    objectives: Sequence[str] = DEFAULT_OBJECTIVES,
    sources: "Sequence[Source]" = (),
    num_workers: int = 0,
) -> optuna.samplers.BaseSampler:
    """The sampler of a name.

    Args:
        name: "tpe", "front", "gp", "nsga2", "grid" or "random".
        seed: The study's seed.
        num_trials: Trials the study has already; a resumed study must not draw its first random
            points again.
        space: What a trial may vary.
        peak: Predicted peak of a configuration in bytes, for "front".
        budget: Bytes that a trial may allocate.
        objectives: Of the study.
        sources: Finished studies that "front" starts from.
        num_workers: Workers the study had before; those that come together must not draw the same.
    """
    if name == "random":
        return RandomSampler(seed)
    seed = (seed + num_trials * 7919 + num_workers * 104_729) % 2**32
    match name:
        case "tpe":
            return tpe(seed)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "grid":
            return GridSampler(space, seed, peak, budget)
    assert peak is not None
    # It imports scikit-learn, in a second.
    from study.front_sampler import FrontSampler

    return FrontSampler(space, peak, budget, seed, objectives, sources)


def tpe(seed: int) -> optuna.samplers.TPESampler:
    """Multivariate TPE; of Optuna's samplers the one that learns from infeasible trials.

    Settings that the same trials have are modelled together, as those of one loss.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
        return optuna.samplers.TPESampler(multivariate=True, group=True, seed=seed)


class RandomSampler(optuna.samplers.RandomSampler):
    """Independent draws that follow from the seed and the number of the trial alone.

    However many workers a study has, and however often it was stopped, they are the same.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._seed = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begins the draws of a trial."""
        self._rng.rng.seed((self._seed, trial.number))


class GridSampler(optuna.samplers.RandomSampler):
    """Every combination of a space of choices once, in random order.

    Optuna's own know no conditions, or end a study by what only `optimize` has.

    Attributes:
        cells: The combinations, each with the settings that its loss has, without those that are
            predicted to exceed the budget.
    """

    def __init__(
        self,
        space: "Space",
        seed: int,
        peak: "Callable[[TrialConfig], int] | None",
        budget: int,
    ) -> None:
        super().__init__(seed)
        self._distributions = {name: part.distribution() for name, part in space.open.items()}
        self.cells = _cells(space, peak, budget)
        random.Random(seed).shuffle(self.cells)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All settings of the space, whichever of them the trial's loss will have."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next combination that has not been tried; nothing where all have."""
        states = [state for state in TrialState if state != TrialState.FAIL]
        tried = [other.params for other in study.get_trials(deepcopy=False, states=states)]
        return next((cell for cell in self.cells if cell not in tried), {})


def _cells(
    space: "Space", peak: "Callable[[TrialConfig], int] | None", budget: int
) -> "list[dict[str, Value]]":
    from study.space import Choices

    parts = {name: part.values for name, part in space.open.items() if isinstance(part, Choices)}
    cells: dict[TrialConfig, dict[str, Value]] = {}
    for values in itertools.product(*parts.values()):
        trial = FixedTrial(dict(zip(parts, values, strict=True)))
        config = space.suggest(trial)
        if config not in cells and (peak is None or peak(config) <= budget):
            cells[config] = trial.params
    return list(cells.values())


def choose_sampler(
    name: str, subject: "Subject", objectives: Sequence[str], warm_start: Sequence[str] = ()
) -> str:
    """The sampler that a name stands for here: "auto" is "front" where it knows what trials take.

    Raises:
        UserError: The sampler is not for this space or this machine, or for a warm start.
    """
    if warm_start and name not in ("auto", "front"):
        raise UserError(
            f"--warm-start {warm_start[0]}: --sampler {name} learns from its own trials alone; "
            "use front, or leave one of them out"
        )
    if name == "grid" and (ranges := _ranges(subject.space)):
        raise UserError(
            f"--sampler grid: {ranges[0]} has a range; give three numbers or more, or one, to "
            f"--space.{ranges[0]}"
        )
    if name not in ("auto", "front"):
        return name
    reason = _why_not_front(subject, objectives)
    if name == "front" and reason:
        raise UserError(f"--sampler front: {reason}; use --sampler tpe")
    if warm_start and reason:
        raise UserError(
            f"--warm-start {warm_start[0]}: only the sampler front can, and {reason}; leave it out"
        )
    return "tpe" if reason else "front"


def _ranges(space: "Space") -> list[str]:
    from study.space import Range

    parts = {**space.open, **space.spent}
    return [name for name, part in parts.items() if isinstance(part, Range)]


def _why_not_front(subject: "Subject", objectives: Sequence[str]) -> str:
    objective, space = subject.objective, subject.space
    if {"memory", "time"} <= set(objectives):
        return "it weighs quality against one of memory and time, and --objectives names both"
    if space.spent:
        return f"with --spend-budget {next(iter(space.spent))} all trials take about as much"
    if not objective.predicts:
        return f"peaks are predicted for a GPU with Triton, and this runs on {subject.place}"
    if slow := [each for each in space.structures() if not objective.predicts_at_once(each)]:
        return f"peaks of {slow[0].loss.loss} here are not predicted in milliseconds"
    return ""
