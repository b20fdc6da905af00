"""Draws `benchmarks.scaling`: trials an hour, and the hypervolume over the wall time.

python -m benchmarks.plot_scaling [--input FILE] [--output FILE]

Of the file, the last row of each number of workers on the machine, at the commit and with the
epochs of its last row is drawn.
"""

import argparse
import csv
from pathlib import Path

from plotly.subplots import make_subplots

from benchmarks._machine import RESULTS

_IMAGE = Path(__file__).parents[1] / "docs" / "images" / "scaling.svg"
_SAME = ("gpu", "commit", "data", "n_trials", "max_epochs")
# The palette of Okabe and Ito, which colour-blind people can tell apart.
_COLORS = ("#8C8C8C", "#56B4E9", "#0072B2", "#D55E00", "#009E73")


def latest(path: Path) -> dict[int, dict[str, str]]:
    """The rows to draw, by the number of workers."""
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["growth"]]
    same = [row for row in rows if all(row[name] == rows[-1][name] for name in _SAME)]
    by_workers = {int(row["workers"]): row for row in same}
    return dict(sorted(by_workers.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, default=RESULTS / "scaling.csv")
    parser.add_argument("--output", type=Path, default=_IMAGE)
    arguments = parser.parse_args()
    rows = latest(arguments.input)
    figure = make_subplots(
        1, 2, subplot_titles=("Trials an hour", "Hypervolume over the wall time, seconds")
    )
    workers = list(rows)
    rates = [float(row["trials_an_hour"]) for row in rows.values()]
    ideal = [rates[0] / workers[0] * number for number in workers]
    common = {"row": 1, "col": 1}
    figure.add_scatter(
        x=workers,
        y=ideal,
        name="in proportion",
        line={"color": "#8C8C8C", "dash": "dot"},
        **common,
    )
    labels = [f"{rate / one:.0%}" for rate, one in zip(rates, ideal, strict=True)]
    figure.add_scatter(
        x=workers,
        y=rates,
        text=labels,
        mode="lines+markers+text",
        textposition="bottom center",
        cliponaxis=False,
        name="measured",
        line={"color": "#0072B2"},
        **common,
    )
    for color, (number, row) in zip(_COLORS, rows.items(), strict=False):
        steps = [tuple(map(float, step.split(":"))) for step in row["growth"].split()]
        seconds, volumes = zip(*steps, strict=True)
        figure.add_scatter(
            x=[*seconds, float(row["span_seconds"])],
            y=[*volumes, volumes[-1]],
            name=f"{number} workers" if number > 1 else "1 worker",
            mode="lines",
            line={"color": color, "shape": "hv"},
            row=1,
            col=2,
        )
    figure.update_xaxes(title_text="workers, a GPU each", tickvals=workers, row=1, col=1)
    figure.update_xaxes(type="log", row=1, col=2)
    figure.update_layout(
        template="simple_white", width=1000, height=400, legend={"orientation": "h", "y": -0.25}
    )
    figure.write_image(arguments.output)


if __name__ == "__main__":
    main()
