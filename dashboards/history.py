"""Quality and hypervolume over the trials: whether the search still finds something."""

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import value_range
from dashboards.queries import Group, StudyView


def history_figure(view: StudyView) -> go.Figure:
    """Complete trials and the best so far; below, the hypervolume after each finished trial.

    Where quality is the only objective, the best so far is all there is.
    """
    alone = len(view.objectives) == 1
    figure = theme.figure(320 if alone else 480)
    last = view.trials[-1].number + 1 if view.trials else 0
    figure.update_layout(
        xaxis=theme.axis(
            title={"text": "Trial"},
            anchor="y" if alone else "y2",
            range=[-0.02 * last, 1.02 * last],
            dtick=1 if last <= 10 else None,
        ),
        yaxis=theme.axis(
            title={"text": "Validation NDCG@10"},
            domain=[0 if alone else 0.44, 1],
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
        _draw_hypervolume(figure, view)
    return figure


def _draw_hypervolume(figure: go.Figure, view: StudyView) -> None:
    volumes = [moment.hypervolume for moment in view.history]
    figure.update_layout(
        yaxis2=theme.axis(
            title={"text": "Hypervolume"}, domain=[0, 0.36], range=value_range(volumes), nticks=5
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
