import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from dashboards.compare import compare_figure, limits
from dashboards.compare_page import render_comparison
from dashboards.queries import StudyView, build_view
from dashboards.report import main
from dashboards.value import best_within
from dashboards.words import comparison
from study.ledger import Ledger, connect, default_storage
from study.records import StudyRecord, TrialRecord

MIB, GIB = 2**20, 2**30

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


def view_of(record: StudyRecord) -> StudyView:
    return build_view(record, "x")


@pytest.fixture
def other(make_trial: MakeTrial, make_study: MakeStudy) -> StudyRecord:
    """Better than `mixed` with little memory, worse with more, in half of the budget."""
    return make_study(
        make_trial(0, quality=0.11, peak_memory=130 * MIB),
        make_trial(1, quality=0.115, peak_memory=500 * MIB),
        make_trial(2, quality=0.1, peak_memory=500 * MIB),
        name="other",
        memory_budget=GIB // 2,
    )


def test_the_best_within_a_limit(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    view = view_of(
        make_study(
            make_trial(0, peak_memory=300 * MIB),
            make_trial(1, peak_memory=200 * MIB),
            make_trial(2, "pruned", peak_memory=10 * MIB),
            make_trial(3, quality=0.2, peak_memory=600 * MIB),
        )
    )
    found = [best_within(view, limit * MIB) for limit in (100, 200, 300, 599, 600)]
    assert [None if trial is None else trial.number for trial in found] == [None, 1, 1, 1, 3]


def test_limits_are_the_budgets_and_halvings_of_the_smallest(
    mixed: StudyRecord, other: StudyRecord
) -> None:
    views = [view_of(mixed), view_of(other)]
    assert [limit // MIB for limit in limits(views)] == [256, 512, 1024]
    assert limits([view_of(replace(mixed, trials=()))]) == [GIB]


def test_a_line_for_each_study_that_has_something(
    mixed: StudyRecord, other: StudyRecord, timed: StudyRecord
) -> None:
    empty = replace(mixed, name="empty", trials=())
    evil = replace(timed, name="<b>evil</b>")
    figure = compare_figure([view_of(mixed), view_of(empty), view_of(other), view_of(evil)])
    marks = [trace for trace in figure.data if trace.mode == "markers"]
    assert [trace.name for trace in marks] == ["toy", "other", "&lt;b&gt;evil&lt;/b&gt;"]
    assert [list(trace.y) for trace in marks] == [[0.10, 0.12], [0.11, 0.115], [0.10, 0.12]]
    assert list(marks[1].x) == [130, 500]
    assert len({trace.marker.color for trace in marks}) == 3
    assert len({trace.marker.symbol for trace in marks}) == 3
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert lines[1].x[-1] == 512, "to its own budget"
    assert marks[1].hovertext[0].startswith("<b>other</b><br><b>Trial 0</b>")


def test_the_page_has_the_bests_at_equal_memory(mixed: StudyRecord, other: StudyRecord) -> None:
    page = render_comparison([view_of(mixed), view_of(other)])
    own = page.partition("<script>")[0]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", own)]
    assert rows[1:] == [
        ["256.0 MiB", "0.1000, trial 0", "<strong>0.1100, trial 0</strong>"],
        ["512.0 MiB", "<strong>0.1200, trial 1</strong>", "0.1150, trial 1"],
        ["1.00 GiB", "<strong>0.1200, trial 1</strong>", "not searched"],
    ]
    for text in ("<h2>toy</h2>", "<h2>other</h2>", "Trial 1 is the best within 512.0 MiB"):
        assert text in own
    assert len(page.encode()) < 7_000_000


def test_the_comparison_in_words(mixed: StudyRecord, other: StudyRecord) -> None:
    a, b = view_of(mixed), view_of(other)
    assert comparison([b, a]) == (
        "Within 512.0 MiB, the smallest budget, toy reaches a validation NDCG@10 of 0.1200 (trial "
        "1, 512.0 MiB); other 0.1150 (trial 1, 500.0 MiB)."
    )
    empty = view_of(replace(mixed, name="empty", trials=()))
    alone = replace(a, objectives=("quality",))
    assert comparison([alone, empty]) == (
        "Within 1.00 GiB, toy reaches a validation NDCG@10 of 0.1200 (trial 1, 512.0 MiB); empty "
        "has no trial that trained to its end. They did not search for the same objectives."
    )


def test_hostile_names_are_text(mixed: StudyRecord) -> None:
    evil = "</script><script>alert(1)</script><img src=x>$name"
    views = [view_of(replace(mixed, name=evil)), view_of(mixed)]
    page = render_comparison(views)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.fixture
def folder(tmp_path: Path, mixed: StudyRecord) -> Path:
    """Studies in which nothing has run: two that can be compared, and two others."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = {"name": "other", "digest": "1", "split": "temporal"}
    identities: dict[str, dict[str, object]] = {
        "a": {},
        "b": {"memory_budget": 2 * GIB},
        "elsewhere": {"data": data},
        "cpu": {"memory_source": "tracked"},
    }
    for name, identity in identities.items():
        (tmp_path / name).mkdir()
        storage = connect(default_storage(tmp_path, name))
        Ledger.create(storage, name, {**mixed.identity, **identity})
    return tmp_path


def test_the_command_compares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--study", "a", "--study", "b", "--output-dir", str(folder)]) == 0
    path = folder / "comparison.html"
    assert capsys.readouterr() == (f"{path}\n", "")
    assert "<h1>a, b</h1>" in path.read_text("utf-8")
    assert main(["--study", "a", "--study", "a", "--output-dir", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}/a/report.html\n", "one study, named twice"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--study", "elsewhere"], "on the same data and split alone; a is on ml-100k (leave-one"),
        (["--study", "cpu"], "these cannot be compared"),
        (["--study", "c"], "which has: a, b, cpu, elsewhere"),
        (["--study", "b", "--output", "x.csv"], "of several studies there is a page alone"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--study", "a", *arguments, "--output-dir", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err
