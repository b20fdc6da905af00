"""A configuration as the numbers that a model of the quality sees."""

import math
from collections.abc import Mapping

from study.space import Choices, Range, Value

_BEYOND = 1.3
"""Where the full softmax lies on the scale of negatives, whose ends are 0 and 1."""


class Features:
    """Numbers between 0 and 1, a word one for each that it may be.

    The full softmax is no other loss than CCE-, but its limit: with more negatives than any.
    """

    def __init__(self, parts: Mapping[str, Range | Choices], num_items: float) -> None:
        """Prepares.

        Args:
            parts: The settings that differ, each with what it may be.
            num_items: V, for the negatives of the full softmax.
        """
        self._parts = parts
        self._num_items = num_items
        losses = getattr(parts.get("loss"), "values", ("cce", "cce-"))
        self._has_limit = "negatives" in parts and {"cce", "cce-"} <= set(losses)

    def __call__(self, values: Mapping[str, Value]) -> tuple[float, ...]:
        """Those of a configuration; a setting that it does not have is in the middle."""
        values = dict(values)
        if values.get("loss") == "cce" and self._has_limit:
            values["loss"] = "cce-"
            values.setdefault("negatives", self._num_items)
        found: list[float] = []
        for name, part in self._parts.items():
            value = values.get(name)
            if isinstance(part, Choices) and isinstance(part.values[0], str):
                words = [word for word in part.values if not (word == "cce" and self._has_limit)]
                found += [float(value == word) for word in words if len(words) > 1]
            elif value is None:
                found.append(0.5)
            else:
                found.append(min(max(scaled(part, float(value)), 1 - _BEYOND), _BEYOND))
        return tuple(found)


def scaled(part: Range | Choices, value: float) -> float:
    """Where a number lies between the ends, 0 and 1; by its logarithm if these are positive."""
    numbers = [part.low, part.high] if isinstance(part, Range) else [*map(float, part.values)]
    low, high = min(numbers), max(numbers)
    if low > 0:
        low, high = math.log(low), math.log(high)
        value = math.log(value) if value > 0 else -math.inf
    return (value - low) / max(high - low, 1e-9)
