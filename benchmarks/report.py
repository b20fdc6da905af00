"""How long does the report take to be written, and to be opened, and how large is it?

python -m benchmarks.report [--folder FOLDER] [--output FILE]

Studies of 60 and 1,000 trials are made in the folder if they are not there. `generate_s` is the
command `python -m dashboards.report`; `text_s` and `figure_s` are from the address until Chromium
has painted the text and drawn the first figure, `rest_s` is for all figures that are out of view
then, which are drawn as they come into it. `_cpu_s` is of the processor alone: of the command, and
of the page's thread. Medians of three; `load` is the mean number of processes that wanted one of
the machine's cores in the minute before.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from benchmarks._big_study import make_study
from benchmarks._machine import RESULTS, append, machine

_TRIALS = (60, 1_000)
_REPEATS = 3
_NOTICE = """new MutationObserver(() => {
    if (document.querySelector(".figure .main-svg")) window.drawn ??= performance.now() / 1000;
}).observe(document, { subtree: true, childList: true });"""


def generate(folder: Path, name: str) -> dict[str, float]:
    """Seconds that the command takes."""
    command = ["dashboards.report", "--study", name, "--output-dir", str(folder)]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"generate_s": end - begin, "generate_cpu_s": cpu}


def open_page(browser: Browser, path: Path) -> dict[str, float]:
    """Seconds until a page that is new to the browser shows what is in view, then the rest."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.add_init_script(_NOTICE)
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    page.goto(path.as_uri())
    while not (figure := page.evaluate("window.drawn")):
        page.wait_for_timeout(20)
    figure_cpu = cpu()
    text = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page.wait_for_timeout(2000)
    begin, rest_cpu = time.perf_counter(), cpu()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    rest = {"rest_s": time.perf_counter() - begin, "rest_cpu_s": cpu() - rest_cpu}
    context.close()
    return {"text_s": text / 1000, "figure_s": figure, "figure_cpu_s": figure_cpu, **rest}


def measure(browser: Browser, folder: Path, trials: int) -> dict[str, Any]:
    """A row of the results."""
    name = f"of-{trials}"
    if not (folder / name).exists():
        make_study(folder, name, trials)
    path = (folder / name / "report.html").resolve()
    runs = [generate(folder, name) | open_page(browser, path) for _ in range(_REPEATS)]
    seconds = {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}
    return {"trials": trials, "mb": round(path.stat().st_size / 1e6, 2), **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/report"))
    parser.add_argument("--output", type=Path, default=RESULTS / "report.csv")
    arguments = parser.parse_args()
    about = machine()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        # What Chromium loads once is no part of a page.
        browser.new_page().goto("about:blank")
        for trials in _TRIALS:
            row = measure(browser, arguments.folder, trials)
            row["load"] = round(os.getloadavg()[0], 1)
            append(arguments.output, [{**about, "cores": os.cpu_count(), **row}])
            print(row, flush=True)
        browser.close()


if __name__ == "__main__":
    main()
