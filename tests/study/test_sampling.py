import optuna
import pytest
from optuna.trial import TrialState

from objectives.config import TrialConfig
from objectives.loss_config import CCEMinus
from study.sampling import build_sampler
from study.space import Space, build_space

NUM_ITEMS = 1_000


def peak(config: TrialConfig) -> int:
    return config.loss.negatives if isinstance(config.loss, CCEMinus) else NUM_ITEMS


@pytest.fixture
def grid() -> Space:
    asked = {"loss": ["cce", "cce-"], "negatives": [16, 32, 64], "batch_size": [8, 16, 32]}
    return build_space({**asked, "learning_rate": 1e-3}, NUM_ITEMS, 50_000)


def asked_of(
    study: optuna.Study, space: Space, state: TrialState
) -> tuple[int | float | str, ...]:
    """What is proposed for the next trial, which ends like this."""
    trial = study.ask()
    config = space.suggest(trial)
    study.tell(trial, (0.1, peak(config)) if state == TrialState.COMPLETE else None, state=state)
    return tuple(trial.params.values())


def study_with(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)


def test_a_grid_has_every_combination_once_each_with_the_settings_of_its_loss(grid: Space) -> None:
    study = study_with(build_sampler("grid", 0, 0, grid))
    states = [TrialState.COMPLETE, TrialState.PRUNED] * 6
    tried = [asked_of(study, grid, state) for state in states]
    assert len(set(tried)) == 12
    assert [len(each) for each in tried].count(2) == 3  # full softmax, of each batch size


def test_a_grid_goes_on_with_what_has_failed_or_not_been_tried(grid: Space) -> None:
    study = study_with(build_sampler("grid", 0, 0, grid))
    failed = asked_of(study, grid, TrialState.FAIL)
    study.sampler = build_sampler("grid", 0, 1, grid)
    tried = [asked_of(study, grid, TrialState.COMPLETE) for _ in range(12)]
    assert failed in tried
    assert len(set(tried)) == 12


def test_a_grid_leaves_out_what_is_predicted_to_exceed_the_budget(grid: Space) -> None:
    study = study_with(build_sampler("grid", 0, 0, grid, peak, 32))
    tried = [asked_of(study, grid, TrialState.COMPLETE) for _ in range(6)]
    assert {negatives for _, negatives, _ in tried} == {16, 32}


def test_what_random_draws_follows_from_the_number_of_a_trial(grid: Space) -> None:
    study = study_with(build_sampler("random", 5, 0, grid))
    drawn = [asked_of(study, grid, TrialState.COMPLETE) for _ in range(8)]
    assert len(set(drawn)) > 4
    # A worker that came later, and one that goes on.
    study = study_with(build_sampler("random", 5, 0, grid, num_workers=3))
    first = [asked_of(study, grid, TrialState.FAIL) for _ in range(4)]
    study.sampler = build_sampler("random", 5, 4, grid)
    assert first + [asked_of(study, grid, TrialState.COMPLETE) for _ in range(4)] == drawn


def test_workers_that_come_together_do_not_draw_the_same(grid: Space) -> None:
    samplers = [build_sampler("tpe", 5, 0, grid, num_workers=number) for number in range(8)]
    drawn = {asked_of(study_with(each), grid, TrialState.COMPLETE) for each in samplers}
    assert len(drawn) > 4


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random"])
def test_samplers_of_optuna_go_on_from_trials_that_do_not_fit(name: str) -> None:
    space = build_space({"loss": "cce-", "learning_rate": 1e-3}, NUM_ITEMS, 50_000)
    study = study_with(build_sampler(name, 0, 0, space))
    for number in range(13):
        trial = study.ask()
        config = space.suggest(trial)
        trial.set_constraint("memory", peak(config) / 400 - 1)
        if peak(config) > 400:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, (0.01 * number, peak(config)))
    assert len({tuple(trial.params.values()) for trial in study.trials}) > 6
