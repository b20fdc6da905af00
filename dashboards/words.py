"""What a study has found, in sentences; plain text, nothing is escaped."""

import html
import re
from collections import Counter
from collections.abc import Sequence

from dashboards.advice import next_steps
from dashboards.balance import Slice, memory_fit
from dashboards.importance import importances
from dashboards.queries import WORDS, StudyView, TrialView
from dashboards.value import best_within
from study.budget import format_bytes
from study.progress import short

_MOST_ROWS = 12
"""Of the front in a description, whose length MLflow limits: those of the best quality."""

MEMORY_SOURCES = {
    "cuda": "CUDA allocator",
    "tracked": "tracked tensor allocations on a machine without a GPU",
    "recorded": "a table of recorded runs",
}


def summary(view: StudyView) -> str:
    """The result: the best trial, the front's cheapest one, and how it compares."""
    ended = [trial for trial in view.trials if trial.ended]
    if not ended:
        return "No trial has ended yet."
    best = view.best
    if best is None:
        return (
            f"None of the trials that have ended ({len(ended)}) trained to its end within the "
            f"memory budget of {format_bytes(view.budget)}: there is no "
            f"{'Pareto front' if len(view.objectives) > 1 else 'best one'} yet."
        )
    sentences = [
        f"Trial {best.number} is the best within {format_bytes(view.budget)}: it reaches a "
        f"validation NDCG@10 of {best.quality_text} with a peak memory of {best.memory_text}.",
        _cheapest(view, best),
        _comparison(view, best),
    ]
    return " ".join(filter(None, sentences))


def facts(view: StudyView) -> list[tuple[str, str]]:
    """What a study is of and what it has come to, as pairs of a name and a text."""
    found = [
        ("Data set", view.data),
        ("Split", view.split),
        ("Memory budget", format_bytes(view.budget)),
        ("Memory figures from", MEMORY_SOURCES[view.memory_source]),
    ]
    if len(view.objectives) > 1:
        volume = f"{view.history[-1].hypervolume:.4f}" if view.history else "none yet"
        found.append(("Hypervolume", volume))
    if view.expected_gain is not None:
        what = "hypervolume" if len(view.objectives) > 1 else "best quality"
        found.append(("As many trials again", f"may add {view.expected_gain:.1%} to the {what}"))
    return found


def _cheapest(view: StudyView, best: TrialView) -> str:
    if len(view.objectives) == 1:
        return ""
    if len(view.front) == 1:
        less = {"memory": "needs less memory", "time": "takes less time"}
        none = " or ".join(less[cost] for cost in view.objectives[1:])
        return f"No other trial is on the front: none {none}."
    sentences = []
    if "memory" in view.objectives:
        least = min(view.front, key=lambda trial: trial.memory or 0)
        need = f"needs {least.memory_text}{_share(least.memory, best.memory)}"
        sentences.append(_reaches("cheapest", least, need, best))
    if "time" in view.objectives:
        least = min(view.front, key=lambda trial: trial.seconds or 0.0)
        need = f"takes {least.seconds or 0.0:.1f} s, against {best.seconds or 0.0:.1f} s,"
        sentences.append(_reaches("quickest", least, need, best))
    return " ".join(sentences)


def _reaches(word: str, trial: TrialView, need: str, best: TrialView) -> str:
    return (
        f"The {word} point of the front, trial {trial.number}, {need} and reaches "
        f"{trial.quality:.4f}{_share(trial.quality, best.quality)}."
    )


def _share(part: float | None, whole: float | None) -> str:
    return f" ({_percent(part / whole)} of that)" if part is not None and whole else ""


def _percent(share: float) -> str:
    return "less than 1%" if 0 < share < 0.01 else f"{share:.0%}"


def _comparison(view: StudyView, best: TrialView) -> str:
    test = best.metrics.get("test/ndcg_at_10")
    if test is None:
        return ""
    text = f"On the test split trial {best.number} reaches NDCG@10 {test:.4f}"
    if view.baseline is None:
        return f"{text}."
    text += f", against {view.baseline:.4f} for recommending the most popular items"
    if view.baseline <= 0:
        return f"{text}."
    ratio = test / view.baseline
    return f"{text} ({ratio:.{1 if ratio >= 1 else 2}f} times)."


def what_memory_buys(view: StudyView) -> str:
    """The best trial within half of the budget, and what is known beyond; empty without a best."""
    best = view.best
    if best is None or best.memory is None or best.quality is None:
        return ""
    half = view.budget // 2
    if best.memory <= half:
        return f"Half of the budget is enough for trial {best.number}. {_larger(view, best)}"
    cheap = best_within(view, half)
    beyond = f"What twice the budget would buy, {format_bytes(2 * view.budget)}, was not tried."
    if cheap is None:
        return (
            f"Within half of the budget, {format_bytes(half)}, no trial trained to its end. "
            f"{beyond}"
        )
    lost = 1 - (cheap.quality or 0.0) / best.quality if best.quality > 0 else 0.0
    text = (
        f"Within half of the budget, {format_bytes(half)}, the best is trial {cheap.number} with "
        f"{cheap.quality_text}, {_percent(lost)} less: so much has the last doubling of memory "
        "bought"
    )
    spread = max((trial.spread or 0.0 for trial in (cheap, best)), default=0.0)
    if spread > best.quality - (cheap.quality or 0.0):
        text += ", no more than a standard deviation of repeated trainings"
    return f"{text}. {beyond}"


def _larger(view: StudyView, best: TrialView) -> str:
    larger = sum((trial.memory or 0) > (best.memory or 0) for trial in view.complete)
    if larger == 0:
        return "No trial trained to its end with more memory."
    if larger == 1:
        return "The one trial that trained to its end with more memory is no better."
    return f"None of the {larger} trials that trained to their end with more memory is better."


def what_mattered(view: StudyView) -> str:
    """The setting that decides most of quality, and of memory; empty where it cannot be said."""
    texts = []
    for of, shares in (
        ("quality", importances(view, "quality")),
        ("peak memory", importances(view, "memory")),
    ):
        if shares:
            (first, share), *others = shares.items()
            text = f"for {of} {first} mattered most ({share:.0%} of all importance)"
            if others and round(others[0][1], 2) > 0:
                text += f", then {others[0][0]} ({others[0][1]:.0%})"
            texts.append(text)
    if not texts:
        return ""
    return f"By the {len(view.complete)} trials that trained to their end, {'; '.join(texts)}."


def answers(view: StudyView) -> dict[str, list[str]]:
    """What people ask next, and the sentences that answer it; without those that none answers."""
    known = {
        "Half the memory, or twice": [what_memory_buys(view)],
        "What mattered": [what_mattered(view)],
        "What to try next": next_steps(view),
    }
    return {
        title: sentences
        for title, each in known.items()
        if (sentences := list(filter(None, each)))
    }


def searched(view: StudyView) -> str:
    """What a study searched for, within what, and how long."""
    return (
        f"{len(view.history)} trials; searched for {' and '.join(view.objectives)} within "
        f"{format_bytes(view.budget)} ({MEMORY_SOURCES[view.memory_source]})."
    )


def comparison(views: Sequence[StudyView]) -> str:
    """The best of each study within the smallest of their budgets."""
    limit = min(view.budget for view in views)
    found = [(view, best_within(view, limit)) for view in views]
    have = [(view, trial) for view, trial in found if trial is not None]
    have.sort(key=lambda pair: -(pair[1].quality or 0.0))
    reached = [
        f"{view.name} {'' if place else 'reaches a validation NDCG@10 of '}{trial.quality_text} "
        f"(trial {trial.number}, {trial.memory_text})"
        for place, (view, trial) in enumerate(have)
    ]
    none = [view.name for view, trial in found if trial is None]
    smallest = "" if all(view.budget == limit for view in views) else ", the smallest budget"
    text = f"Within {format_bytes(limit)}{smallest}, "
    text += "; ".join(
        [*reached, *(f"{name} has no trial that trained to its end" for name in none)]
    )
    if len({view.objectives for view in views}) > 1:
        text += ". They did not search for the same objectives"
    return f"{text}."


def markdown(view: StudyView, command: str) -> str:
    """The summary and what goes with it, for a place that shows Markdown.

    Args:
        view: The study.
        command: What goes on with it.
    """
    paragraphs = [summary(view)]
    paragraphs += [
        f"**{title}.** {with_flags(' '.join(each), '`', '`')}"
        for title, each in answers(view).items()
    ]
    if view.front:
        shown = view.front[-_MOST_ROWS:]
        rows = [
            ["trial", "peak memory", "NDCG@10", *view.open],
            ["---"] * (3 + len(view.open)),
            *(
                [
                    _run_link(trial),
                    trial.memory_text,
                    trial.quality_text,
                    *(short(trial.params.get(name, "-")) for name in view.open),
                ]
                for trial in shown
            ),
        ]
        paragraphs.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        paragraphs.append(
            'The front\'s runs have the tag front: search for `tags.front = "true"`. The figures '
            "are in report.html, under Artifacts."
        )
    text = html.escape("\n\n".join(paragraphs), quote=False)
    return f"{text}\n\nGo on with `{command}`"


def _run_link(trial: TrialView) -> str:
    # MLflow's own pages show this, whatever their address.
    return str(trial.number) if trial.run is None else f"[{trial.number}](#/runs/{trial.run})"


def with_flags(text: str, before: str, after: str) -> str:
    """A sentence with marks around its flags, and their numbers, which belong together."""
    return re.sub(r"--[a-z]\S*?[a-z](?: \d+)?(?![\w.-])", rf"{before}\g<0>{after}", text)


def not_drawn(view: StudyView) -> str:
    """Which trials the figure of the front cannot show; empty if it shows all."""
    counts = Counter(trial.group for trial in view.trials if trial.memory is None)
    listed = ", ".join(f"{counts[group]} {word}" for group, word in WORDS.items() if counts[group])
    return f"Not drawn, as their memory is not known: {listed}." if counts else ""


def no_anatomy(view: StudyView) -> str:
    """Why there are no parts of the memory of the best trials."""
    if view.memory_source == "cuda":
        return "None of the best trials has a predicted peak."
    return "Peaks are predicted on a GPU only: there are no parts to show."


def balance(parts: Sequence[Slice]) -> str:
    """How to read the figures of the balance, and how their lines were got."""
    text = (
        "The darker a trial, the better it is; the large ones with a number are the best of their "
        "band of memory, between two powers of two; the small grey ones have no quality."
    )
    if any(memory_fit(part) for part in parts):
        text += (
            " Along a dotted line the peak memory is the same: it is a fit to the trials shown, "
            "linear in batch size, negatives and their product."
        )
    if any(part.full for part in parts):
        text += " The full softmax, which has no negatives, stands on the right."
    return text
