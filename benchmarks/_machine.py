"""What every result row says of the machine, and how rows are written."""

import csv
import datetime
import os
from pathlib import Path
from typing import Any

import torch
import triton

from study.environment import choose_device, describe

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Date, card, driver, versions and commit."""
    tags = describe(choose_device("auto"))
    return {
        "date": datetime.date.today().isoformat(),
        "gpu": tags.get("gpu", "none"),
        "driver": tags.get("driver", ""),
        "torch": torch.__version__,
        "triton": triton.__version__,
        # A machine that gets the tree without its history is told the commit.
        "commit": (os.environ.get("COMMIT") or tags.get("commit", ""))[:12],
    }


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Appends rows of one set of columns to a CSV file, made with a header if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
