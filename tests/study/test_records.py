"""The front and the best trial of studies made by hand."""

import math

import pytest

from study.best import front_table
from study.records import StudyRecord, TrialRecord


def trial(number: int, quality: float, memory: int, seconds: float | None) -> TrialRecord:
    return TrialRecord(
        number, "complete", quality=quality, peak_memory=memory, seconds=seconds, epochs=1
    )


TRIALS = (
    trial(0, 0.30, 900, 9.0),
    trial(1, 0.20, 100, 9.0),
    trial(2, 0.25, 500, 2.0),
    trial(3, 0.20, 500, 1.0),
    trial(4, 0.30, 800, 9.0),
    trial(5, 0.10, 600, 9.0),
)


def study(*objectives: str, trials: tuple[TrialRecord, ...] = TRIALS) -> StudyRecord:
    identity = {"memory_budget": 1000, "objectives": list(objectives)}
    return StudyRecord("s", identity, trials, {}, None)


@pytest.mark.parametrize(
    ("objectives", "numbers", "limits"),
    [
        (["quality"], [4], []),
        (["quality", "memory"], [1, 2, 4], [1000]),
        (["quality", "time"], [3, 2, 4], [9.0]),
        (["quality", "memory", "time"], [1, 3, 2, 4], [1000, 9.0]),
    ],
)
def test_the_front_is_that_of_the_objectives(
    objectives: list[str], numbers: list[int], limits: list[float]
) -> None:
    record = study(*objectives)
    assert [trial.number for trial in record.front()] == numbers
    assert record.limits == limits


def test_a_study_of_an_earlier_version_has_quality_and_memory() -> None:
    record = StudyRecord("s", {"memory_budget": 1000}, TRIALS, {}, None)
    assert record.objectives == ["quality", "memory"]


def test_limits_are_never_nothing() -> None:
    assert study("quality", "time", trials=()).limits == [1.0]


def test_a_trial_of_unknown_time_counts_as_endless() -> None:
    record = study("quality", "time", trials=(trial(0, 0.1, 1, 3.0), trial(1, 0.1, 1, None)))
    assert record.point(record.trials[1]) == (0.1, math.inf)
    assert [trial.number for trial in record.front()] == [0]


@pytest.mark.parametrize(
    ("budget", "seconds", "number"),
    [
        (None, math.inf, 4),
        (799, math.inf, 2),
        (499, math.inf, 1),
        (None, 5.0, 2),
        (None, 1.5, 3),
        (99, math.inf, None),
        (None, 0.5, None),
    ],
)
def test_the_best_is_within_memory_and_time(
    budget: int | None, seconds: float, number: int | None
) -> None:
    for objectives in (["quality"], ["quality", "memory"], ["quality", "memory", "time"]):
        best = study(*objectives).best(budget, seconds)
        assert (None if best is None else best.number) == number


def test_the_table_shows_seconds_where_time_counts() -> None:
    title, header, first, *_ = front_table(study("quality", "memory", "time")).splitlines()
    assert title == "Pareto front of study s"
    assert header.split() == ["trial", "memory", "seconds", "NDCG@10", "test"]
    assert "9.0" in first.split()
    title, header, row = front_table(study("quality")).splitlines()
    assert title == "Best trial of study s"
    assert header.split() == ["trial", "memory", "NDCG@10", "test"]
    assert row.split()[0] == "4"
