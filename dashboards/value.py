"""What a GiB buys: the best quality within a memory limit, and what doubling the limit adds."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import log_memory_axis, value_range
from dashboards.limits import draw_budget, draw_cards
from dashboards.queries import StudyView, TrialView
from study.budget import format_bytes
from study.front import knee as front_knee
from study.front import pareto_front


@dataclass(frozen=True)
class Doubling:
    """Twice the memory, and what it buys.

    Attributes:
        low: A memory limit in bytes.
        high: Twice that.
        before: The best quality within the lower limit.
        after: The best quality within the higher one.
    """

    low: float
    high: float
    before: float
    after: float

    @property
    def gain(self) -> float:
        """What the quality gains."""
        return self.after - self.before


def best_within(view: StudyView, memory: float) -> TrialView | None:
    """The best complete trial within a memory limit in bytes; of equals that of least memory."""
    return _last_within(memory_front(view.complete), memory)


def _last_within(front: Sequence[TrialView], memory: float) -> TrialView | None:
    within = [trial for trial in front if (trial.memory or 0) <= memory]
    return within[-1] if within else None


def memory_front(complete: Sequence[TrialView]) -> list[TrialView]:
    """Those of complete trials that no other beats in quality and memory, by rising memory."""
    trials = sorted(complete, key=lambda trial: trial.memory or 0)
    points = [(trial.quality or 0.0, float(trial.memory or 0)) for trial in trials]
    return [trials[index] for index in pareto_front(points)]


def doublings(view: StudyView) -> list[Doubling]:
    """Doublings of the memory limit by rising memory, the budget being the end of one.

    They begin where something fits, and end with the one after which nothing better was found.
    """
    front = memory_front(view.complete)
    if not front:
        return []
    least, most = (trial.memory or 1 for trial in (front[0], front[-1]))
    high = float(view.budget)
    while high / 2 >= most:
        high /= 2
    found = []
    while high / 2 >= least:
        before, after = _last_within(front, high / 2), _last_within(front, high)
        assert before is not None
        assert after is not None
        found.append(Doubling(high / 2, high, before.quality or 0.0, after.quality or 0.0))
        high /= 2
    return found[::-1]


def knee(view: StudyView) -> TrialView | None:
    """The trial at the knee of quality over memory; see `study.front.knee`."""
    front = memory_front(view.complete)
    index = front_knee([(trial.quality or 0.0, float(trial.memory or 0)) for trial in front])
    return None if index is None else front[index]


def value_figure(view: StudyView) -> go.Figure:
    """The best quality within every memory limit; below, what each doubling of it adds."""
    front, bars = memory_front(view.complete), doublings(view)
    least, most = (trial.memory or 1 for trial in (front[0], front[-1]))
    ends = [bar.high for bar in bars]
    axis = log_memory_axis(least, max([most, *ends]), view.budget)
    figure = theme.figure(
        480 if bars else 320,
        xaxis=theme.axis(**axis.layout(), anchor="y2" if bars else "y"),
        yaxis=theme.axis(
            title={"text": "Best NDCG@10"},
            domain=[0.42 if bars else 0, 1],
            range=value_range([trial.quality or 0.0 for trial in front]),
            nticks=6,
        ),
        margin={"t": 28},
    )
    draw_cards(figure, view.budget, axis)
    draw_budget(figure, view.budget, axis)
    x = axis.places(front)
    y = [trial.quality for trial in front]
    end = axis.place(max(most, min(view.budget, axis.high)))
    figure.add_trace(theme.step([*x, end], [*y, y[-1]], theme.MARKS["front"].color))
    hover = theme.template("front", "NDCG@10 %{y:.4f}", f"%{{x:.4~g}} {axis.unit_name}")
    figure.add_trace(theme.points("front", front, x, y, hovertemplate=hover))
    turn = knee(view)
    if turn is not None:
        # Above and below the line there is nothing else.
        right = axis.share(turn.memory or 1) < 0.5
        figure.add_annotation(
            text=f"knee: trial {turn.number}",
            x=axis.position(turn.memory or 1),
            y=turn.quality,
            ax=24 if right else -24,
            ay=36 if right else -24,
            xanchor="left" if right else "right",
            arrowwidth=1,
            arrowhead=0,
            standoff=8,
            arrowcolor=theme.NEUTRAL,
        )
    if bars:
        _draw_doublings(figure, bars, axis.unit)
    return figure


def _draw_doublings(figure: go.Figure, bars: list[Doubling], unit: int) -> None:
    gains = [bar.gain for bar in bars]
    figure.update_layout(
        yaxis2=theme.axis(
            title={"text": "Added by doubling"},
            domain=[0, 0.32],
            range=[0, 1.6 * max(gains) or 1],
            showgrid=False,
            showticklabels=False,
        )
    )
    figure.add_bar(
        x=[bar.low / unit for bar in bars],
        y=gains,
        yaxis="y2",
        # From its lower limit to its higher one, but for a gap.
        offset=[0.03 * bar.low / unit for bar in bars],
        width=[0.94 * bar.low / unit for bar in bars],
        marker={"color": theme.MARKS["front"].color, "opacity": 0.55},
        text=[_gain_text(bar, few=len(bars) < 5) for bar in bars],
        textposition="outside",
        textangle=-90 if len(bars) > 7 else 0,
        textfont={"size": 11},
        cliponaxis=False,
        hoverinfo="text",
        hovertext=[
            f"from {format_bytes(bar.low)} to {format_bytes(bar.high)}: "
            f"{bar.before:.4f} to {bar.after:.4f}"
            for bar in bars
        ],
        showlegend=False,
    )


def _gain_text(bar: Doubling, few: bool) -> str:
    """What a doubling adds, and where there is room also between which limits."""
    gain = f"+{bar.gain:.4f}"
    return f"{gain}<br>{format_bytes(bar.low)} to {format_bytes(bar.high)}" if few else gain
