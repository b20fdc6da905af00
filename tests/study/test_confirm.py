"""Configurations of the front that are trained again, and what the front is then."""

import statistics
from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState

from objectives.config import TrialConfig
from objectives.trial import (
    QUALITY,
    DivergedTrial,
    InfeasibleTrial,
    MachineFault,
    Objective,
    TrialContext,
    TrialResult,
)
from study.ledger import Ledger
from study.progress import trial_line
from study.records import read
from study.space import build_space
from study.worker import Worker

BUDGET = 1 << 30
BuildWorker = Callable[[Objective], Worker]


def is_repeat(context: TrialContext) -> bool:
    return context.seed >= 1_000_000


def noisy(config: TrialConfig, context: TrialContext) -> TrialResult:
    """More memory, more quality; every third trial was lucky, and its repeats are not."""
    size = config.training.batch_size
    quality = size / 1000 + context.seed % 7 / 10_000
    if context.seed % 1_000_000 % 3 == 0:
        quality = 0 if is_repeat(context) else quality + 0.05
    return TrialResult(
        quality,
        peak_memory=size * 1000 + context.seed // 1_000_000,
        seconds=1.0 + is_repeat(context),
        metrics={"test/ndcg_at_10": 0.5 if is_repeat(context) else 0.2},
    )


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    ledger.study.sampler = optuna.samplers.RandomSampler(seed=0)
    return ledger


def test_every_configuration_of_the_front_is_trained_again(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    worker = build_worker(noisy)
    worker.run(9)
    searched = read(ledger)
    worker.run(9, confirm=3)
    record = read(ledger)
    assert len(record.finished) == 9, "repeats do not count"
    assert record.trials[:9] == searched.trials
    assert len(record.repeats) == len(record.trials) - 9

    front = record.front()
    assert {trial.trainings for trial in front} == {3}
    assert {trial.number for trial in searched.front()} - {trial.number for trial in front}
    assert {trial.number for trial in front} - {trial.number for trial in searched.front()}, (
        "means rank it anew"
    )
    first = front[0]
    trainings = [
        trial
        for trial in record.trials
        if trial.number == first.number or trial.repeat_of == first.number
    ]
    qualities = [trial.quality for trial in trainings if trial.quality is not None]
    assert len(qualities) == 3
    assert first.quality == pytest.approx(statistics.fmean(qualities))
    assert first.spread == pytest.approx(statistics.stdev(qualities))
    assert first.peak_memory == max(trial.peak_memory or 0 for trial in trainings)
    assert first.seconds == pytest.approx(5 / 3)
    assert first.metrics["test/ndcg_at_10"] == pytest.approx(0.4)
    assert first.metrics[QUALITY] == first.quality
    assert {tuple(trial.params.items()) for trial in trainings} == {tuple(first.params.items())}

    seeds = [trial.tags["seed"] for trial in record.trials]
    assert len(set(seeds)) == len(seeds)
    line = trial_line(record.repeats[0], None, None)
    assert f"repeats trial {record.repeats[0].repeat_of}" in line

    worker.run(9, confirm=3)
    assert read(ledger) == record, "nothing is left to do"
    worker.run(9, confirm=4)
    assert {trial.trainings for trial in read(ledger).front()} == {4}


def test_a_search_that_goes_on_after_its_repeats_has_its_total(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    worker = build_worker(noisy)
    worker.run(3, confirm=2)
    worker.run(5, confirm=2)
    record = read(ledger)
    assert len(record.finished) == 5
    assert {trial.trainings for trial in record.front()} == {2}


def test_an_interrupted_repeat_goes_on_with_its_seed(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    def stopped(config: TrialConfig, context: TrialContext) -> TrialResult:
        if is_repeat(context):
            raise KeyboardInterrupt
        return noisy(config, context)

    with pytest.raises(KeyboardInterrupt):
        build_worker(stopped).run(2, confirm=2)
    build_worker(noisy).run(2, confirm=2)
    record = read(ledger)
    failed, again = record.trials[2:4]
    assert (failed.outcome, again.outcome, again.retry_of) == ("failed", "complete", 2)
    assert again.tags["seed"] == failed.tags["seed"]
    assert again.repeat_of == failed.repeat_of
    assert {trial.trainings for trial in record.front()} == {2}
    assert len(record.finished) == 2


@pytest.mark.parametrize(
    ("error", "outcome", "peak"),
    [
        (DivergedTrial(1000, 2), "diverged", None),
        (InfeasibleTrial(2 * BUDGET, "out-of-memory"), "infeasible", 2 * BUDGET),
    ],
)
def test_what_does_not_train_every_time_leaves_the_front(
    ledger: Ledger, build_worker: BuildWorker, error: Exception, outcome: str, peak: int | None
) -> None:
    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        if context.seed == 1_000_000:
            raise error
        # The first is the better one, with the same memory.
        return TrialResult(0.2 if context.seed == 0 else 0.1, 5000, seconds=1.0)

    build_worker(objective).run(2, confirm=3)
    record = read(ledger)
    (front,) = record.front()
    assert (front.number, front.trainings) == (1, 3)
    left = record.configurations[0]
    assert (left.outcome, left.quality, left.peak_memory) == (outcome, None, peak or 5000)
    assert left.reason.startswith("trained again as trial 2: ")
    assert ledger.study.trials[2].state == TrialState.PRUNED


def test_a_repeat_that_the_machine_failed_is_tried_again_and_spends_as_much(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    tried = []

    def flaky(config: TrialConfig, context: TrialContext) -> TrialResult:
        tried.append((config.training.batch_size, context.seed))
        if len(tried) == 2:
            raise MachineFault("something else holds the card's memory")
        return noisy(config, context)

    worker = build_worker(flaky)
    worker.space = build_space({}, 1000, 100, "batch_size")
    worker.gate = lambda config, budget: config.training.batch_size >= 50
    worker.run(1, confirm=2)
    assert tried == [(49, 0), (49, 1_000_000), (49, 1_000_000)]
    (front,) = read(ledger).front()
    assert front.trainings == 2
