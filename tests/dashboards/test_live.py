"""What the live app reads from an address, and what it tells a browser."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import theme
from dashboards.compare import compare_figure
from dashboards.live import figures
from dashboards.live.choice import MIB, Choice, at_budget
from dashboards.live.figures import Figure, changes
from dashboards.live.server import build_app
from dashboards.live.studies import Shelf, Studies
from dashboards.queries import StudyView, build_view
from dashboards.sections import SECTIONS
from objectives.errors import UserError
from study.records import StudyRecord
from tests.dashboards.conftest import MakeStudy, MakeTrial


def view_of(record: StudyRecord) -> StudyView:
    return build_view(record, "http://mlflow.lan:5000")


def draw(view: StudyView, tab: str) -> dict[str, Figure]:
    return figures.draw(SECTIONS[tab](view))


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
ENDS = st.none() | st.integers(0, 5000).map(float)


@given(
    st.builds(
        Choice,
        tab=st.sampled_from(list(SECTIONS)),
        budget=st.none() | st.integers(0, 10**6),
        trial=st.none() | st.integers(0, 10**6),
        outcomes=st.lists(WORDS, max_size=2).map(tuple),
        losses=st.lists(WORDS, max_size=2).map(tuple),
        spans=st.dictionaries(
            WORDS, st.tuples(ENDS, ENDS).filter(lambda span: span != (None, None)), max_size=2
        ),
        words=st.dictionaries(
            WORDS, st.lists(WORDS, min_size=1, max_size=2).map(tuple), max_size=2
        ),
    )
)
def test_an_address_says_what_is_looked_at(choice: Choice) -> None:
    assert Choice.parse(choice.query) == choice


@pytest.mark.parametrize("query", ["?tab=x", "?budget=-1&trial=1.5", "?p.a=b", "?%%%&&=", "?a=1"])
def test_what_makes_no_sense_is_left_out(query: str) -> None:
    assert Choice.parse(query) == Choice()


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", list(range(9))),
        ("?outcome=complete", [0, 1, 2]),
        ("?outcome=pruned&outcome=failed", [6, 7]),
        ("?p.batch_size=16..24", [1, 2]),
        ("?p.batch_size=..16", [0, 1]),
        ("?p.batch_size=x..16", [0, 1]),
        ("?p.other=1..2", []),
        ("?w.batch_size=8&w.batch_size=72", [0, 8]),
        ("?loss=cce", []),
    ],
)
def test_a_choice_of_trials(mixed: StudyRecord, query: str, numbers: list[int]) -> None:
    assert [trial.number for trial in Choice.parse(query).of(mixed).trials] == numbers


def test_trainings_stay_together(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    again = make_trial(1, quality=0.2, repeat_of=0, params={})
    study = make_study(make_trial(0), again, make_trial(2))
    chosen = Choice.parse("?p.batch_size=..8").of(study)
    assert [trial.number for trial in chosen.trials] == [0, 1]
    (trial,) = view_of(chosen).complete
    assert trial.trainings == 2


def test_a_smaller_budget_has_another_front_and_another_best(mixed: StudyRecord) -> None:
    view = view_of(mixed)
    small = at_budget(view, 400 * MIB)
    assert small.budget == 400 * MIB
    assert [trial.number for trial in small.front] == [0]
    assert small.best is not None
    assert small.best.number == 0
    beyond = [trial.number for trial in small.complete if trial.group == "infeasible"]
    assert beyond == [1, 2]
    (figure,) = draw(small, "front").values()
    trace = next(each for each in figure["data"] if each.get("customdata") == [1, 2])
    assert trace["y"] == [0.12, 0.11]
    assert at_budget(view, 100 * MIB).best is None


def test_a_smaller_budget_where_memory_is_no_objective(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    trials = [
        make_trial(0, quality=0.10, peak_memory=256 * MIB, seconds=40.0),
        make_trial(1, quality=0.12, peak_memory=512 * MIB, seconds=20.0),
        make_trial(2, quality=0.09, peak_memory=256 * MIB, seconds=30.0),
    ]
    for objectives, whole, inside in (
        (["quality"], [1], [0]),
        (["quality", "time"], [1], [2, 0]),
    ):
        view = view_of(make_study(*trials, objectives=objectives))
        assert [trial.number for trial in view.front] == whole
        small = at_budget(view, 300 * MIB)
        assert [trial.number for trial in small.front] == inside
        assert {trial.group for trial in small.front} == {view.front[0].group}
        assert at_budget(view, 1024 * MIB).trials == view.trials


@pytest.mark.parametrize("tab", list(SECTIONS))
def test_every_tab_is_drawn_for_every_study(
    make_study: MakeStudy, mixed: StudyRecord, timed: StudyRecord, tab: str
) -> None:
    for record in (make_study(), mixed, timed, replace(mixed, trials=mixed.trials[3:])):
        assert all(figure["layout"]["height"] for figure in draw(view_of(record), tab).values())


def applied(patch: Any, figure: dict[str, Any]) -> dict[str, Any]:
    """The figure with a patch applied, as a browser does it."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: copied(each) for key, each in value.items()}
        return [copied(each) for each in value] if isinstance(value, list | tuple) else value

    figure = copied(figure)
    for step in patch.to_plotly_json()["operations"]:
        *way, last = (
            step["location"]
            if step["operation"] in ("Assign", "Delete")
            else [
                *step["location"],
                None,
            ]
        )
        place: Any = figure
        for key in way:
            place = place[key]
        match step["operation"]:
            case "Assign":
                place[last] = copied(step["params"]["value"])
            case "Delete":
                del place[last]
            case "Extend":
                place.extend(step["params"]["value"])
            case "Insert":
                place.insert(step["params"]["index"], step["params"]["value"])
            case other:
                raise AssertionError(other)
    return figure


def same(one: Any, other: Any) -> bool:
    """Whether two figures are alike, lists or tuples."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("tab", list(SECTIONS))
def test_what_is_told_makes_the_new_figure_of_the_old_one(
    make_trial: MakeTrial, make_study: MakeStudy, mixed: StudyRecord, tab: str
) -> None:
    qualities = [0.1, 0.3, 0.2, 0.35, 0.34, 0.1, 0.5, 0.05]
    trials = [
        make_trial(number, quality=quality, peak_memory=(1 + number * 3 % 7) * 50 * MIB)
        for number, quality in enumerate(qualities)
    ]
    states = [make_study(*trials[:count]) for count in range(len(trials) + 1)]
    states += [mixed, make_study(*trials[2:5]), make_study()]
    for before, after in pairwise(states):
        old, new = draw(view_of(before), tab), draw(view_of(after), tab)
        for key, figure in new.items():
            if key in old:
                patch = changes(old[key], figure)
                assert same(figure, applied(patch, old[key]) if patch else old[key])


def test_of_a_grown_study_little_is_told(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    trials = [make_trial(number, quality=0.1 + number % 89 / 1000) for number in range(400)]
    before, after = make_study(*trials[:-1]), make_study(*trials)
    old, new = (draw(view_of(record), "front")["front"] for record in (before, after))
    assert changes(old, old) is None
    patch = changes(old, new)
    assert patch is not None
    told = patch.to_plotly_json()["operations"]
    assert len(str(told)) < len(str(new)) / 50


def test_many_trials_are_drawn_on_the_graphics_card_and_described_shortly(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    trials = [
        make_trial(number, quality=0.1 - number * 1e-6, peak_memory=number * MIB)
        for number in range(1, theme.MANY + 3)
    ]
    (figure,) = draw(view_of(make_study(*trials)), "front").values()
    many = max(figure["data"], key=lambda trace: len(trace["x"]))
    assert many["type"] == "scattergl"
    assert "hovertext" not in many
    assert "Trial %{customdata}" in many["hovertemplate"]
    assert {trace["type"] for trace in figure["data"] if trace is not many} == {"scatter"}


def test_fronts_beside_each_other(
    mixed: StudyRecord, make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    views = [view_of(mixed), view_of(make_study(make_trial(0), name="<b>"))]
    figure = compare_figure(views)
    fronts = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in fronts] == ["toy", "&lt;b&gt;"]
    assert list(fronts[0].y) == [0.10, 0.12]
    assert fronts[0].marker.color != fronts[1].marker.color
    assert fronts[0].marker.symbol != fronts[1].marker.symbol


def test_a_shelf_keeps_what_was_put_there_last() -> None:
    shelf = Shelf(2)
    for key in ("a", "b", "a", "c"):
        shelf.keep(key, key)
    assert list(shelf) == ["a", "c"]


def test_reading_ahead_leaves_it_to_the_page_to_say_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.db").write_text("no database")
    studies = Studies(None, tmp_path, "http://mlflow.lan:5000")
    studies.read_ahead()
    with pytest.raises(UserError, match="file is not a database"):
        studies.view("broken", Choice())


def test_a_browser_that_has_plotly_is_not_sent_it_again(tmp_path: Path) -> None:
    client = build_app(Studies(None, tmp_path, "http://mlflow.lan:5000")).server.test_client()
    first = client.get("/plotly.js")
    assert first.mimetype == "text/javascript"
    assert b'\n"use strict";var Plotly=' in first.data
    again = client.get("/plotly.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
