"""What of a study somebody looks at: it stands in the address of the page."""

import math
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dashboards.queries import Group, StudyView
from dashboards.sections import SECTIONS
from study.front import pareto_front, point_of
from study.records import StudyRecord, TrialRecord

MIB = 2**20

Span = tuple[float | None, float | None]
"""Least and most of a parameter; None: as it comes."""


@dataclass(frozen=True)
class Choice:
    """What is looked at.

    Attributes:
        tab: The figures that are shown.
        budget: MiB that the recommended trial may take; None: the study's budget.
        trial: The trial that is looked at.
        outcomes: How trials ended; empty: all of them.
        losses: Their losses; empty: all of them.
        spans: What numeric parameters are, by name.
        words: What other parameters are, by name.
    """

    tab: str = "front"
    budget: int | None = None
    trial: int | None = None
    outcomes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    spans: Mapping[str, Span] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, search: str) -> "Choice":
        """What the query of an address says; what makes no sense in it is left out."""
        asked = urllib.parse.parse_qs(search.removeprefix("?"))

        def whole(name: str) -> int | None:
            text = asked.get(name, [""])[0]
            return int(text) if text.isdecimal() else None

        spans = {}
        for name, values in asked.items():
            low, dots, high = values[0].partition("..")
            if name.startswith("p.") and dots:
                spans[name[2:]] = _number(low), _number(high)
        return cls(
            tab=tab if (tab := asked.get("tab", [""])[0]) in SECTIONS else "front",
            budget=whole("budget"),
            trial=whole("trial"),
            outcomes=tuple(asked.get("outcome", ())),
            losses=tuple(asked.get("loss", ())),
            spans=spans,
            words={name[2:]: tuple(of) for name, of in asked.items() if name.startswith("w.")},
        )

    @property
    def query(self) -> str:
        """The query that says so."""
        pairs: list[tuple[str, Any]] = [("tab", self.tab)] if self.tab != "front" else []
        pairs += [("budget", self.budget)] if self.budget is not None else []
        pairs += [("outcome", outcome) for outcome in self.outcomes]
        pairs += [("loss", loss) for loss in self.losses]
        pairs += [
            (f"p.{name}", "..".join("" if end is None else f"{end:g}" for end in span))
            for name, span in self.spans.items()
            if span != (None, None)
        ]
        pairs += [(f"w.{name}", word) for name, words in self.words.items() for word in words]
        pairs += [("trial", self.trial)] if self.trial is not None else []
        return f"?{urllib.parse.urlencode(pairs)}" if pairs else ""

    @property
    def filters(self) -> "Choice":
        """The choice of trials alone."""
        return replace(self, tab="front", budget=None, trial=None)

    def of(self, record: StudyRecord) -> StudyRecord:
        """The study as if it had no other trials."""
        if self.filters == Choice():
            return record
        chosen = {trial.number for trial in record.trials if self._has(trial)}
        trials = (t for t in record.trials if {t.number, t.repeat_of} & chosen)
        return replace(record, trials=tuple(trials))

    def _has(self, trial: TrialRecord) -> bool:
        loss = str(trial.config.get("loss", trial.params.get("loss", "")))
        return (
            (not self.outcomes or trial.outcome in self.outcomes)
            and (not self.losses or loss in self.losses)
            and all(
                _within(trial.params.get(name), span)
                for name, span in self.spans.items()
                if span != (None, None)
            )
            and all(
                str(trial.params.get(name)) in words for name, words in self.words.items() if words
            )
        )


def at_budget(view: StudyView, budget: int) -> StudyView:
    """The view with the front and the best of what a smaller budget in bytes has room for."""
    inside = [trial for trial in view.complete if (trial.memory or 0) <= budget]
    # Of trials that are equal in the objectives, the one of less memory.
    inside.sort(key=lambda trial: trial.memory or 0)
    points = [
        point_of(view.objectives, trial.quality or 0, trial.memory or 0, trial.seconds or math.inf)
        for trial in inside
    ]
    groups: dict[int, Group] = {trial.number: "infeasible" for trial in view.complete}
    groups |= dict.fromkeys((trial.number for trial in inside), "dominated")
    chosen: Group = "front" if len(view.objectives) > 1 else "best"
    numbers = [inside[index].number for index in pareto_front(points)]
    groups |= dict.fromkeys(numbers, chosen)
    trials = {
        trial.number: replace(trial, group=group)
        if (group := groups.get(trial.number, trial.group)) != trial.group
        else trial
        for trial in view.trials
    }
    best = max(inside, key=lambda trial: trial.quality or 0, default=None)
    return replace(
        view,
        budget=budget,
        trials=tuple(trials.values()),
        front=tuple(trials[number] for number in numbers),
        best=None if best is None else trials[best.number],
    )


def numeric(values: Sequence[Any]) -> bool:
    """Whether a parameter of these values is one of numbers."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _within(value: Any, span: Span) -> bool:
    low, high = span
    return (
        isinstance(value, int | float)
        and (low is None or value >= low)
        and (high is None or value <= high)
    )
