"""Which configuration next, where its peak memory is known before it runs.

Only the quality has to be learned: a Gaussian process says what is expected of a configuration and
how surely. The next one is that which is expected to add most to the area under the front of
quality against the logarithm of memory, among many that fit the budget.

Shapes: T trials, C candidates, F features, S sources.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from scipy.special import ndtr, ndtri

from objectives.config import SETTINGS, TrialConfig
from study.features import Features, scaled
from study.front import DEFAULT_OBJECTIVES, pareto_front
from study.quality_model import QualityModel
from study.records import RESULT
from study.space import Choices, Range, Space, Value
from study.warm_start import Source

Array = npt.NDArray[np.float64]

_FIRST = 3
"""Trials before a model proposes: the middle, then spread over the memory that there is."""
_FIRST_CANDIDATES, _NEW_CANDIDATES, _MOST_CANDIDATES = 256, 64, 2048
_DRAWS_PER_CANDIDATE = 4
"""So many configurations are drawn, at most, for one that fits."""
_NEIGHBOURS, _STEP = 96, 0.1
"""Of trials of the front, in one setting each; how far a number moves, of its range."""
_TIMES = 6
"""Quantiles of the time that a candidate may take."""


class _Candidate(NamedTuple):
    params: dict[str, Value]
    features: tuple[float, ...]
    memory: float
    """Logarithm of the predicted peak, to base 2."""


class FrontSampler(optuna.samplers.BaseSampler):
    """Proposes what is expected to add most to the front of a study.

    Settings that it does not know are drawn at random.
    """

    def __init__(
        self,
        space: Space,
        peak: Callable[[TrialConfig], int],
        budget: int,
        seed: int,
        objectives: Sequence[str] = DEFAULT_OBJECTIVES,
        sources: Sequence[Source] = (),
    ) -> None:
        """Prepares.

        Args:
            space: What a trial may vary.
            peak: Predicted peak of a configuration in bytes, in milliseconds.
            budget: Bytes; nothing above is proposed.
            seed: Of all that is drawn.
            objectives: Of the study: quality, and memory or time or neither.
            sources: What finished studies expect, which replaces the first trials.
        """
        self._space = space
        self._peak = peak
        self._top = math.log2(budget)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._generator = np.random.default_rng(seed)
        self._distributions = {name: part.distribution() for name, part in space.open.items()}
        self._features = Features(space.open, space.num_items)
        self._candidates: dict[tuple[tuple[str, Value], ...], _Candidate] = {}
        self._grid = _grid(space)
        self._middle = _middle(space)
        self._sources = tuple(sources)
        self._variation = float(np.mean([each.variation for each in sources] or [0.0]))
        self._expected: dict[tuple[tuple[str, Value], ...], tuple[float, ...]] = {}
        self._model = QualityModel(len(self._sources), self._variation)
        self._objectives = tuple(objectives)
        self._time_model = QualityModel()

    def reseed_rng(self) -> None:
        """Another random state, as Optuna asks of a sampler in a thread."""
        self._random.reseed_rng()
        self._generator = np.random.default_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All settings of the space, whichever of them the trial's loss will have."""
        return self._distributions

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: Mapping[str, BaseDistribution],
    ) -> dict[str, Any]:
        """The settings of the proposed configuration; nothing where none is found that fits."""
        if not search_space:
            return {}
        known = [
            other
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and self._distributions.keys() >= other.params.keys()
        ]
        tried = {_key(t.params) for t in known}
        self._draw_candidates(study, trial)
        candidates = [c for key, c in self._candidates.items() if key not in tried]
        if not candidates:
            return {}
        learned = [t for t in known if _shown(t) is not None]
        diverged = [t for t in known if t.user_attrs.get(RESULT, {}).get("outcome") == "diverged"]
        running = [t for t in known if t.state == TrialState.RUNNING and t.params]
        begun = len(learned) + len(diverged) + len(running)
        if not learned and self._sources:
            return self._before(candidates, running).params
        if not self._sources and (begun < _FIRST or len(learned) < 2):
            return self._first(begun, candidates).params
        near = [c for c in self._neighbours(learned) if _key(c.params) not in tried]
        candidates += near
        best = self._best(candidates, learned, diverged, running)
        self._candidates[_key(best.params)] = best
        return best.params

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A setting that it does not know."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _draw_candidates(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """All that fit, of a small grid; else more and more of them."""
        if not self._candidates:
            self._add(self._middle)
        if self._grid is not None:
            for chosen in self._grid:
                self._add(chosen)
            self._grid = ()
            return
        wanted = min(
            _MOST_CANDIDATES, max(_FIRST_CANDIDATES, len(self._candidates) + _NEW_CANDIDATES)
        )
        for _ in range(_DRAWS_PER_CANDIDATE * (wanted - len(self._candidates))):
            if len(self._candidates) >= wanted:
                return
            drawn = {
                name: self._random.sample_independent(study, trial, name, distribution)
                for name, distribution in self._distributions.items()
            }
            self._add(drawn)

    def _add(self, values: Mapping[str, Value]) -> None:
        """Keeps a candidate, if it fits."""
        candidate = self._candidate(values)
        if candidate is not None:
            self._candidates.setdefault(_key(candidate.params), candidate)

    def _candidate(self, values: Mapping[str, Value]) -> _Candidate | None:
        """One with those of the values that its loss has, if it fits."""
        given = FixedTrial(dict(values))
        memory = math.log2(max(1, self._peak(self._space.suggest(given))))
        if memory > self._top:
            return None
        return _Candidate(given.params, self._features(given.params), memory)

    def _features_of(self, chosen: Sequence[_Candidate | FrozenTrial]) -> Array:
        """Of each, and what the sources expect of it (C, F)."""
        features_CF = np.array([self._features(each.params) for each in chosen])
        if not self._sources:
            return features_CF
        new = [each.params for each in chosen if _key(each.params) not in self._expected]
        if new:
            # A setting that another worker has not suggested yet is in the middle.
            given = [FixedTrial({**self._middle, **params}) for params in new]
            settings = [self._space.suggest(each).flat() for each in given]
            expected = (source.expected(settings) for source in self._sources)
            for params, *values in zip(new, *expected, strict=True):
                self._expected[_key(params)] = tuple(values)
        return np.hstack([features_CF, [self._expected[_key(each.params)] for each in chosen]])

    def _before(self, candidates: list[_Candidate], running: Sequence[FrozenTrial]) -> _Candidate:
        """What adds most if all is as the sources expect, before any trial has ended."""

        def expected(chosen: Sequence[_Candidate | FrozenTrial]) -> Array:
            standard_C = self._features_of(chosen)[:, -len(self._sources) :].mean(axis=1)
            mean_C: Array = 1 + self._variation * standard_C
            return mean_C

        memory_C = np.array([candidate.memory for candidate in candidates])
        front = (
            list(zip(expected(running), self._memory_of(running), strict=True)) if running else []
        )
        mean_C = expected(candidates)
        gain_C = expected_gain(
            mean_C, np.full_like(mean_C, self._variation), memory_C, front, self._top
        )
        return candidates[int(gain_C.argmax())]

    def _memory_of(self, running: Sequence[FrozenTrial]) -> list[float]:
        known = [self._candidates.get(_key(trial.params)) for trial in running]
        return [self._top if each is None else each.memory for each in known]

    def _neighbours(self, learned: Sequence[FrozenTrial]) -> Iterator[_Candidate]:
        """What fits and differs from a trial of the front in one setting."""
        if self._grid is not None:
            return  # Of a grid all are candidates.
        complete = [trial for trial in learned if trial.state == TrialState.COMPLETE]
        front = pareto_front([tuple(trial.values) for trial in complete])
        for place in self._generator.choice(front, _NEIGHBOURS):
            params = complete[place].params
            name = str(self._generator.choice(list(params)))
            value = self._moved(self._space.open[name], params[name])
            # What only another choice of loss has is in the middle.
            found = self._candidate({**self._middle, **params, name: value})
            if found is not None:
                yield found

    def _moved(self, part: Range | Choices, value: Value) -> Value:
        """Another value, if it is a number one that is near."""
        if isinstance(part, Range):
            return part.at(scaled(part, float(value)) + _STEP * self._generator.normal())
        if isinstance(value, str):
            return part.values[int(self._generator.integers(len(part.values)))]
        ordered = sorted(part.values, key=float)
        place = ordered.index(value) + int(self._generator.choice([-1, 1]))
        return ordered[min(max(place, 0), len(ordered) - 1)]

    def _first(self, place: int, candidates: list[_Candidate]) -> _Candidate:
        """The nearest to the middle, then one of the next third of the memory that there is."""
        if place == 0:
            middle_F = np.array(self._features(self._middle))
            return min(candidates, key=lambda each: float(np.sum((each.features - middle_F) ** 2)))
        ordered = sorted(candidates, key=lambda candidate: candidate.memory)
        share = ((place - 1) % 3 + self._generator.random()) / 3
        return ordered[int(share * len(ordered))]

    def _best(
        self,
        candidates: list[_Candidate],
        learned: Sequence[FrozenTrial],
        diverged: Sequence[FrozenTrial],
        running: Sequence[FrozenTrial],
    ) -> _Candidate:
        trials = [*learned, *diverged]
        features_TF = self._features_of(trials)
        quality_T, memory_T = np.array([_shown(trial) for trial in learned]).T
        # What diverged is as bad as the worst, and adds nothing to the front.
        quality_T = np.concatenate([quality_T, np.full(len(diverged), quality_T.min())])
        memory_T = np.concatenate([np.log2(memory_T), np.full(len(diverged), self._top)])
        self._model.fit(features_TF, quality_T)
        if running:
            # As if these had ended as expected, so that their like is not asked for again.
            features_RF = self._features_of(running)
            mean_R, _ = self._model.predict(features_RF)
            quality_T = np.concatenate([quality_T, mean_R])
            memory_T = np.concatenate([memory_T, self._memory_of(running)])
            self._model.fit(np.concatenate([features_TF, features_RF]), quality_T)
        features_CF = self._features_of(candidates)
        mean_C, deviation_C = self._model.predict(features_CF)
        if "time" in self._objectives:
            gain_C = self._gain_over_time(learned, candidates, mean_C, deviation_C)
            return candidates[int(gain_C.argmax())]
        memory_C = np.array([candidate.memory for candidate in candidates])
        if self._objectives == ("quality",):
            # Quality is all that counts: as if all took the same memory.
            memory_T, memory_C = np.zeros_like(memory_T), np.zeros_like(memory_C)
        front = list(zip(quality_T, memory_T, strict=True))
        gain_C = expected_gain(mean_C, deviation_C, memory_C, front, self._top)
        return candidates[int(gain_C.argmax())]

    def _gain_over_time(
        self,
        learned: Sequence[FrozenTrial],
        candidates: Sequence[_Candidate],
        mean_C: Array,
        deviation_C: Array,
    ) -> Array:
        """The same against the logarithm of time, which is learned: a mean over what it may be."""
        complete = [trial for trial in learned if trial.state == TrialState.COMPLETE]
        front = [(trial.values[0], math.log2(trial.values[1])) for trial in complete]
        seconds_T = np.array([seconds for _, seconds in front])
        features_TF = np.array([self._features(trial.params) for trial in complete])
        self._time_model.fit(features_TF, seconds_T)
        features_CF = np.array([candidate.features for candidate in candidates])
        seconds_C, spread_C = self._time_model.predict(features_CF)
        longest = float(seconds_T.max())
        gains = [
            expected_gain(mean_C, deviation_C, seconds_C + z * spread_C, front, longest)
            for z in ndtri((np.arange(_TIMES) + 0.5) / _TIMES)
        ]
        gain_C: Array = np.mean(gains, axis=0)
        return gain_C


def expected_gain(
    mean_C: Array,
    deviation_C: Array,
    memory_C: Array,
    points: Sequence[tuple[float, float]],
    top: float,
) -> Array:
    """What normal qualities are expected to add to the area under a front, exactly.

    A candidate adds where the front, at its memory and above, is below its quality: over each step
    of the front the expected improvement on the step, times the part of its width that is left.

    Args:
        mean_C: Expected qualities.
        deviation_C: Their standard deviations.
        memory_C: Known memory.
        points: Quality and memory of what has run.
        top: Memory at which the area ends.
    """
    starts, heights, best = [-math.inf], [0.0], 0.0
    for quality, memory in sorted(points, key=lambda point: (point[1], -point[0])):
        if quality > best and memory < top:
            starts.append(memory)
            heights.append(quality)
            best = quality
    gain_C = np.zeros_like(mean_C)
    for start, end, height in zip(starts, [*starts[1:], top], heights, strict=True):
        width_C = np.maximum(end - np.maximum(start, memory_C), 0.0)
        z_C = (mean_C - height) / deviation_C
        density_C = np.exp(-0.5 * np.square(z_C)) / math.sqrt(2 * math.pi)
        gain_C += width_C * deviation_C * (density_C + z_C * ndtr(z_C))
    return gain_C


def _grid(space: Space) -> Sequence[Mapping[str, Value]] | None:
    """All combinations of a space of few choices."""
    parts = [part for part in space.open.values() if isinstance(part, Choices)]
    sizes = (len(part.values) for part in parts)
    if len(parts) < len(space.open) or math.prod(sizes) > _MOST_CANDIDATES:
        return None
    combinations = itertools.product(*(part.values for part in parts))
    return [dict(zip(space.open, values, strict=True)) for values in combinations]


def _middle(space: Space) -> dict[str, Value]:
    """The middle of everything that is a number, and the default of every word."""
    found: dict[str, Value] = {}
    for name, part in space.open.items():
        if isinstance(part, Range):
            found[name] = part.at(0.5)
        elif isinstance(part.values[0], str):
            default = SETTINGS[name].default
            found[name] = default if default in part.values else part.values[0]
        else:
            found[name] = min(part.values, key=lambda v: abs(scaled(part, float(v)) - 0.5))
    return found


def _shown(trial: FrozenTrial) -> tuple[float, float] | None:
    """Quality of a trial, or what it was to reach when it was stopped, and bytes if they count."""
    result = trial.user_attrs.get(RESULT, {})
    if trial.state == TrialState.COMPLETE:
        return trial.values[0], max([1.0, *trial.values[1:]])
    if "expected" in result:
        return result["expected"], max(1.0, result["peak_memory"])
    return None


def _key(params: Mapping[str, Value]) -> tuple[tuple[str, Value], ...]:
    return tuple(sorted(params.items()))
