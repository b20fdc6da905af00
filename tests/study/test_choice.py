"""Which trial the knee and a weight choose."""

import pytest

from study.choice import at_knee, by_weight
from study.records import StudyRecord, TrialRecord


def study(*points: tuple[int, float]) -> StudyRecord:
    """One trial for each peak memory and quality."""
    trials = [
        TrialRecord(number, "complete", quality=quality, peak_memory=memory)
        for number, (memory, quality) in enumerate(points)
    ]
    return StudyRecord("s", {"memory_budget": 4096}, tuple(trials), {}, None)


BENT = study((512, 0.22), (64, 0.1), (128, 0.2), (256, 0.15), (1024, 0.24))


def test_the_knee_of_a_study() -> None:
    assert (found := at_knee(BENT)) is not None
    assert found.number == 2
    assert at_knee(study((64, 0.1), (128, 0.2))) is None
    assert at_knee(study()) is None


@pytest.mark.parametrize(
    ("weight", "number"),
    # Trial 2 has 5/7 of the quality at a quarter of the cost: it is the best from 0.26 to 0.72.
    [(0.0, 1), (0.25, 1), (0.27, 2), (0.5, 2), (0.72, 2), (0.73, 4), (1.0, 4)],
)
def test_a_weight_between_memory_and_quality(weight: float, number: int) -> None:
    assert (found := by_weight(BENT, weight)) is not None
    assert found.number == number


def test_a_weight_of_few_trials() -> None:
    assert by_weight(study(), 0.5) is None
    alone = study((64, 0.1))
    assert by_weight(alone, 0.5) == alone.trials[0]
    # The second is not on the front.
    assert by_weight(study((64, 0.1), (64, 0.1)), 0.0) == alone.trials[0]
