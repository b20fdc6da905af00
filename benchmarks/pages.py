"""The screenshots of the README, docs/report.md and docs/app.md, of two recorded searches.

python -m benchmarks.pages [--folder FOLDER]

The studies are made in the folder if they are not there, which takes three minutes.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.app import served

_IMAGES = Path(__file__).parent.parent / "docs" / "images"
_STUDIES = {"ml-1m": "front", "ml-1m-random": "random"}
"""Their samplers."""
_PATIENCE = 4000
"""Milliseconds in which a page that shows something has drawn all that is in view."""


def make_studies(folder: Path) -> None:
    """Runs the two searches, if they are not there."""
    flags = ["--recorded", "ml-1m", "--memory-budget", "400MiB", "--n-trials", "60"]
    for name, sampler in _STUDIES.items():
        if not (folder / name).exists():
            named = ["--study", name, "--sampler", sampler, "--output-dir", str(folder)]
            _run("study.run", *flags, *named)


def _run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", *command], check=True)


def shoot_report(browser: Browser, folder: Path) -> None:
    """The report of the first search, and the page of both."""
    report = (folder / "ml-1m" / "report.html").resolve()
    comparison = (folder / "comparison.html").resolve()
    _run("dashboards.report", "--study", "ml-1m", "--output-dir", str(folder))
    flags = [flag for name in _STUDIES for flag in ("--study", name)]
    _run("dashboards.report", *flags, "--output-dir", str(folder), "--output", str(comparison))
    for name, path, part, scheme, width, height in (
        ("report", report, "", "light", 1280, 1480),
        ("report-dark", report, "Balance", "dark", 1280, 1000),
        ("report-search", report, "The search", "light", 1280, 1000),
        ("report-phone", report, "Pareto front", "light", 390, 844),
        ("comparison", comparison, "", "light", 1280, 1180),
    ):
        page = _open(browser, path.as_uri(), width, height, scheme)
        if part:
            heading = page.get_by_role("heading", name=part)
            heading.evaluate("place => place.scrollIntoView()")
            page.mouse.wheel(0, -24)
        _save_drawn(page, name)


def shoot_app(browser: Browser, folder: Path) -> None:
    """The pages of the live app."""
    with served(folder) as (address, _):
        for name, path, scheme, width, height in (
            ("app-studies", "", "light", 1280, 560),
            ("app-study", "study/ml-1m", "light", 1280, 1180),
            ("app-study-dark", "study/ml-1m?tab=search", "dark", 1280, 1180),
            ("app-trial", "study/ml-1m?trial=18", "light", 1280, 900),
            ("app-compare", "compare?study=ml-1m&study=ml-1m-random", "light", 1280, 900),
            ("app-phone", "study/ml-1m", "light", 390, 844),
        ):
            _save_drawn(_open(browser, address + path, width, height, scheme), name)


def _open(browser: Browser, address: str, width: int, height: int, scheme: str) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(address)
    return page


def _save_drawn(page: Page, name: str) -> None:
    page.locator(".figure .main-svg, #page table").first.wait_for(timeout=60_000)
    page.wait_for_timeout(_PATIENCE)
    save(page, name)
    page.close()


def save(page: Page, name: str) -> None:
    """Writes what is in view into the documentation's images."""
    path = _IMAGES / f"{name}.png"
    page.screenshot(path=path)
    # A page of text has few colours, and the repository keeps every image for ever.
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/pages"))
    folder = parser.parse_args().folder
    make_studies(folder)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        shoot_report(browser, folder)
        shoot_app(browser, folder)
        browser.close()


if __name__ == "__main__":
    main()
