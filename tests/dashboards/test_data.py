from pathlib import Path

import pyarrow as pa
import pytest

from dashboards import data
from dashboards.data import activity_figure, lengths_figure, popularity_figure
from objectives.config import ColumnsConfig, FilterConfig
from objectives.data import sources
from objectives.data.facts import facts_of_log


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [
        f"u{u},i{(u * t) % 17},{1_709_465_696 + 9999 * t}" for u in range(20) for t in range(9)
    ]
    path = tmp_path / "<b>log.csv"
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    return path


def test_the_page_is_whole(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main([log.name, "--min-item-users=1"]) == 0
    assert capsys.readouterr().out == "data.html\n"
    page = Path("data.html").read_text()
    assert "&lt;b&gt;log" in page
    assert "<b>log" not in page
    for words in ("What it holds", "Where to start", "Interactions over time", "Gini"):
        assert words in page
    for key in ("lengths", "popularity", "activity"):
        assert f'id="figure-{key}"' in page


def test_a_log_without_times_has_no_course(log: Path) -> None:
    assert data.main([log.name, "--columns.time=none", "--output=page.html"]) == 0
    page = Path("page.html").read_text()
    assert "The log has no times." in page
    assert 'id="figure-activity"' not in page


def test_a_page_is_named_html(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main([log.name, "--output=page.png"]) == 2
    assert "--output page.png: it is a page; name it .html" in capsys.readouterr().err


def test_figures_show_the_whole_log_in_few_points() -> None:
    users = [user for user in range(2000) for _ in range(1 + user % 700)]
    columns = {"user": users, "item": range(len(users)), "time": range(len(users))}
    log = facts_of_log(sources.from_table(pa.table(columns), ColumnsConfig(), FilterConfig()))
    for figure in (lengths_figure(log), popularity_figure(log)):
        (trace,) = figure.data
        assert 100 < len(trace.x) <= 300
    (lengths,) = lengths_figure(log).data
    assert (lengths.x[0], lengths.y[0], lengths.x[-1]) == (1, 1, 700)
    (popularity,) = popularity_figure(log).data
    assert popularity.x[-1] == len(users)
    activity = activity_figure(log)
    assert activity is not None
    assert sum(activity.data[0].y) == len(users)
