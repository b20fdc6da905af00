"""The search over the trials: whether it still finds something, and what it spends itself on."""

from itertools import accumulate

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import value_range
from dashboards.lines import label_ends
from dashboards.queries import WORDS, Group, StudyView

_BEST, _OTHERS, _GAP, _MARGINS = 230, 148, 34, 68
"""Pixels: the plot of the quality, the ones below it, and what is between and around them."""

_WITHOUT_QUALITY: tuple[Group, ...] = ("infeasible", "pruned", "diverged", "failed")


def history_figure(view: StudyView) -> go.Figure:
    """Complete trials and the best so far; below, the hypervolume, and how many had no quality.

    Where quality is the only objective there is no hypervolume.
    """
    alone = len(view.objectives) == 1
    counted = [group for group in _WITHOUT_QUALITY if view.of(group)]
    panes = [_BEST] + ([] if alone else [_OTHERS]) + ([_OTHERS] if counted else [])
    plot = sum(panes) + _GAP * (len(panes) - 1)
    ends = list(accumulate(panes, lambda end, pane: end + _GAP + pane))
    domains = [
        [1 - end / plot, 1 - (end - pane) / plot] for end, pane in zip(ends, panes, strict=True)
    ]
    last = view.trials[-1].number + 1 if view.trials else 0
    figure = theme.figure(
        plot + _MARGINS,
        xaxis=theme.axis(
            title={"text": "Trial"},
            anchor="y3" if counted else "y" if alone else "y2",
            range=[-0.02 * last, 1.02 * last],
            dtick=1 if last <= 10 else None,
        ),
        yaxis=theme.axis(
            title={"text": "Validation NDCG@10"},
            domain=domains[0],
            range=value_range(view.qualities),
        ),
    )
    color = theme.MARKS["front"].color
    bests = [(moment.number, moment.best) for moment in view.history if moment.best is not None]
    figure.add_trace(
        theme.step([number for number, _ in bests], [best for _, best in bests], color)
    )
    groups: tuple[Group, ...] = ("dominated", "best" if alone else "front")
    for group in groups:
        trials = view.of(group)
        figure.add_trace(
            theme.points(
                group,
                trials,
                [trial.number for trial in trials],
                [trial.quality for trial in trials],
                hovertemplate=theme.template(group, "NDCG@10 %{y:.4f}"),
            )
        )
    if not alone:
        _draw_hypervolume(figure, view, domains[1])
    if counted:
        _draw_counts(figure, view, counted, domains[-1])
    return figure


def _draw_hypervolume(figure: go.Figure, view: StudyView, domain: list[float]) -> None:
    volumes = [moment.hypervolume for moment in view.history]
    figure.update_layout(
        yaxis2=theme.axis(
            title={"text": "Hypervolume"}, domain=domain, range=value_range(volumes), nticks=5
        )
    )
    figure.add_trace(
        theme.step(
            [moment.number for moment in view.history],
            volumes,
            theme.MARKS["front"].color,
            yaxis="y2",
            mode="lines" if len(view.history) > 1 else "markers",
            hoverinfo=None,
            hovertemplate="after trial %{x}: hypervolume %{y:.4f}<extra></extra>",
        )
    )


def _draw_counts(
    figure: go.Figure, view: StudyView, groups: list[Group], domain: list[float]
) -> None:
    """How many trials of each group there were so far."""
    last = view.trials[-1].number
    most = max(len(view.of(group)) for group in groups)
    ends = [0.0, 1.25 * most]
    figure.update_layout(
        yaxis3=theme.axis(
            title={"text": "Trials so far"},
            domain=domain,
            range=ends,
            nticks=4,
            dtick=1 if most <= 3 else None,
        )
    )
    for group in groups:
        numbers = [trial.number for trial in view.of(group)]
        counts = list(range(1, len(numbers) + 1))
        figure.add_trace(
            theme.step(
                [*numbers, last],
                [*counts, counts[-1]],
                theme.MARKS[group].color,
                yaxis="y3",
                customdata=[*numbers, numbers[-1]],
                hoverinfo=None,
                hovertemplate=theme.template(group, "%{y} so far"),
            )
        )
    labels = [
        (last, len(view.of(group)), f"{WORDS[group]} {len(view.of(group))}") for group in groups
    ]
    label_ends(figure, labels, ends, _OTHERS, yaxis="y3", textposition="top left")
