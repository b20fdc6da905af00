"""When a search is over, and what more of it may add."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
import pytest

from objectives.config import TrialConfig
from objectives.trial import InfeasibleTrial, Objective, TrialContext, TrialResult
from study.front import Point, hypervolume
from study.ledger import Ledger
from study.records import StudyRecord, read
from study.stopping import expected_gain, hypervolumes, is_exhausted
from study.worker import Worker

BUDGET = 1 << 30
BuildWorker = Callable[[Objective], Worker]
Search = Callable[[Sequence[Point | None]], StudyRecord]


def scripted(outcomes: Sequence[Point | None]) -> Objective:
    """Trials of these qualities and peaks, as shares of the budget; None runs out of memory."""
    rest = iter(outcomes)

    def objective(config: TrialConfig, context: TrialContext) -> TrialResult:
        outcome = next(rest)
        if outcome is None:
            raise InfeasibleTrial(2 * BUDGET, "out-of-memory")
        return TrialResult(outcome[0], int(outcome[1] * BUDGET), seconds=1.0)

    return objective


@pytest.fixture
def search(ledger: Ledger, build_worker: BuildWorker) -> Search:
    ledger.study.sampler = optuna.samplers.RandomSampler(seed=0)

    def run(outcomes: Sequence[Point | None]) -> StudyRecord:
        build_worker(scripted(outcomes)).run(len(outcomes))
        return read(ledger)

    return run


FOUND = [(0.1, 0.5), None, (0.2, 0.5), (0.15, 0.25), (0.2, 0.75), None]


def test_hypervolume_after_each_finished_trial(search: Search) -> None:
    record = search(FOUND)
    expected = [
        hypervolume([(quality, share * BUDGET) for quality, share in filter(None, part)], BUDGET)
        for part in (FOUND[: number + 1] for number in range(len(FOUND)))
    ]
    assert hypervolumes(record) == pytest.approx(expected)
    assert expected[0] == expected[1] < expected[2] < expected[3] == expected[4] == expected[5]


def test_a_search_is_over_when_its_last_trials_brought_nothing(search: Search) -> None:
    record = search(FOUND)
    assert is_exhausted(record, 2)
    assert not is_exhausted(record, 3), "the fourth trial is the last that brought something"
    assert not is_exhausted(record, 100)
    assert not is_exhausted(record, None)


def test_rounding_is_no_gain_and_refused_trials_do_not_count(search: Search) -> None:
    record = search([(0.1, 0.5), (0.1 * (1 + 1e-15), 0.5), (0.1, 0.5)])
    assert is_exhausted(record, 2)
    *first, last = record.trials
    refused = replace(last, outcome="infeasible", reason="predicted", quality=None)
    assert not is_exhausted(replace(record, trials=(*first, refused)), 2)
    assert not is_exhausted(replace(record, trials=(*first, replace(last, outcome="failed"))), 2)


def test_without_any_front_patience_ends_too(search: Search) -> None:
    assert is_exhausted(search([None, None]), 2)


def test_patience_ends_a_run_and_a_larger_one_goes_on(
    ledger: Ledger, build_worker: BuildWorker
) -> None:
    outcomes: list[Point | None] = [(0.1, 0.5), None, None, None, (0.2, 0.5), None, None]
    worker = build_worker(scripted(outcomes))
    for patience, trials in ((2, 3), (2, 3), (3, 4), (1, 4)):
        worker.run(7, patience=patience)
        assert len(read(ledger).finished) == trials
    worker.run(6, patience=4)
    assert len(read(ledger).finished) == 6, "the total is the upper bound"
    worker.run(7)
    assert len(read(ledger).finished) == 7


def test_the_gain_of_as_many_trials_again_is_that_of_the_last_doubling(search: Search) -> None:
    # The front is one trial: half of the halves have it, and the others nothing.
    assert expected_gain(search([(0.1, 0.5), *[None] * 9])) == pytest.approx(0.5, abs=0.1)


def test_where_all_trials_are_alike_nothing_is_to_be_gained(search: Search) -> None:
    record = search([(0.1, 0.5)] * 10)
    assert expected_gain(record) == pytest.approx(0)
    assert expected_gain(replace(record, trials=record.trials[:9])) is None, "too few to tell"


def test_of_a_study_without_a_front_nothing_is_said(search: Search) -> None:
    assert expected_gain(search([None] * 10)) is None
