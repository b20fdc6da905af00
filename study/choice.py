"""Which trial of a study is to be used."""

import math
from typing import TYPE_CHECKING

from study.front import knee, pareto_front

if TYPE_CHECKING:
    from study.records import StudyRecord, TrialRecord


def at_knee(record: "StudyRecord") -> "TrialRecord | None":
    """The complete trial at the knee of quality over memory; None where there is no knee."""
    trials = _by_memory(record)
    index = knee([_point(trial) for trial in trials])
    return None if index is None else trials[index]


def by_weight(record: "StudyRecord", weight: float) -> "TrialRecord | None":
    """The complete trial that is best by a weighted sum of quality q and peak memory m.

    Over the front of quality and memory, with 0 for its least and 1 for its most of both::

        W (q - q_least) / (q_most - q_least) - (1 - W) log(m / m_least) / log(m_most / m_least)

    Args:
        record: The study.
        weight: W: 1 asks for the best quality, 0 for the least memory.

    Returns:
        Of equal ones the one of less memory; None where no trial is complete.
    """
    trials = _by_memory(record)
    front = [trials[index] for index in pareto_front([_point(trial) for trial in trials])]
    if not front:
        return None
    (least, lowest), (most, highest) = _point(front[0]), _point(front[-1])

    def value(trial: "TrialRecord") -> float:
        quality, memory = _point(trial)
        gain = (quality - least) / ((most - least) or 1.0)
        cost = math.log(memory / lowest) / (math.log(highest / lowest) or 1.0)
        return weight * gain - (1 - weight) * cost

    return max(front, key=value)


def _by_memory(record: "StudyRecord") -> "list[TrialRecord]":
    return sorted(record.complete, key=lambda trial: trial.peak_memory or 0)


def _point(trial: "TrialRecord") -> tuple[float, float]:
    return trial.quality or 0.0, float(trial.peak_memory or 1)
