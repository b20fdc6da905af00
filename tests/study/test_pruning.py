import math
from collections.abc import Sequence

import numpy as np
import optuna
import pytest

from benchmarks.search import area
from objectives.recorded import TABLES, RecordedObjective
from objectives.trial import QUALITY
from study.front import DEFAULT_OBJECTIVES, OBJECTIVES
from study.ledger import Ledger
from study.pruning import Curve, Dominated, Pruner, check, curve_of

GOOD = (0.02, 0.04, 0.08, 0.12, 0.14, 0.15, 0.16, 0.16)


def curve(*qualities: float, number: int = 9, peak: float = 100, pace: float = 1) -> Curve:
    """A curve of a second, or more, an epoch."""
    seconds = tuple(pace * epoch for epoch in range(1, len(qualities) + 1))
    return Curve(number, qualities, seconds, peak, complete=False)


def ended(*qualities: float, number: int = 0, peak: float = 100, pace: float = 1) -> Curve:
    return curve(*qualities, number=number, peak=peak, pace=pace)._replace(complete=True)


def stops(mine: Curve, *others: Curve, objectives: Sequence[str] = DEFAULT_OBJECTIVES) -> bool:
    try:
        check(mine, others, objectives)
    except Dominated:
        return True
    return False


@pytest.mark.parametrize(
    ("epoch", "margin"), [(2, (1 - 2 / 6) ** 2.5), (4, (1 - 4 / 6) ** 2.5), (6, 0), (7, 0)]
)
def test_the_margin_shrinks_to_nothing_at_three_quarters(epoch: int, margin: float) -> None:
    level = (1 - margin) * GOOD[epoch - 1]
    before = (0.0,) * (epoch - 1)
    assert stops(curve(*before, 0.999 * level), ended(*GOOD))
    assert not stops(curve(*before, 1.001 * level), ended(*GOOD))


def test_only_those_with_no_more_memory_count() -> None:
    bad = curve(*[0.01] * 6, peak=100)
    assert stops(bad, ended(*GOOD, peak=100))
    assert not stops(bad, ended(*GOOD, peak=101))
    assert not stops(bad)


def test_a_running_trial_counts_as_far_as_it_has_come() -> None:
    bad, small = curve(*[0.01] * 6), ended(*[0.001] * 8, peak=1)
    assert not stops(bad, small)
    assert stops(bad, small, curve(*GOOD[:6], number=1))
    assert not stops(bad, small, curve(*GOOD[:5], number=1))
    assert not stops(bad, curve(*GOOD[:6], number=1)), "nothing says how long trainings are"


def test_one_that_ended_early_counts_with_its_end() -> None:
    long = ended(*[0.01] * 8, number=1, peak=100)
    assert stops(curve(*[0.02] * 6), ended(0.03, 0.04), long)


def test_a_rung_keeps_the_best_third() -> None:
    rivals = [
        ended(0.01, value, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, number=number)
        for number, value in enumerate((0.030, 0.031, 0.032))
    ]
    assert not stops(curve(0.01, 0.0315), *rivals)
    assert stops(curve(0.01, 0.0305), *rivals)
    assert not stops(curve(0.01, 0.0305), *rivals[:2]), "too few to tell"
    assert not stops(curve(0.0099), *rivals), "no rung"


def test_where_time_counts_a_longer_training_stops_nothing() -> None:
    bad = curve(*[0.01] * 6, pace=2)
    for pace, expected in ((1, True), (2, True), (3, False)):
        assert stops(bad, ended(*GOOD, pace=pace), objectives=list(OBJECTIVES)) is expected
    assert stops(bad, ended(*GOOD, pace=3))


def test_where_quality_is_alone_more_memory_does_not_excuse() -> None:
    bad = curve(*[0.01] * 6, peak=100)
    assert not stops(bad, ended(*GOOD, peak=101))
    with pytest.raises(Dominated, match=r"trial 0 had 0\.1500$"):
        check(bad, [ended(*GOOD, peak=101)], ["quality"])


def test_what_is_stopped_says_why_and_what_was_to_be_expected() -> None:
    with pytest.raises(Dominated) as caught:
        check(curve(*[0.03] * 6), [ended(*GOOD, number=4), ended(*[0.01] * 8, number=5)])
    assert str(caught.value) == (
        "0.0300 after 6 epochs, where trial 4 had 0.1500 with no more memory"
    )
    assert caught.value.expected == pytest.approx(0.16 * 0.03 / 0.15)
    rivals = [ended(0.0, 0.04, *[0.08] * 6, number=number) for number in range(4)]
    with pytest.raises(Dominated, match="where 4 of 4 trials had more") as caught:
        check(curve(0.0, 0.03), rivals)
    assert caught.value.expected == pytest.approx(0.06)


def test_the_curves_of_a_study_are_read_as_they_grow(ledger: Ledger) -> None:
    def report(number: int, *qualities: float, peak: float = 100) -> None:
        for epoch, quality in enumerate(qualities, 1):
            ledger.record_epoch(number, epoch, {QUALITY: quality, "memory/peak_bytes": peak})

    pruner = Pruner(ledger)
    for _ in range(4):
        ledger.study.ask()
    report(0, *GOOD)
    report(1, *[0.2] * 8, peak=200)
    report(2, *[0.5] * 6)
    ledger.study.tell(2, state=optuna.trial.TrialState.FAIL)
    pruner.check(3)  # It has shown nothing.
    report(3, *[0.01] * 6)
    pruner.check(3)  # No other has ended, but one by the machine's fault.
    ledger.study.tell(1, (0.2, 200))
    with pytest.raises(Dominated, match=r"trial 0 had 0\.1500"):
        pruner.check(3)
    report(0, *[0.3] * 6)
    with pytest.raises(Dominated, match=r"trial 0 had 0\.3000"):
        pruner.check(3)
    ledger.study.tell(0, (0.16, 100))
    with pytest.raises(Dominated, match=r"trial 0 had 0\.3000"):
        pruner.check(3)


def test_a_curve_is_the_best_so_far(ledger: Ledger) -> None:
    for epoch, quality in enumerate((0.1, 0.3, 0.2), 1):
        metrics = {QUALITY: quality, "memory/peak_bytes": 10.0 * epoch, "train/epoch_seconds": 2}
        ledger.record_epoch(0, epoch, metrics)
    assert curve_of(0, ledger.epochs(0), complete=True) == Curve(
        0, (0.1, 0.3, 0.3), (2, 4, 6), 30, complete=True
    )
    assert curve_of(1, [], complete=True) is None


@pytest.mark.parametrize("dataset", ["ml-1m", "beauty"])
def test_half_of_the_time_for_nearly_the_same_front(dataset: str) -> None:
    cells = list(RecordedObjective(TABLES / f"{dataset}.csv").cells.values())
    spent = whole = 0.0
    kept = []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(cells))[:60]
        shown: list[Curve] = []
        for number in order:
            cell = cells[number]
            best = np.maximum.accumulate(cell.curve)
            for epoch in range(1, cell.epochs + 1):
                mine = curve(*best[:epoch], number=number, peak=cell.peak_bytes)
                if epoch < cell.epochs and stops(mine, *shown):
                    break
            spent += cell.seconds * epoch / cell.epochs
            whole += cell.seconds
            shown.append(mine._replace(complete=epoch == cell.epochs))
        top = math.log2(max(cell.peak_bytes for cell in cells))
        everything = area([(cells[n].quality, float(cells[n].peak_bytes)) for n in order], top)
        found = area([(each.best[-1], each.peak) for each in shown if each.complete], top)
        kept.append(found / everything)
    assert np.mean(kept) > 0.99
    assert spent < 0.5 * whole
