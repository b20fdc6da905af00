"""Titles and notes of the page, by what a study weighs quality against."""

Costs = tuple[str, ...]
"""A study's objectives but for the quality."""

_KICKERS: dict[Costs, str] = {
    (): "quality within a memory budget",
    ("memory",): "quality against peak memory",
    ("time",): "quality against time",
    ("memory", "time"): "quality against peak memory and time",
}
_LINES: dict[Costs, str] = {
    (): "the filled one is the best",
    ("memory",): "the line is the best quality available within a memory limit",
    ("time",): "the line of the lower figure is the best quality available within a time limit",
    (
        "memory",
        "time",
    ): "the lines are the best quality available within a memory limit and, in the "
    "lower figure, a time limit; of the front, the darker a trial, the longer it took",
}
_LIMITS: dict[Costs, str] = {
    ("memory",): "a memory limit, averaged over all limits from 0 to the budget",
    ("time",): "a time limit, averaged over all limits from 0 to the longest trial",
    ("memory", "time"): "a memory and a time limit, averaged over all limits from 0 to the budget "
    "and to the longest trial",
}
_ROWS: dict[Costs, str] = {
    (): "The best quality found within the budget.",
    ("memory",): "By rising memory: each row is the best quality found for that memory, and the "
    "last one, in bold, is the best of all.",
    ("time",): "By rising time: each row is the best quality found for that time, and the last "
    "one, in bold, is the best of all.",
    ("memory", "time"): "By rising memory: no other trial is as good as a row in quality, memory "
    "and time at once; the best quality of all is in bold.",
}


def notes(costs: Costs) -> dict[str, str]:
    """The texts by the name of their place on the page."""
    history = "The line is the best quality so far: where it stays flat,"
    if costs:
        history = (
            "The upper line is the best quality so far; the hypervolume is the best quality for "
            f"{_LIMITS[costs]}: where both stay flat,"
        )
    blue = (
        "the blue ones, those on the front, show which of its values are worth choosing"
        if costs
        else "the blue one is the best trial"
    )
    which = "the trials on the front, with their numbers" if costs else "the best trial"
    bold = (
        "Those on the front are in colour, by loss where there are several: where they meet, they "
        "agree. Up to"
        if costs
        else "The best is in colour, up to"
    )
    return {
        "kicker": _KICKERS[costs],
        "front_title": "Pareto front" if costs else "Quality and memory",
        "front_note": f"A circle is a trial that trained to its end, and {_LINES[costs]}; trials "
        "without a quality stand in the strip below, at the memory that they took, were predicted "
        "to take or, as a triangle, took at least. A bar is a standard deviation of several "
        "trainings to each side; a band lies between what the worst and the best of them reach.",
        "value_note": "The best quality that was found within a memory limit and, below, what "
        "each doubling of the limit added. The knee is the trial farthest above the straight "
        "line between the ends of the front: up to it a doubling adds more than the average one, "
        "beyond it less.",
        "anatomy_note": "The bars are the parts of the peak as it was predicted; the upright mark "
        "is the peak that was measured, and the figure on the right by how much it differs from "
        "the prediction.",
        "history_note": f"{history} the search has stopped finding anything better. "
        "Below, where there are any, the number of trials that ended without a quality.",
        "timeline_note": "A row is a worker, a bar a trial from its start to its end, or to the "
        "edge while it runs. Time without a worker, as between two commands, is left out; repeats "
        "are not drawn.",
        "importance_note": "How far the values of a setting among the best quarter of the trials "
        "that trained to their end are from those among all of them, less what chance alone would "
        "give (PED-ANOVA), in percent of all settings together: for the best quality, and for the "
        "least memory. A setting that only some trials have is judged among these.",
        "parameters_note": "A parameter matters where its points rise or fall from left to right, "
        f"and {blue}.",
        "parallel_note": "A line is a trial that trained to its end, from its settings down to "
        f"its memory and its quality. {bold} 100 others are in grey.",
        "losses_note": "The best quality found with each loss within a memory limit. A search "
        "prefers what it finds good, so losses have had different numbers of trials.",
        "curves_note": f"The quality after each epoch: of {which}, coloured by loss where there "
        "are several, and of up to 100 others in grey. A mark stands where a trial ended early.",
        "table_title": "The trials of the front" if costs else "The best trial",
        "table_note": _ROWS[costs],
    }
