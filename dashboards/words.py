"""What a study has found, in sentences; plain text, nothing is escaped."""

from collections import Counter

from dashboards.queries import WORDS, StudyView, TrialView
from study.budget import format_bytes

MEMORY_SOURCES = {
    "cuda": "CUDA allocator",
    "tracked": "tracked tensor allocations on a machine without a GPU",
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
            f"memory budget of {format_bytes(view.budget)}: there is no Pareto front yet."
        )
    sentences = [
        f"Trial {best.number} is the best within {format_bytes(view.budget)}: it reaches a "
        f"validation NDCG@10 of {best.quality:.4f} with a peak memory of {best.memory_text}.",
        _cheapest(view.front[0], best),
        _comparison(view, best),
    ]
    return " ".join(filter(None, sentences))


def _cheapest(cheapest: TrialView, best: TrialView) -> str:
    assert best.quality is not None
    assert best.memory is not None
    assert cheapest.quality is not None
    assert cheapest.memory is not None
    if cheapest == best:
        return "No other trial is on the front: none needs less memory."
    text = (
        f"The cheapest point of the front, trial {cheapest.number}, needs {cheapest.memory_text} "
        f"({_percent(cheapest.memory / best.memory)} of that) and reaches {cheapest.quality:.4f}"
    )
    if best.quality <= 0:
        return f"{text}."
    return f"{text} ({_percent(cheapest.quality / best.quality)} of that)."


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
