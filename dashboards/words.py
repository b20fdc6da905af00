"""What a study has found, in sentences; plain text, nothing is escaped."""

from collections import Counter
from collections.abc import Sequence

from dashboards.balance import Slice, memory_fit
from dashboards.queries import WORDS, StudyView, TrialView
from study.budget import format_bytes

MEMORY_SOURCES = {
    "cuda": "CUDA allocator",
    "tracked": "tracked tensor allocations on a machine without a GPU",
    "recorded": "a table of recorded runs",
}


def summary(view: StudyView) -> str:
    """The result: the best trial, the front's cheapest one, and how it compares."""
    ended = [trial for trial in view.trials if trial.group not in ("running", "waiting")]
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
