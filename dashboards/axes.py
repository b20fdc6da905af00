"""Axes that choose their scale: peak memory against a budget, and numbers of any span."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dashboards.queries import TrialView
from study.budget import format_bytes

_MIB, _GIB = 2**20, 2**30

_MEMORY_LOG_SPAN = 20
"""Memory that spans more than this factor is drawn on a logarithmic axis."""

_EMPTY_SHARE = 0.3
"""The share of the axis between the data and the budget above which the budget is not on it."""


@dataclass(frozen=True)
class MemoryAxis:
    """An axis of peak memory, in MiB or GiB.

    Attributes:
        unit: Bytes of one unit of the axis.
        log: Whether it is logarithmic.
        low: Bytes at its start.
        high: Bytes at its end.
        budget: Whether the memory budget lies on it, or beyond which end.
    """

    unit: int
    log: bool
    low: float
    high: float
    budget: Literal["inside", "left", "right"]

    @property
    def unit_name(self) -> str:
        """The unit of the axis."""
        return "GiB" if self.unit == _GIB else "MiB"

    def place(self, memory: float) -> float:
        """Where so many bytes stand on the axis."""
        return memory / self.unit

    def position(self, memory: float) -> float:
        """The same for an annotation: alone in Plotly, these want the logarithm of their place."""
        return math.log10(self.place(memory)) if self.log else self.place(memory)

    def places(self, trials: Sequence[TrialView]) -> list[float]:
        """Where the peaks of these trials stand, all of them known."""
        return [self.place(trial.memory) for trial in trials if trial.memory is not None]

    def share(self, memory: float) -> float:
        """How far along the axis so many bytes stand, from 0 to 1."""
        scale = math.log if self.log else float
        return (scale(memory) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def layout(self) -> dict[str, Any]:
        """The properties of the axis in Plotly's layout."""
        ends = self.place(self.low), self.place(self.high)
        if not self.log:
            return {"title": {"text": f"Peak memory, {self.unit_name}"}, "range": ends}
        ticks = powers_of_two(self.low, self.high)
        return {
            "title": {"text": "Peak memory"},
            "type": "log",
            "range": [math.log10(end) for end in ends],
            "tickvals": [self.place(tick) for tick in ticks],
            "ticktext": [re.sub(r"\.0+ ", " ", format_bytes(tick)) for tick in ticks],
        }


def memory_axis(trials: Sequence[TrialView], budget: int, log: bool | None = None) -> MemoryAxis:
    """The axis for the peaks of these trials; it reaches to the budget if they keep their room.

    Args:
        trials: The trials.
        budget: The study's budget in bytes.
        log: Whether it is logarithmic (default: if the peaks span more than a factor 20).
    """
    memories = [trial.memory for trial in trials if trial.memory is not None]
    least, most = (min(memories), max(memories)) if memories else (0, budget)
    unit = _GIB if most >= _GIB else _MIB
    if log is None:
        log = 0 < least * _MEMORY_LOG_SPAN < most
    # From 0 memory is compared best, unless all of the data is far from it.
    zero = least == most or least < 2 / 3 * most
    wide = _axis(unit, log, zero, min(least, budget), max(most, budget))
    at_budget = wide.share(budget)
    if max(at_budget - wide.share(most), wide.share(least) - at_budget) <= _EMPTY_SHARE:
        return wide
    near = _axis(unit, log, zero, least, most)
    return replace(near, budget="right" if budget > most else "left")


def log_memory_axis(least: float, most: float, budget: int) -> MemoryAxis:
    """A logarithmic axis from least to most bytes; the budget may lie beyond it, to the right."""
    unit = _GIB if most >= _GIB else _MIB
    axis = _axis(unit, True, False, least, max(most, 2 * least))
    return axis if budget <= axis.high else replace(axis, budget="right")


def linear_memory_axis(most: float, budget: int) -> MemoryAxis:
    """An axis from 0 to most bytes and a margin; the budget may lie beyond it, to the right."""
    axis = _axis(_GIB if most >= _GIB else _MIB, False, True, 0.0, 1.1 * most)
    return axis if budget <= axis.high else replace(axis, budget="right")


def _axis(unit: int, log: bool, zero: bool, least: float, most: float) -> MemoryAxis:
    """An axis with a margin around the data."""
    if log:
        margin = max(most / least, 1.5) ** 0.1
        return MemoryAxis(unit, log, least / margin, most * margin, "inside")
    low = 0.0 if zero else least - 0.1 * (most - least)
    return MemoryAxis(unit, log, low, most + 0.08 * (most - low), "inside")


def value_range(values: Sequence[float]) -> list[float]:
    """Ends of a linear axis with a margin around the values, also around a single one."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.1 * (high - low) or 0.2 * abs(high) or 0.1
    return [low - margin, high + margin]


def number_axis(values: Sequence[float]) -> dict[str, Any]:
    """The properties of an axis for numbers: logarithmic where they span more than a factor 10."""
    if not values:
        return {}
    distinct = sorted(set(values))
    log = 0 < distinct[0] * 10 < distinct[-1]
    axis: dict[str, Any] = {"type": "log" if log else "linear"}
    if len(distinct) <= 5:
        ticks: list[float] = list(distinct)
    elif log and all(isinstance(value, int) for value in distinct):
        ticks = list(powers_of_two(distinct[0], distinct[-1]))
    elif log:
        ticks = _decades(distinct[0], distinct[-1])
    else:
        return axis
    return axis | {"tickvals": ticks, "ticktext": [f"{tick:.4g}" for tick in ticks]}


def time_axis(seconds: Sequence[float]) -> dict[str, Any]:
    """The properties of an axis for times: logarithmic where they span more than a factor 10."""
    axis: dict[str, Any] = {"title": {"text": "Seconds"}}
    if not 0 < min(seconds) * 10 < max(seconds):
        return axis | {"rangemode": "tozero"}
    ticks = _decades(min(seconds), max(seconds))
    return axis | {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [f"{tick:.4g}" for tick in ticks],
    }


def powers_of_two(low: float, high: float) -> list[int]:
    """Powers of two from low to high; of many as many as an axis has room for."""
    exponents = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [2**exponent for exponent in exponents[:: math.ceil(len(exponents) / 7) or 1]]


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 3) if high / low < 1000 else (1,)
    ticks = [float(f"{step}e{exponent}") for exponent in exponents for step in steps]
    return [tick for tick in ticks if low <= tick <= high]
