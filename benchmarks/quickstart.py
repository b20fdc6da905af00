"""How long does the quickstart take, and what does it find? A fresh study on ml-100k.

python -m benchmarks.quickstart [--output FILE]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._machine import RESULTS, append, machine
from study.budget import format_bytes
from study.front import hypervolume
from study.records import find, read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "quickstart.csv")
    output = parser.parse_args().output.resolve()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "study.run", "--json"],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seconds = time.perf_counter() - begin
        record = read(find(None, None, Path(folder) / "runs"))
        report_bytes = (Path(folder) / "runs" / record.name / "report.html").stat().st_size
    result = json.loads(done.stdout)
    best = result["front"][-1]
    row = {
        **machine(),
        "wall_seconds": round(seconds, 1),
        "trials": result["trials"],
        "feasible": result["feasible"],
        "front_points": len(result["front"]),
        "memory_budget_bytes": record.budget,
        "memory_source": record.identity["memory_source"],
        "hypervolume": round(
            hypervolume(list(map(record.point, record.complete)), *record.limits), 5
        ),
        "best_val_ndcg_at_10": round(best["ndcg_at_10"], 5),
        "best_test_ndcg_at_10": round(best["metrics"]["test/ndcg_at_10"], 5),
        "popular_test_ndcg_at_10": round(result["baseline"]["ndcg_at_10"], 5),
        "best_peak_bytes": best["peak_memory_bytes"],
        "least_front_peak_bytes": result["front"][0]["peak_memory_bytes"],
        "report_bytes": report_bytes,
    }
    append(output, [row])
    for name, value in row.items():
        shown = format_bytes(value) if name.endswith("_bytes") else value
        print(f"{name:26} {shown}")


if __name__ == "__main__":
    main()
