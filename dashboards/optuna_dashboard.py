"""Our figures in optuna-dashboard, where that is installed: it shows what a study has saved."""

from importlib.util import find_spec

import optuna

from dashboards import theme
from dashboards.history import history_figure
from dashboards.pareto import pareto_figure
from dashboards.queries import StudyView


def save_figures(study: optuna.Study, view: StudyView) -> bool:
    """Saves the front and the history into the study, in place of those of an earlier time.

    They are kept in its storage, in pieces of 2 KB which everything that reads the study reads,
    too: so these two alone, with trial numbers in place of hover texts.

    Returns:
        Whether there are any: not without optuna-dashboard, nor before a trial is complete.
    """
    if not view.complete or find_spec("optuna_dashboard") is None:
        return False
    from optuna_dashboard import save_plotly_graph_object

    for name, figure in (("front", pareto_figure(view)), ("history", history_figure(view))):
        figure.update_traces(
            hovertext=None, hovertemplate="trial %{customdata}", selector={"hoverinfo": "text"}
        )
        # Its panels are 490 pixels high.
        title = {"text": f"ParetoCut: {name}", "y": 0.97, "yanchor": "top"}
        figure.update_layout(title=title, margin_t=100, height=480)
        save_plotly_graph_object(
            study, theme.on_white(figure), graph_object_id=f"paretocut-{name}"
        )
    return True
