"""How long does the live app take to show a study, and how much memory?

python -m benchmarks.app [--folder FOLDER] [--output FILE]

Studies are made in the folder if they are not there: one of 1,000 trials, five of 10,000 (three
minutes). The app runs as its users start it, Chromium opens it. `first_paint` is from the address
to the drawn figure: the first time, when the study is read, and again, when it is known. `update`
is from the end of a trial in the storage until the page has it. `resident_mib` is the app's memory
after all studies up to this row have been opened. `load` is what else the machine did: the mean
number of processes that wanted one of its cores in the minute before.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks._big_study import make_study, trial_of
from benchmarks._machine import RESULTS, append, machine
from study.ledger import Ledger, connect, default_storage

_STUDIES = {"of-1000": 1_000} | {f"of-10000-{letter}": 10_000 for letter in "abcde"}
# As a browser with a graphics card would, but in software.
_FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
_DRAWN = """() => document.querySelector(".figure .main-svg .points, .figure canvas.gl-canvas")"""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The app's address, and the app."""
    command = [sys.executable, "-m", "dashboards.app", "--port", "0", "--output-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), psutil.Process(process.pid)
        finally:
            process.terminate()


def first_paint(page: Page, address: str) -> float:
    """Seconds until the figure is drawn."""
    begin = time.perf_counter()
    page.goto(address)
    page.wait_for_function(_DRAWN)
    return time.perf_counter() - begin


def update(page: Page, folder: Path, name: str) -> float:
    """Seconds until a trial that has ended is counted on the page."""
    ledger = Ledger.open(connect(default_storage(folder, name)), name)
    assert ledger is not None
    number = len(ledger.study.get_trials(deepcopy=False))
    trial = trial_of(number)
    page.wait_for_function(f"document.querySelector('#facts').textContent.includes('{number} in')")
    ledger.study.add_trial(trial)
    begin = time.perf_counter()
    page.wait_for_function(
        f"document.querySelector('#facts').textContent.includes('{number + 1} in')"
    )
    return time.perf_counter() - begin


def measure(
    browser: Browser, address: str, process: psutil.Process, folder: Path, name: str
) -> dict[str, Any]:
    """The figures of one study."""

    def timed(function: Callable[..., float], *arguments: Any) -> tuple[float, float]:
        """Seconds, and the app's processor seconds."""
        before = sum(process.cpu_times()[:2])
        return function(*arguments), sum(process.cpu_times()[:2]) - before

    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    where = f"{address}study/{name}"
    cold, *warm = (timed(first_paint, page, where) for _ in range(4))
    page.wait_for_timeout(2000)
    updates = [timed(update, page, folder, name) for _ in range(3)]
    context.close()
    shown = {"first_paint": cold, "first_paint_again": sorted(warm)[1]}
    shown["update"] = sorted(updates)[1]
    return {
        f"{what}_{kind}": round(seconds, 2)
        for what, pair in shown.items()
        for kind, seconds in zip(("s", "cpu_s"), pair, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs-app"))
    parser.add_argument("--output", type=Path, default=RESULTS / "app.csv")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, trials in _STUDIES.items():
        if not (arguments.folder / name).exists():
            make_study(arguments.folder, name, trials)
    about = machine()
    with served(arguments.folder) as (address, process), sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        # What Python and Chromium load once is no part of a study.
        browser.new_page().goto(f"{address}nowhere")
        for name, trials in _STUDIES.items():
            row = measure(browser, address, process, arguments.folder, name)
            row["resident_mib"] = process.memory_info().rss >> 20
            row["load"] = round(os.getloadavg()[0], 1)
            known = {**about, "cores": os.cpu_count(), "trials": trials}
            append(arguments.output, [known | row])
            print(name, row, flush=True)
        browser.close()


if __name__ == "__main__":
    main()
