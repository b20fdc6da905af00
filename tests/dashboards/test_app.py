"""The live app, run as its users do and opened in Chromium."""

import csv
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from axe_playwright_python.sync_playwright import Axe
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from playwright.sync_api import Browser, Page, expect

from dashboards import app
from dashboards.sections import SECTIONS
from study.ledger import Ledger, Run, connect, default_storage
from tests.dashboards.conftest import CHROMIUM

MIB, GIB = 2**20, 2**30
ROOT = Path(__file__).parents[2]

expect.set_options(timeout=20_000)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

SPACE = {
    "batch_size": IntDistribution(8, 4096, log=True),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}
IDENTITY = {
    "data": {"name": "ml-100k", "digest": "0", "split": "leave-one-out"},
    "space": {"batch_size": [8, 4096], "learning_rate": [1e-4, 1e-2], "loss": ["cce-", "cce"]},
    "open": list(SPACE),
    "objectives": ["quality", "memory"],
    "memory_budget": GIB,
    "memory_source": "cuda",
    "seed": 0,
    "request": {},
}


def create(folder: Path, name: str) -> Ledger:
    (folder / name).mkdir()
    return Ledger.create(connect(default_storage(folder, name)), name, IDENTITY)


def add(ledger: Ledger, outcome: str, quality: float, memory: int, **result: Any) -> None:
    """A trial that has ended."""
    number = len(ledger.study.trials)
    params = {"batch_size": 8 * (number + 1), "learning_rate": 1e-3}
    known = {
        "outcome": outcome,
        "peak_memory": memory,
        "seconds": 12.0,
        "epochs": 3,
        "config": {**params, "loss": "cce" if number == 1 else "cce-"},
    }
    complete = outcome == "complete"
    ledger.study.add_trial(
        optuna.create_trial(
            state=TrialState.COMPLETE if complete else TrialState.PRUNED,
            params=params,
            distributions=dict(SPACE),
            values=[quality, float(memory)] if complete else None,
            user_attrs={"seed": 0, "result": known | result},
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all kinds of trials, one that has just begun, and one with a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    mixed = create(folder, "mixed")
    add(mixed, "complete", 0.10, 256 * MIB)
    add(mixed, "complete", 0.12, 512 * MIB)
    add(mixed, "complete", 0.11, 768 * MIB, memory_parts={"activations": 700 * MIB})
    add(mixed, "infeasible", 0, 1280 * MIB, reason="predicted")
    add(mixed, "pruned", 0, 100 * MIB, reason="dominated after epoch 3")
    mixed.study.ask(dict(SPACE))  # is running, and has nothing to say yet
    for epoch in range(3):
        mixed.record_epoch(1, epoch + 1, {"val/ndcg_at_10": 0.04 * (epoch + 1)})
    mixed.set_run(Run(1, "b" * 32, 0, False))
    create(folder, "growing")
    add(create(folder, "<img src=x onerror=alert(1)>"), "complete", 0.2, 300 * MIB)
    return folder


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[str]:
    """The address that the command prints, as long as it runs."""
    command = [sys.executable, "-m", "dashboards.app", "--port", "0", *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


class Healthy(http.server.BaseHTTPRequestHandler):
    """What MLflow's server says when it is asked whether it is well."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def mlflow() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def address(folder: Path, mlflow: str) -> Iterator[str]:
    arguments = ("--output-dir", str(folder), "--tracking-uri", mlflow)
    with served(*arguments) as address:
        yield address.rstrip("/")


class Seen(list[str]):
    """What a page complained of, and what it asked of others."""


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page; at the end it must have complained of nothing and asked nobody else."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, base_url=address)
    page.set_default_timeout(20_000)
    seen = Seen()
    page.on("console", lambda message: seen.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith((address, "data:", "blob:")) else seen.append(asked.url)
        ),
    )
    yield page
    page.close()
    assert seen == []


def open_study(page: Page, query: str = "", name: str = "mixed") -> None:
    page.goto(f"/study/{name}{query}")
    expect(page.locator(".figure .main-svg").first).to_be_visible()


def points(page: Page) -> int:
    return page.locator("#figures .points path").count()


def test_the_list_leads_to_the_studies(page: Page) -> None:
    page.goto("/")
    row = page.get_by_role("row").filter(has_text="mixed")
    cells = ["mixed", "ml-100k", "6", "0.1200", "512.0 MiB", "1 running"]
    expect(row.get_by_role("cell")).to_have_text(cells)
    expect(page.get_by_role("row").filter(has_text="<img")).to_contain_text("0.2000")
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("mixed")
    expect(page.locator("#summary")).to_contain_text("Trial 1 is the best within 1.00 GiB")


def test_a_study_is_drawn_and_a_point_leads_to_its_trial(page: Page, mlflow: str) -> None:
    open_study(page)
    expect(page.locator("#figures .points path")).to_have_count(5)
    page.locator("#figures .trace").nth(1).locator(".point").nth(1).hover(force=True)
    expect(page.locator(".hoverlayer .hovertext")).to_contain_text("Trial 1")
    page.locator("#figures .trace").nth(1).locator(".point").nth(1).click(force=True)
    detail = page.get_by_role("complementary", name="Trial")
    expect(detail.get_by_role("heading", level=2)).to_have_text("Trial 1, on the front")
    expect(detail.get_by_role("link")).to_have_attribute("href", f"{mlflow}/#/runs/{'b' * 32}")
    expect(detail.locator(".scatterlayer .trace")).to_have_count(1)  # its curve
    expect(page).to_have_url("/study/mixed?trial=1")
    detail.get_by_role("button", name="Close").click()
    expect(detail).to_be_empty()
    expect(page).to_have_url("/study/mixed")


def test_a_trial_is_found_by_its_number_and_says_why_it_ended(page: Page) -> None:
    open_study(page)
    page.get_by_label("Show trial").fill("2")
    page.keyboard.press("Enter")
    detail = page.get_by_role("complementary", name="Trial")
    expect(detail).to_contain_text("activations700.0 MiB")
    page.get_by_label("Show trial").fill("4")
    page.keyboard.press("Enter")
    expect(detail).to_contain_text("dominated after epoch 3")
    page.get_by_label("Show trial").fill("99")
    page.keyboard.press("Enter")
    expect(detail).to_contain_text("Study mixed has no trial 99.")


def test_the_slider_redraws_the_front_and_names_what_fits(page: Page) -> None:
    open_study(page)
    recommended = page.locator("#recommended")
    expect(recommended).to_contain_text("Within 1.00 GiB: trial 1")
    slider = page.get_by_label("Memory that you have")
    slider.fill("400")
    expect(recommended).to_contain_text("Within 400.0 MiB: trial 0")
    expect(recommended.locator("code")).to_contain_text("--budget 400MiB --toml best.toml")
    expect(page.locator("#figures .annotation-text")).to_contain_text(["budget 400.0 MiB"])
    expect(page.locator("#table tbody tr")).to_have_count(1)
    expect(page).to_have_url("/study/mixed?budget=400")
    slider.press("End")
    expect(recommended).to_contain_text("Within 1.00 GiB: trial 1")
    expect(page).to_have_url("/study/mixed")


def test_filters_leave_what_was_asked_for(page: Page) -> None:
    open_study(page)
    page.get_by_text("Filter").click()
    page.get_by_label("cce", exact=True).uncheck()
    expect(page.locator("#summary")).to_contain_text("Trial 2 is the best")
    page.get_by_label("pruned", exact=True).uncheck()
    expect(page.locator("#facts")).not_to_contain_text("pruned")
    page.get_by_role("group", name="batch_size").get_by_label("to").fill("8")
    page.keyboard.press("Enter")
    expect(page.locator("#summary")).to_contain_text("Trial 0 is the best")
    expect(page).to_have_url(re.compile(r"p\.batch_size=\.\.8"))
    link = page.get_by_role("link", name="CSV").get_attribute("href")
    assert link is not None
    answer = page.request.get(link)
    (row,) = csv.DictReader(io.StringIO(answer.text()))
    assert (row["trial"], row["peak_memory_bytes"], row["batch_size"]) == (
        "0",
        str(256 * MIB),
        "8",
    )


def test_an_address_restores_what_was_looked_at(page: Page) -> None:
    query = "?tab=parameters&budget=400&outcome=complete&loss=cce-&p.batch_size=..20&trial=0"
    open_study(page, query)
    expect(page.get_by_label("Parameters")).to_be_checked()
    assert page.get_by_label("Memory that you have").input_value() == "400"
    expect(page.get_by_label("complete", exact=True)).to_be_checked()
    expect(page.get_by_label("pruned", exact=True)).not_to_be_checked()
    expect(page.get_by_label("cce", exact=True)).not_to_be_checked()
    limit = page.get_by_role("group", name="batch_size").get_by_label("to")
    expect(limit).to_have_value("20")
    expect(page.get_by_role("complementary", name="Trial")).to_contain_text("Trial 0")
    expect(page.locator("#figures .figure")).to_have_count(3)
    page.get_by_text("Search", exact=True).click()
    expect(page.locator("#figures .figure")).to_have_count(2)
    expect(page).to_have_url("/study/mixed" + query.replace("parameters", "search"))


def test_each_tab_has_its_sections(page: Page) -> None:
    page.goto("/study/mixed")
    for tab, titles in (
        ("Memory", ["What a GiB buys", "Where the memory goes"]),
        ("Search", ["The search", "The workers"]),
        (
            "Parameters",
            ["What mattered", "Parameters", "Trials side by side", "Loss against loss"],
        ),
        ("Curves", ["Learning curves"]),
        ("Front", ["Pareto front"]),
    ):
        page.locator(".tabs").get_by_text(tab, exact=True).click()
        expect(page.locator("#figures h2")).to_have_text(titles)
        expect(page.locator("#figures .main-svg").first).to_be_visible()


def test_trials_are_shown_as_they_end(page: Page, folder: Path) -> None:
    answers: list[int] = []
    page.on("response", lambda answer: answers.append(answer.status))
    page.goto("/study/growing")
    expect(page.locator("#summary")).to_have_text("No trial has ended yet.")
    storage = connect(default_storage(folder, "growing"))
    ledger = Ledger.open(storage, "growing")
    assert ledger is not None
    add(ledger, "complete", 0.10, 256 * MIB)
    expect(page.locator("#summary")).to_contain_text("Trial 0 is the best")
    expect(page.locator("#figures .points path")).to_have_count(1)
    add(ledger, "complete", 0.12, 512 * MIB)
    expect(page.locator("#figures .points path")).to_have_count(2)
    expect(page.locator("#table tbody tr")).to_have_count(2)
    page.wait_for_timeout(1500)
    del answers[:]
    page.wait_for_timeout(2500)
    assert set(answers) == {204}, "where nothing has changed nothing travels"


@pytest.mark.parametrize("tab", list(SECTIONS))
def test_a_phone_and_the_dark(page: Page, tab: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    open_study(page, f"?tab={tab}&trial=1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for right in page.evaluate(
        "[...document.querySelectorAll('.figure svg')].map(s => s.getBoundingClientRect().right)"
    ):
        assert right <= 390
    colors = """() => [
        getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector('.figure .xtick text')).fill,
        getComputedStyle(document.querySelector('.tabs label')).color,
    ]"""
    light = page.evaluate(colors)
    page.emulate_media(color_scheme="dark")
    assert all(dark != before for dark, before in zip(page.evaluate(colors), light, strict=True))


@pytest.mark.parametrize(
    "path", ["/", "/study/mixed?trial=1&loss=cce", "/study/mixed?tab=parameters", "/compare"]
)
def test_nothing_is_in_the_way_of_a_screen_reader(page: Page, path: str) -> None:
    page.goto(path)
    expect(page.locator(".scroll, .figure, .compared").first).to_be_visible()
    axe = Axe()
    found = axe.run(page).response["violations"]
    page.emulate_media(color_scheme="dark")
    # Of what axe looks at, the contrast alone depends on the colours.
    found += axe.run(page, options={"runOnly": ["color-contrast"]}).response["violations"]
    serious = [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_studies_are_compared(page: Page) -> None:
    page.goto("/compare?study=mixed")
    expect(page.locator("#comparison .legendtext")).to_have_text(["mixed"])
    page.get_by_label("<img src=x onerror=alert(1)>").check()
    expect(page.locator("#comparison .legendtext")).to_have_count(2)
    expect(page).to_have_url(re.compile(r"study=mixed&study=%3Cimg\+src%3Dx"))


def test_what_is_not_there_is_said(page: Page) -> None:
    page.goto("/study/other")
    expect(page.get_by_role("alert")).to_contain_text("--study other: not in")
    expect(page.get_by_role("alert")).to_contain_text("which has: <img")
    page.goto("/nowhere")
    expect(page.get_by_role("alert")).to_have_text("There is no such page.")


def test_an_mlflow_that_is_down_takes_the_link_alone(folder: Path, browser: Browser) -> None:
    with served("--output-dir", str(folder), "--tracking-uri", "http://127.0.0.1:1") as address:
        page = browser.new_page()
        page.goto(f"{address}study/mixed?trial=1")
        detail = page.get_by_role("complementary", name="Trial")
        expect(detail).to_contain_text("Its run in MLflow, which does not answer")
        expect(detail.get_by_role("link")).to_have_count(0)
        expect(page.locator("#figures .points path")).to_have_count(5)
        page.close()


def test_a_storage_without_studies_is_a_sentence(tmp_path: Path, browser: Browser) -> None:
    with served("--storage", f"sqlite:///{tmp_path / 'none.db'}") as address:
        page = browser.new_page()
        page.goto(address)
        expect(page.get_by_role("alert")).to_contain_text("unable to open database file")
        page.close()
    assert not (tmp_path / "none.db").exists()


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_beyond_this_machine_a_token_is_demanded(folder: Path, browser: Browser) -> None:
    arguments = ("--host", "0.0.0.0", "--output-dir", str(folder))
    with served(*arguments, PARETOCUT_TOKEN="s3cret") as address:
        assert address.endswith("/?token=$PARETOCUT_TOKEN"), "a log may be read by others"
        address = address.replace("$PARETOCUT_TOKEN", "s3cret")
        bare, _, _ = address.partition("?")
        for path in ("", "study/mixed", "csv/mixed", "_dash-layout", "assets/live.css"):
            assert status(f"{bare}{path}") == 403
        assert status(f"{bare}?token=guess") == 403
        assert status(bare, Cookie="paretocut-token=s3cret") == 200
        page = browser.new_page()
        page.goto(address)
        expect(page.get_by_role("row").first).to_be_visible()
        assert "token" not in page.url
        page.close()
    with served(*arguments) as address:
        assert len(address.partition("?token=")[2]) >= 32


def test_the_app_changes_no_file(folder: Path, address: str) -> None:
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in ("csv/mixed", "csv/growing"):
        assert status(f"{address}/{path}") == 200
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_a_port_that_is_taken_is_a_sentence(
    address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    port = address.rpartition(":")[2]
    assert app.main(["--port", port]) == 2
    assert f"--port {port}: 127.0.0.1 cannot be listened to" in capfd.readouterr().err
