import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase
from optuna.trial import FixedTrial, TrialState

from objectives.config import TrialConfig
from objectives.loss_config import CCEMinus
from study.front import hypervolume
from study.front_sampler import FrontSampler, expected_gain
from study.records import RESULT
from study.space import Choices, Range, Space, build_space

NUM_ITEMS = 10_000
BUDGET = 1 << 30
ASKED: dict[str, Any] = {
    "loss": "cce-",
    "negatives": [16, 4096],
    "batch_size": [16, 1024],
    "learning_rate": [1e-4, 1e-2],
}


def negatives_of(config: TrialConfig) -> int:
    return config.loss.negatives if isinstance(config.loss, CCEMinus) else NUM_ITEMS


def peak(config: TrialConfig) -> int:
    return 2**20 + 2**9 * config.training.batch_size * negatives_of(config)


def quality(config: TrialConfig) -> float:
    """Higher with more of both, and best at a rate of 1e-3."""
    size = math.log2(config.training.batch_size) + 0.5 * math.log2(negatives_of(config))
    return 0.01 * size - 0.05 * math.log10(config.training.learning_rate / 1e-3) ** 2


def search(
    space: Space, number: int, seed: int = 0, sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """A study of so many trials, those over the budget included."""
    sampler = sampler or FrontSampler(space, peak, BUDGET, seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(number):
        trial = study.ask()
        config = space.suggest(trial)
        if peak(config) > BUDGET:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, (quality(config), peak(config)))
    return study


def area(study: optuna.Study) -> float:
    points = sorted((t.values[1], t.values[0]) for t in study.trials if t.values)
    total, best = 0.0, 0.0
    for memory, value in points:
        if value > best:
            total += (value - best) * (math.log2(BUDGET) - math.log2(memory))
            best = value
    return total


@pytest.fixture
def space() -> Space:
    return build_space(ASKED, NUM_ITEMS, 50_000)


def test_the_gain_is_the_mean_of_what_drawn_qualities_add() -> None:
    points = [(0.10, 3.0), (0.05, 4.0), (0.20, 6.0), (0.15, 2.0), (0.30, 9.5)]
    top = 9.0
    mean_C = np.array([0.05, 0.2, 0.35, 0.16, 0.4])
    deviation_C = np.array([0.05, 0.1, 0.01, 0.2, 0.05])
    memory_C = np.array([1.0, 4.0, 7.0, 2.5, 9.2])

    def area_of(found: list[tuple[float, float]]) -> float:
        edges = np.linspace(0, top, 9001)
        middles = (edges[1:] + edges[:-1]) / 2
        best = [max([0.0, *(q for q, m in found if m <= place)]) for place in middles[::10]]
        return float(np.mean(best) * top)

    gain_C = expected_gain(mean_C, deviation_C, memory_C, points, top)
    generator, before = np.random.default_rng(0), area_of(points)
    for place in range(len(mean_C)):
        drawn = generator.normal(mean_C[place], deviation_C[place], 300)
        added = [area_of([*points, (max(0.0, q), memory_C[place])]) - before for q in drawn]
        error = 4 * float(np.std(added)) / math.sqrt(len(added)) + 0.003
        assert gain_C[place] == pytest.approx(np.mean(added), abs=error)


def test_nothing_is_gained_above_the_top_or_by_what_is_surely_dominated() -> None:
    gain_C = expected_gain(
        np.array([0.5, 0.1]), np.array([0.1, 1e-9]), np.array([8.0, 5.0]), [(0.2, 4.0)], 8.0
    )
    assert gain_C == pytest.approx([0.0, 0.0])


def test_all_that_is_proposed_fits(space: Space) -> None:
    assert all(trial.values for trial in search(space, 25).trials)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_first_trials_are_the_middle_and_of_the_next_thirds_of_what_fits(
    seed: int, space: Space
) -> None:
    drawn = search(space, 400, sampler=optuna.samplers.RandomSampler(seed=9)).trials
    fitting = [trial.values[1] for trial in drawn if trial.values]
    first, *others = search(space, 3, seed).trials
    middle = {"negatives": 256, "batch_size": 128, "learning_rate": 1e-3}
    assert first.params == pytest.approx(middle)
    for place, trial in enumerate(others):
        share = float(np.mean(np.array(fitting) < trial.values[1]))
        # Thirds of 256 candidates, known by a few hundred others: three standard errors.
        assert place / 3 - 0.1 < share < (place + 1) / 3 + 0.1


def test_where_the_middle_does_not_fit_or_is_no_choice_the_first_is_near() -> None:
    asked = {**ASKED, "negatives": [512, 1024, 4096], "schedule": ["cosine", "constant"]}
    (trial,) = search(build_space(asked, NUM_ITEMS, 50_000), 1).trials
    assert (trial.params["negatives"], trial.params["schedule"]) == (1024, "constant")
    near = FrontSampler(build_space(ASKED, NUM_ITEMS, 50_000), peak, 2**20 + 2**20, 0)
    (trial,) = search(build_space(ASKED, NUM_ITEMS, 50_000), 1, sampler=near).trials
    assert trial.params["negatives"] * trial.params["batch_size"] <= 2**11


def test_it_looks_beside_what_is_on_the_front(space: Space) -> None:
    """No two drawn trials have the same rate; one that differs in another setting alone has."""
    trials = [trial.params for trial in search(space, 20).trials]
    beside = [
        (first, second)
        for first, second in itertools.combinations(trials, 2)
        if sum(first[name] != second[name] for name in first) == 1
    ]
    assert any(first["learning_rate"] == second["learning_rate"] for first, second in beside)
    assert all(peak(space.suggest(FixedTrial(second))) <= BUDGET for _, second in beside)


@pytest.mark.parametrize(
    "part", [Range(16, 4096), Range(1e-4, 1e-2), Range(0.0, 0.5), Choices((8, 64, 16))]
)
def test_a_neighbour_is_near_and_in_the_space(part: Range | Choices) -> None:
    sampler = FrontSampler(Space({}, {}, NUM_ITEMS), peak, BUDGET, 0)
    start = 16 if isinstance(part, Choices) else part.at(0.9)
    moved = [sampler._moved(part, start) for _ in range(50)]
    if isinstance(part, Choices):
        assert set(moved) == {8, 64}
        return
    assert {type(value) for value in moved} == {type(part.low)}
    assert all(part.low <= value <= part.high for value in moved if not isinstance(value, str))
    assert part.high in moved, "what is beyond the end is the end"
    assert len(set(moved)) > 20


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_more_than_random_search_with_three_times_the_trials(
    seed: int, space: Space
) -> None:
    drawn = search(space, 60, sampler=optuna.samplers.RandomSampler(seed=seed))
    assert area(search(space, 20, seed)) > area(drawn)


def test_quality_alone_is_found_where_memory_does_not_count(space: Space) -> None:
    """One that seeks a front goes on with trials of less memory, and of less quality."""
    best = 0.01 * (math.log2(1024) + 0.5 * math.log2(4096))
    alone = optuna.create_study(
        direction="maximize",
        sampler=FrontSampler(space, peak, 4 * BUDGET, 0, ["quality"]),
    )
    for _ in range(14):
        trial = alone.ask()
        alone.tell(trial, quality(space.suggest(trial)))
    assert alone.best_value > 0.95 * best
    both = search(space, 14, sampler=FrontSampler(space, peak, 4 * BUDGET, 0))
    alone_mean, both_mean = (
        np.mean([trial.values[0] for trial in study.trials[3:] if trial.values])
        for study in (alone, both)
    )
    assert alone_mean > both_mean


def test_time_is_learned_where_it_counts_in_place_of_memory(space: Space) -> None:
    """Large batches are fast: the front is one of large batches, whatever memory they take."""

    def seconds(config: TrialConfig) -> float:
        return 1e4 / config.training.batch_size + negatives_of(config) / 100

    def volume(sampler: optuna.samplers.BaseSampler) -> float:
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        for _ in range(16):
            trial = study.ask()
            config = space.suggest(trial)
            study.tell(trial, (quality(config), seconds(config)))
        return hypervolume([tuple(trial.values) for trial in study.trials], 200.0)

    drawn = volume(optuna.samplers.RandomSampler(seed=0))
    assert volume(FrontSampler(space, peak, 2 * BUDGET, 0, ["quality", "time"])) > drawn


def test_the_same_seed_proposes_the_same(space: Space) -> None:
    runs = [[t.params for t in search(space, 8, seed).trials] for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_a_grid_is_tried_without_repetition_and_then_at_random() -> None:
    asked = {"loss": "cce-", "negatives": [16, 32, 64], "batch_size": [8, 16, 32]}
    grid = build_space({**asked, "learning_rate": 1e-3}, NUM_ITEMS, 50_000)
    study = search(grid, 11)
    tried = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(tried[:9])) == 9
    assert len(tried) == 11


def test_a_trial_of_a_loss_has_its_settings_alone() -> None:
    asked = {**ASKED, "loss": ["cce", "cce-"], "batch_size": [16, 64]}
    study = search(build_space(asked, NUM_ITEMS, 50_000), 16)
    losses = {trial.params["loss"] for trial in study.trials}
    assert losses == {"cce", "cce-"}
    for trial in study.trials:
        assert ("negatives" in trial.params) == (trial.params["loss"] == "cce-")


def test_running_trials_are_not_proposed_again(space: Space) -> None:
    study = search(space, 8)
    asked = []
    for _ in range(6):
        trial = study.ask()
        space.suggest(trial)
        asked.append(tuple(trial.params.values()))
    assert len(set(asked)) == 6


def test_what_diverged_is_avoided(space: Space) -> None:
    """Every rate above 2e-3 diverges."""
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=FrontSampler(space, peak, BUDGET, 0)
    )
    diverged = []
    for _ in range(24):
        trial = study.ask()
        config = space.suggest(trial)
        diverged.append(config.training.learning_rate > 2e-3)
        if diverged[-1]:
            trial.set_user_attr(RESULT, {"outcome": "diverged"})
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, (quality(config), peak(config)))
    assert any(diverged)
    assert sum(diverged[12:]) < 4


@pytest.mark.parametrize("tells", [True, False])
def test_what_was_stopped_counts_as_what_it_was_to_reach(space: Space, tells: bool) -> None:
    """Quality rises with the rate up to 1e-3; what is higher is stopped."""
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=FrontSampler(space, peak, BUDGET, 0)
    )
    stopped = []
    for _ in range(24):
        trial = study.ask()
        config = space.suggest(trial)
        rate = config.training.learning_rate
        stopped.append(rate > 1e-3)
        if stopped[-1]:
            shown = {"expected": 0.01, "peak_memory": peak(config)}
            trial.set_user_attr(RESULT, {"outcome": "pruned", **(shown if tells else {})})
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, (0.05 * math.log10(rate / 1e-5), peak(config)))
    assert (sum(stopped[6:]) < 9) is tells


def test_where_nothing_fits_a_trial_is_drawn_at_random(space: Space) -> None:
    sampler = FrontSampler(space, lambda _: 2 * BUDGET, BUDGET, 0)
    assert all(len(trial.params) == 3 for trial in search(space, 2, sampler=sampler).trials)


class TestContract(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    """Optuna's own tests; of spaces that the sampler does not know it draws at random."""

    @pytest.fixture
    def sampler(self) -> Callable[[], optuna.samplers.BaseSampler]:
        def build() -> optuna.samplers.BaseSampler:
            return FrontSampler(build_space(ASKED, NUM_ITEMS, 50_000), peak, BUDGET, 0)

        return build
