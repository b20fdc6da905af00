"""Memory limits on an axis of memory: the study's budget, and the cards that people have."""

import math

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import MemoryAxis
from study.budget import format_bytes
from study.estimate_table import CARDS

_LABEL = 0.14
"""Share of the axis that the label of a card takes on a phone."""


def draw_budget(figure: go.Figure, budget: int, axis: MemoryAxis) -> None:
    """A line at the budget, or a word at the edge beyond which it lies."""
    text = f"budget {format_bytes(budget)}"
    label = {"yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False, "font_size": 12}
    if axis.budget == "right":
        figure.add_annotation(text=f"{text} →", xref="paper", x=1, xanchor="right", **label)
    elif axis.budget == "left":
        figure.add_annotation(text=f"← {text}", xref="paper", x=0, xanchor="left", **label)
    else:
        side = "right" if axis.share(budget) > 0.5 else "left"
        figure.add_annotation(text=text, x=axis.position(budget), xanchor=side, **label)
        _draw_line(figure, axis.place(budget), width=1.5, dash="dash")


def draw_cards(figure: go.Figure, budget: int, axis: MemoryAxis) -> None:
    """Lines at common cards, as many as can be told apart, but for one that is the budget.

    Their labels stand within the plot, at the top: apart from the budget's, and above all trials.
    """
    free = 0.0
    for size in CARDS:
        card = size << 30
        if card <= axis.low or math.isclose(card, budget, rel_tol=0.05):
            continue
        share = axis.share(card)
        if not free <= share <= 1 - _LABEL:
            continue
        free = share + _LABEL
        _draw_line(figure, axis.place(card), width=1, dash="dot")
        figure.add_annotation(
            text=f"{size} GiB",
            x=axis.position(card),
            xanchor="left",
            yref="paper",
            y=1,
            yanchor="top",
            showarrow=False,
            font_size=11,
        )


def _draw_line(figure: go.Figure, x: float, width: float, dash: str) -> None:
    figure.add_shape(
        type="line",
        layer="below",
        x0=x,
        x1=x,
        yref="paper",
        y0=0,
        y1=1,
        line={"color": theme.NEUTRAL, "width": width, "dash": dash},
    )
