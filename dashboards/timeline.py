"""The search over time: hypervolume, and what each worker did."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from datetime import datetime

import plotly.graph_objects as go

from dashboards import theme
from dashboards.axes import value_range
from dashboards.queries import WORDS, StudyView, TrialView

_PANE, _GAP, _ROW, _ROWS = 150, 26, 24, 480
"""Pixels: the plot of the hypervolume, a gap, a worker's row, and the most for all rows."""

_TOP, _BOTTOM = 52, 52

_UNITS = (("Hours", 3600), ("Minutes", 60), ("Seconds", 1))


class Clock:
    """Seconds in which a study was at work, since it began.

    Time without a worker at work, as between two commands, does not pass.

    Attributes:
        lanes: Worker -> its row; a process that ended before another began leaves it its row.
        end: Seconds at the last moment that is known, one at least.
    """

    def __init__(self, trials: Iterable[TrialView]) -> None:
        """Of trials that have started."""
        spans: dict[str, tuple[datetime, datetime]] = {}
        for trial in trials:
            if trial.started is not None:
                ended = max(trial.finished or trial.started, trial.started)
                first, last = spans.get(worker_of(trial), (trial.started, ended))
                spans[worker_of(trial)] = min(first, trial.started), max(last, ended)
        self.lanes: dict[str, int] = {}
        self._sessions: list[tuple[datetime, float]] = []
        self.end = 0.0
        until: list[datetime] = []
        for worker, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
            if not until or first > max(until):
                self._sessions.append((first, self.end))
            free = (lane for lane, busy in enumerate(until) if busy <= first)
            lane = self.lanes[worker] = next(free, len(until))
            until[lane : lane + 1] = [last]
            self.end = self(max(until))
        self.end = max(self.end, 1.0)

    def __call__(self, moment: datetime) -> float:
        """Seconds at a moment at which the study was at work."""
        place = bisect_right(self._sessions, moment, key=lambda session: session[0]) - 1
        began, passed = self._sessions[place]
        return passed + (moment - began).total_seconds()


def worker_of(trial: TrialView) -> str:
    """The process that it ran in; in earlier versions each trial counts as one."""
    return trial.worker or str(trial.number)


def timeline_figure(view: StudyView) -> go.Figure:
    """Hypervolume by time at work; below, a row per worker with a bar for each trial.

    A trial that is running is drawn to the edge.
    """
    clock = Clock(view.trials)
    name, unit = next((each for each in _UNITS if clock.end >= 2 * each[1]), _UNITS[-1])
    end = clock.end / unit
    rows = max(clock.lanes.values(), default=0) + 1
    row = min(_ROW, _ROWS / rows)
    pane = _PANE if len(view.objectives) > 1 and view.complete else 0
    plot = round(pane + (_GAP if pane else 0) + row * rows)
    labelled = list(range(0, rows, math.ceil(rows * _ROW / _ROWS)))
    figure = theme.figure(
        plot + _TOP + _BOTTOM,
        margin={"t": _TOP, "b": _BOTTOM, "l": 68},
        showlegend=True,
        legend={"y": 1 + 10 / plot},
        xaxis=theme.axis(
            title={"text": f"{name} at work"}, range=[-0.01 * end, 1.03 * end], anchor="y2"
        ),
        yaxis=theme.axis(
            title={"text": "Hypervolume"},
            domain=[1 - pane / plot, 1],
            range=value_range([moment.hypervolume for moment in view.history]),
            nticks=5,
            visible=bool(pane),
        ),
        yaxis2=theme.axis(
            domain=[0, row * rows / plot],
            range=[rows - 0.5, -0.5],
            tickvals=labelled,
            ticktext=[f"worker {place + 1}" for place in labelled],
            showgrid=False,
            fixedrange=True,
        ),
    )
    if pane:
        _draw_hypervolume(figure, view, clock, unit)
    _draw_trials(figure, view, clock, unit, row)
    return figure


def _draw_hypervolume(figure: go.Figure, view: StudyView, clock: Clock, unit: int) -> None:
    finished = {trial.number: trial.finished for trial in view.trials if trial.started}
    x, y, numbers, last = [], [], [], 0.0
    for moment in view.history:
        ended = finished.get(moment.number)
        if ended is not None:
            # Once all trials of lower numbers have ended, too.
            last = max(last, clock(ended) / unit)
            x.append(last)
            y.append(moment.hypervolume)
            numbers.append(moment.number)
    figure.add_trace(
        theme.step(
            x,
            y,
            theme.MARKS["front"].color,
            customdata=numbers,
            mode="lines" if len(x) > 1 else "markers",
            hoverinfo=None,
            hovertemplate="after trial %{customdata}: hypervolume %{y:.4f}<extra></extra>",
        )
    )


def _draw_trials(figure: go.Figure, view: StudyView, clock: Clock, unit: int, row: float) -> None:
    """The bars of each group as one line with gaps: thousands are drawn at once."""
    least, edge = 0.002 * clock.end, 1.03 * clock.end
    for group in WORDS:
        x: list[float | None] = []
        y: list[int | None] = []
        numbers: list[int] = []
        for trial in view.of(group):
            if trial.started is None:
                continue
            start = clock(trial.started)
            stop = clock(trial.finished or trial.started) if group != "running" else edge
            # What follows at once is told apart by a gap; what took no time is seen.
            stop = max(stop - least / 2, start + least / 2)
            # A line is pointed at where it has points: they are as near as a pointer reaches.
            parts = math.ceil((stop - start) / (0.02 * clock.end))
            step = (stop - start) / parts
            x += [round((start + step * part) / unit, 4) for part in range(parts + 1)]
            y += [clock.lanes[worker_of(trial)]] * (parts + 1)
            x.append(None)
            y.append(None)
            numbers += [trial.number] * (parts + 2)
        if x:
            figure.add_trace(
                theme.scatter(
                    x=x,
                    y=y,
                    yaxis="y2",
                    customdata=numbers,
                    name=WORDS[group],
                    mode="lines",
                    line={"width": row / 2, "color": theme.MARKS[group].color},
                    hovertemplate=theme.template(group),
                )
            )
