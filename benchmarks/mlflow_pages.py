"""The screenshots of docs/mlflow.md, of a server that was told of one study.

python -m mlflow server --port 5977
python -m study.run --recorded ml-1m --n-trials 30 --tracking-uri http://127.0.0.1:5977
python -m benchmarks.mlflow_pages http://127.0.0.1:5977
"""

import argparse
import shutil

from playwright.sync_api import Page, sync_playwright

from benchmarks.pages import save
from study.tracking import EXPERIMENT, build_client

_PATIENCE = 6000
"""Milliseconds in which a page of MLflow has loaded what it shows."""


def shoot(page: Page, uri: str) -> None:
    """Four pages of a server at an address."""
    client = build_client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (study,) = client.search_runs([experiment], "tags.`paretocut.front` != ''")
    pages = f"{uri}/#/experiments/{experiment}"
    run = f"{pages}/runs/{study.info.run_id}"
    page.goto(run)
    page.get_by_role("button", name="Close").first.click(timeout=60_000)  # the assistant
    page.get_by_text("Show more").click()
    _save(page, "mlflow-study")
    page.goto(f"{run}/model-metrics")
    _save(page, "mlflow-charts")
    page.goto(f"{run}/artifacts/report.html")
    page.wait_for_timeout(_PATIENCE)
    page.mouse.move(900, 600)
    page.mouse.wheel(0, 620)
    _save(page, "mlflow-report")
    page.goto(f'{pages}/runs?searchFilter=tags.front+%3D+"true"')
    page.wait_for_timeout(_PATIENCE)
    page.locator("[role=row] [role=gridcell] button, .ag-row button").first.click()
    _save(page, "mlflow-front")


def _save(page: Page, name: str) -> None:
    page.wait_for_timeout(_PATIENCE)
    save(page, name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("uri", help="the server")
    uri = parser.parse_args().uri
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        shoot(chromium.new_page(viewport={"width": 1280, "height": 860}), uri)
        chromium.close()


if __name__ == "__main__":
    main()
