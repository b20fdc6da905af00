"""The report as Chromium shows it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from dashboards.report import write_report
from study.records import StudyRecord

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


def wait_until(page: Page, condition: str) -> None:
    """Playwright's own way would evaluate text in the page, which the page does not allow."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def show(
    browser: Browser, path: Path, width: int, scheme: str = "light"
) -> tuple[Page, list[str]]:
    """The page, once drawn, and all it asked for or complained of but itself."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    seen: list[str] = []
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("request", lambda request: seen.append(request.url))
    page.goto(path.as_uri())
    wait_until(
        page, "[...document.querySelectorAll('.figure')].every(f => f.querySelector('svg'))"
    )
    seen.remove(path.as_uri())
    return page, seen


@pytest.fixture
def report(tmp_path: Path, mixed: StudyRecord) -> Path:
    return write_report(mixed, tmp_path / "report.html", "http://mlflow.lan:5000")


@pytest.mark.parametrize("width", [1280, 390])
def test_report_is_drawn_and_fits(browser: Browser, report: Path, width: int) -> None:
    page, seen = show(browser, report, width)
    assert seen == []
    assert page.locator(".figure").count() == 5
    assert page.locator("#figure-front .points path").count() == 7
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for right in page.evaluate(
        "[...document.querySelectorAll('.figure svg')].map(s => s.getBoundingClientRect().right)"
    ):
        assert right <= width
    page.close()


def test_a_scale_of_colours_leaves_the_figures_in_their_place(
    browser: Browser, tmp_path: Path, timed: StudyRecord
) -> None:
    page, seen = show(browser, write_report(timed, tmp_path / "report.html", "x"), 390)
    assert seen == []
    assert page.locator("#figure-duration .points path").count() == 4
    assert page.locator("#figure-front .colorbar").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_dark_mode_changes_page_and_figures(browser: Browser, report: Path) -> None:
    page, _ = show(browser, report, 1280)
    colors = """[
        getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector('#figure-front .xtick text')).fill,
    ]"""
    light = page.evaluate(colors)
    page.emulate_media(color_scheme="dark")
    wait_until(page, f"({colors}).every((c, i) => c !== {light}[i])")
    page.close()


def test_click_opens_the_run(browser: Browser, report: Path) -> None:
    page, _ = show(browser, report, 1280)
    page.evaluate("window.open = (url) => { window.opened = url; }")
    page.locator("#figure-front .trace").nth(1).locator(".point").first.click(force=True)
    wait_until(page, f"window.opened === 'http://mlflow.lan:5000/#/runs/{'a' * 32}'")
    page.close()


def test_hostile_names_do_nothing(browser: Browser, tmp_path: Path, mixed: StudyRecord) -> None:
    evil = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    identity = {**mixed.identity, "data": {"name": evil, "split": "temporal"}, "open": [evil]}
    trials = [
        type(trial)(**{**vars(trial), "params": {evil: 1.0}, "reason": evil})
        for trial in mixed.trials
    ]
    record = StudyRecord(evil, identity, tuple(trials), {}, None)
    page, seen = show(browser, write_report(record, tmp_path / "report.html", evil), 1280)
    page.locator("#figure-front .point").first.hover(force=True)
    assert seen == []
    assert page.evaluate("window.broken") is None
    assert page.locator("h1").inner_text() == evil
    page.close()


def test_empty_study_is_words(browser: Browser, tmp_path: Path, mixed: StudyRecord) -> None:
    record = StudyRecord("empty", mixed.identity, (), {}, None)
    page, seen = show(browser, write_report(record, tmp_path / "report.html", "x"), 390)
    assert seen == []
    assert page.locator(".figure").count() == 0
    assert page.locator(".none").count() == 8
    page.close()
