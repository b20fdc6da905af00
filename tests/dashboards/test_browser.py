"""The report as Chromium shows it."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from dashboards.export import as_csv
from dashboards.queries import build_view
from dashboards.report import write_comparison, write_report
from study.records import StudyRecord
from tests.dashboards.conftest import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


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
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
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
    assert page.locator(".figure").count() == 6
    assert page.locator("#figure-front .points path").count() == 7
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for right in page.evaluate(
        "[...document.querySelectorAll('.figure svg')].map(s => s.getBoundingClientRect().right)"
    ):
        assert right <= width
    page.close()


def test_figures_are_drawn_as_they_come_into_view(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(report.as_uri())
    last = page.locator(".figure").last
    page.locator(".figure").first.scroll_into_view_if_needed()
    expect(page.locator(".figure").first.locator("svg").first).to_be_attached()
    expect(last.locator("svg")).to_have_count(0)
    last.scroll_into_view_if_needed()
    expect(last.locator("svg").first).to_be_attached()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("compared", [False, True])
def test_nothing_is_in_the_way_of_a_screen_reader(
    browser: Browser,
    tmp_path: Path,
    trained: StudyRecord,
    mixed: StudyRecord,
    scheme: str,
    compared: bool,
) -> None:
    path = tmp_path / "page.html"
    write_comparison([trained, mixed], path, "x") if compared else write_report(trained, path, "x")
    context = browser.new_context(bypass_csp=True)  # axe runs in the page
    page = context.new_page()
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(path.as_uri())
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    found = Axe().run(page).response["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
    context.close()


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


def test_a_point_says_all_that_is_known_of_its_trial(browser: Browser, report: Path) -> None:
    page, _ = show(browser, report, 1280)
    page.locator("#figure-front .trace").nth(1).locator(".point").nth(1).hover(force=True)
    wait_until(page, "document.querySelector('#figure-front .hovertext')")
    text = page.locator("#figure-front .hovertext").text_content()
    assert text is not None
    assert text.startswith("Trial 1, on the frontNDCG@10, validation 0.1200")
    assert "batch_size 16" in text
    page.close()


def test_button_changes_the_scale_of_memory(browser: Browser, report: Path) -> None:
    page, seen = show(browser, report, 390)
    button = page.get_by_role("button", name="Logarithmic memory")
    ticks = "[...document.querySelectorAll('#figure-front .xtick text')].map(t => t.textContent)"
    color = "getComputedStyle(document.querySelector('#figure-front .xtick text')).fill"
    before = page.evaluate(ticks), page.evaluate(color)
    assert button.get_attribute("aria-pressed") == "false"
    button.press("Enter")
    wait_until(page, f"({ticks}).includes('1 GiB')")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate(color) == before[1], "the page's colours stay"
    button.press("Enter")
    wait_until(page, f"!({ticks}).includes('1 GiB')")
    assert (page.evaluate(ticks), page.evaluate(color)) == before
    assert page.locator("#figure-front .points path").count() == 7
    assert seen == []
    page.close()


def test_click_opens_the_run(browser: Browser, report: Path) -> None:
    page, _ = show(browser, report, 1280)
    page.evaluate("window.open = (url) => { window.opened = url; }")
    page.locator("#figure-front .trace").nth(1).locator(".point").first.click(force=True)
    wait_until(page, f"window.opened === 'http://mlflow.lan:5000/#/runs/{'a' * 32}'")
    page.close()


@pytest.mark.parametrize("clipboard", [True, False])
def test_a_configuration_is_copied_by_the_keyboard(
    browser: Browser, tmp_path: Path, trained: StudyRecord, clipboard: bool
) -> None:
    page, _ = show(browser, write_report(trained, tmp_path / "report.html", "x"), 390)
    # What Chromium without a window keeps cannot be read: the page's own way to it is heard.
    page.evaluate(
        """(clipboard) => {
            const write = async (text) => {
                if (!clipboard) throw new Error("denied");
                window.copied = text;
            };
            Object.defineProperty(navigator, "clipboard", { value: { writeText: write } });
            document.addEventListener("copy", () => { window.copied = getSelection() + ""; });
        }""",
        clipboard,
    )
    button = page.locator("[data-copies=toml-1]")
    button.focus()
    page.keyboard.press("Enter")
    wait_until(page, "document.querySelector('[role=status]').textContent === 'Copied.'")
    assert button.inner_text() == "copied"
    assert page.evaluate("document.activeElement.dataset.copies") == "toml-1"
    assert page.evaluate("window.copied") == page.locator("#toml-1").text_content()
    page.close()


def test_figures_and_trials_are_downloaded(
    browser: Browser, report: Path, mixed: StudyRecord
) -> None:
    page, seen = show(browser, report, 1280, "dark")

    def download(button: str) -> tuple[str, bytes]:
        with page.expect_download() as caught:
            page.locator(button).click()
        return caught.value.suggested_filename, caught.value.path().read_bytes()

    name, table = download("#save-csv")
    assert name == "toy.csv"
    assert table.decode() == as_csv(build_view(mixed, "http://mlflow.lan:5000"))
    name, drawing = download("[data-saves=front][data-format=svg]")
    assert name == "toy-front.svg"
    assert b"rgb(19, 23, 28)" in drawing, "what is under the figure is saved with it"
    name, image = download("[data-saves=history][data-format=png]")
    assert (name, image[:4]) == ("toy-history.png", b"\x89PNG")
    assert [each for each in seen if not each.startswith(("blob:", "data:"))] == []
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
    assert page.locator(".none").count() == 9
    page.close()


def test_studies_side_by_side_are_drawn(
    browser: Browser, tmp_path: Path, mixed: StudyRecord, timed: StudyRecord
) -> None:
    path = write_comparison([mixed, timed], tmp_path / "comparison.html", "x")
    page, seen = show(browser, path, 390)
    assert seen == []
    assert page.locator("#figure-compare .points path").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
