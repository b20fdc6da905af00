"""What to try next, as far as the trials say; plain text, nothing is escaped."""

import math
from collections.abc import Iterator
from typing import Any

from dashboards.queries import StudyView, TrialView
from study.progress import short
from study.space import NO_RANGE

_FEWEST = 10
"""Finished trials below which the place of the best one is chance."""
_EDGE = 0.05
"""The share of a range that is its end."""
_SMALL_GAIN = 0.01


def next_steps(view: StudyView) -> list[str]:
    """Sentences, each true of this study; none while nothing has ended."""
    if not any(trial.ended for trial in view.trials):
        return []
    if view.best is None:
        return list(_find_a_first(view))
    # Of a table there is nothing but its rows.
    recorded = view.memory_source == "recorded"
    steps = [] if recorded else list(_widen(view, view.best))
    steps += _go_on(view)
    return steps if recorded else [*steps, *_confirm(view)]


def _find_a_first(view: StudyView) -> Iterator[str]:
    ended = [trial for trial in view.trials if trial.ended]
    over = [trial for trial in ended if trial.group == "infeasible"]
    known = [trial for trial in over if trial.memory is not None]
    if len(over) == len(ended) and known:
        least = min(known, key=lambda trial: trial.memory or 0)
        yield (
            f"Every trial exceeded the budget; the one of least memory, trial {least.number}, "
            f"needs {least.memory_text}. Begin another study with a larger --memory-budget, or "
            "with smaller settings (--space)."
        )
    rates = [
        trial.params["learning_rate"]
        for trial in view.of("diverged")
        if "learning_rate" in trial.params
    ]
    if rates:
        yield (
            f"{_count(len(rates), 'trial')} diverged, with learning rates from "
            f"{min(rates):.3g}: lower ones (--space.learning_rate) may train."
        )


def _widen(view: StudyView, best: TrialView) -> Iterator[str]:
    if len(view.history) < _FEWEST:
        return
    for name in view.open:
        if (end := _end(name, view.space.get(name), best.params.get(name))) is not None:
            yield (
                f"The best trial, {best.number}, has {name} {short(best.params[name])}, "
                f"{end}: where it can be widened (--space.{name}, in another study), better ones "
                "may lie beyond."
            )


def _end(name: str, values: Any, value: Any) -> str | None:
    """At which end of its range or choices a number stands; None: at neither."""
    numbers = isinstance(values, list) and all(isinstance(each, int | float) for each in values)
    if not numbers or not isinstance(value, int | float) or len(values) < 2:
        return None
    low, high = min(values), max(values)
    # Of whole numbers 1 is the least, and nothing is searched below 0.
    has_less = low > 1 if isinstance(low, int) else low > 0
    if len(values) > 2 or name in NO_RANGE:
        if value == high:
            return "the largest of its choices"
        return "the smallest of its choices" if value == low and has_less else None
    scale = math.log if low > 0 else float
    share = (scale(value) - scale(low)) / (scale(high) - scale(low))
    if share >= 1 - _EDGE:
        return f"at the upper end of its range ({short(low)} to {short(high)})"
    if share <= _EDGE and has_less:
        return f"at the lower end of its range ({short(low)} to {short(high)})"
    return None


def _go_on(view: StudyView) -> Iterator[str]:
    ended, gain = len(view.history), view.expected_gain
    if view.of("running"):
        yield "Trials are running: wait for them."
    elif gain is None:
        yield (
            f"{_count(ended, 'trial')} ended, too few to say what more would add: go on "
            f"(--n-trials {max(2 * ended, _FEWEST)})."
        )
    elif gain >= _SMALL_GAIN:
        what = "hypervolume" if len(view.objectives) > 1 else "best quality"
        yield (
            f"As many trials again may add {gain:.1%} to the {what}: go on "
            f"(--n-trials {2 * ended})."
        )
    else:
        yield (
            "As many trials again are expected to add less than 1%: the search of this space can "
            "end here."
        )


def _confirm(view: StudyView) -> Iterator[str]:
    once = sum(trial.trainings == 1 for trial in view.front)
    if once and len(view.objectives) == 1:
        yield (
            "The best trial was trained once, and may owe its place to its seed: --confirm 3 "
            "trains it again with others."
        )
    elif once:
        yield (
            f"Of the {_count(len(view.front), 'trial')} on the front {once} "
            f"{'was' if once == 1 else 'were'} trained once, and may owe their place to their "
            "seeds: --confirm 3 trains them again with others."
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
