from collections.abc import Callable

import pytest

from dashboards.page import render
from dashboards.queries import StudyView, build_view
from dashboards.value import best_within, doublings, knee, value_figure
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]
MakeView = Callable[..., StudyView]


@pytest.fixture
def view_of(make_trial: MakeTrial, make_study: MakeStudy) -> MakeView:
    """A study of complete trials with these pairs of MiB and quality."""

    def make(*points: tuple[float, float], budget: int = GIB) -> StudyView:
        trials = (
            make_trial(number, peak_memory=int(mib * MIB), quality=quality)
            for number, (mib, quality) in enumerate(points)
        )
        return build_view(make_study(*trials, memory_budget=budget), "x")

    return make


def test_the_best_within_a_limit_is_not_the_largest(view_of: MakeView) -> None:
    view = view_of((100, 0.1), (200, 0.3), (300, 0.2), (400, 0.3))
    best = [best_within(view, mib * MIB) for mib in (99, 100, 299, 1000)]
    assert [trial and trial.number for trial in best] == [None, 0, 1, 1]


def test_the_best_within_a_limit_does_not_depend_on_time(timed: StudyRecord) -> None:
    view = build_view(timed, "x")
    best = best_within(view, GIB)
    assert best is not None
    assert best.number == 1
    assert list(value_figure(view).data[1].customdata) == [0, 1], "2 is there for its time alone"


def test_doublings_end_at_the_budget_and_begin_where_something_fits(view_of: MakeView) -> None:
    view = view_of((200, 0.1), (300, 0.2), (600, 0.25))
    assert [(each.low / MIB, each.high / MIB) for each in doublings(view)] == [
        (256, 512),
        (512, 1024),
    ]
    assert [each.gain for each in doublings(view)] == pytest.approx([0.1, 0.05])
    last = doublings(view)[-1]
    assert (last.low, last.before, last.after) == (512 * MIB, 0.2, 0.25)


def test_memory_that_bought_nothing_is_not_doubled(view_of: MakeView) -> None:
    view = view_of((200, 0.1), (300, 0.2), budget=64 * GIB)
    assert [each.high / MIB for each in doublings(view)] == [512]
    figure = value_figure(view)
    assert figure.layout.annotations[0].text == "budget 64.00 GiB →"


@pytest.mark.parametrize("points", [(), ((700, 0.1),), ((600, 0.1), (700, 0.2))])
def test_where_nothing_fits_half_there_is_no_doubling(
    points: tuple[tuple[float, float], ...], view_of: MakeView
) -> None:
    view = view_of(*points)
    assert doublings(view) == []
    if points:
        assert len(value_figure(view).data) == 2


@pytest.mark.parametrize(
    ("points", "number"),
    [
        ([(64, 0.1), (128, 0.2), (256, 0.22), (512, 0.23)], 1),
        ([(64, 0.1), (128, 0.15), (512, 0.29), (1024, 0.3)], 2),
        ([(64, 0.1), (512, 0.2)], None),
        ([(64, 0.1), (128, 0.11), (256, 0.3)], None),
        ([(64, 0.1), (128, 0.05)], None),
        ([], None),
    ],
)
def test_the_knee_is_farthest_above_the_chord(
    points: list[tuple[float, float]], number: int | None, view_of: MakeView
) -> None:
    found = knee(view_of(*points))
    assert (found and found.number) == number


def test_the_line_the_bars_and_the_knee_are_drawn(view_of: MakeView) -> None:
    view = view_of((64, 0.1), (128, 0.2), (256, 0.22), (200, 0.15))
    figure = value_figure(view)
    line, front, bars = figure.data
    assert list(line.y) == [0.1, 0.2, 0.22, 0.22]
    assert list(line.x[:3]) == [64, 128, 256]
    assert line.x[3] == pytest.approx(10 ** figure.layout.xaxis.range[1])
    assert list(front.customdata) == [0, 1, 2]
    assert [(x, x + width) for x, width in zip(bars.x, bars.width, strict=True)] == [
        (64, pytest.approx(128, rel=0.04)),
        (128, pytest.approx(256, rel=0.04)),
    ]
    assert list(bars.text) == [
        "+0.1000<br>64.0 MiB to 128.0 MiB",
        "+0.0200<br>128.0 MiB to 256.0 MiB",
    ]
    assert bars.hovertext[1] == "from 128.0 MiB to 256.0 MiB: 0.2000 to 0.2200"
    assert figure.layout.xaxis.type == "log"
    (note,) = [each for each in figure.layout.annotations if each.text.startswith("knee")]
    assert note.text == "knee: trial 1"
    assert (10**note.x, note.y) == (pytest.approx(128), 0.2)


def test_many_bars_say_the_gain_alone(view_of: MakeView) -> None:
    view = view_of(*((2**power, power / 100) for power in range(1, 8)))
    bars = value_figure(view).data[-1]
    assert len(bars.text) > 4
    assert set(bars.text) == {"+0.0100"}


def test_page_leaves_out_what_no_trial_bought(
    mixed: StudyRecord, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    title = "What a GiB buys"
    assert title in render(build_view(mixed, "x"))
    assert title not in render(build_view(make_study(make_trial(0, "pruned")), "x"))
    alone = make_study(make_trial(0), objectives=["quality"])
    assert title not in render(build_view(alone, "x"))
