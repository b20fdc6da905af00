"""Draws the sweeps of `benchmarks.kernels`: time and workspace against K, V, N and R.

python -m benchmarks.plot_kernels [--input FILE] [--output FILE]

Of the file, the rows with the machine, versions, commit and date of its last row are drawn.
"""

import argparse
import csv
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from plotly.subplots import make_subplots

from benchmarks._machine import RESULTS
from benchmarks.kernels import COMMON_SIZES, FULL_ROWS

_IMAGE = Path(__file__).parents[1] / "docs" / "images" / "kernels.svg"
_MACHINE = ("date", "gpu", "driver", "torch", "triton", "commit")

Row = dict[str, str]


class Series(NamedTuple):
    """One line: an implementation, with one group size or any (None)."""

    name: str
    color: str
    implementation: str
    group_size: str | None = None


class Panel(NamedTuple):
    """One column of the figure, over one size."""

    title: str
    size: str
    ticks: tuple[int, ...]
    series: tuple[Series, ...]


# The palette of Okabe and Ito, which colour-blind people can tell apart.
_BLUE, _SKY, _VERMILION, _GREEN = "#0072B2", "#56B4E9", "#D55E00", "#009E73"
_PINK, _ORANGE, _GREY, _BLACK = "#CC79A7", "#E69F00", "#8C8C8C", "#000000"

_PUBLISHED = Series("CCE- as published", _VERMILION, "published")
_EAGER = Series("eager PyTorch", _GREY, "eager")
_SAMPLED = (
    Series("ours, R = 128", _BLUE, "ours", "128"),
    Series("ours, R = 1", _SKY, "ours", "1"),
    _PUBLISHED,
    _EAGER,
)
_ANY_GROUPS = (Series("ours", _BLUE, "ours"), _PUBLISHED, _EAGER)
_FULL = (
    Series("ours, full softmax", _BLUE, "ours"),
    Series("Apple CCE, exact", _GREEN, "apple cce_exact"),
    Series("Apple CCE, filtered", _PINK, "apple cce"),
    Series("Liger", _ORANGE, "liger"),
    Series("torch", _BLACK, "torch linear_cross_entropy"),
    _EAGER,
)
_PANELS = (
    Panel("K, candidates", "num_candidates", (63, 255, 1023, 4095), _SAMPLED),
    Panel("V, items", "num_items", (10_000, 100_000, 1_000_000, 10_000_000), _SAMPLED),
    Panel("N, rows", "num_rows", (4096, 16_384, 65_536), _SAMPLED),
    Panel("R, rows per group", "group_size", (1, 16, 128, 2048, 32_768), _ANY_GROUPS),
    Panel("V, items, full softmax", "num_items", (10_000, 100_000, 1_000_000), _FULL),
)


def read_sweeps(path: Path) -> list[Row]:
    """The rows of the last run that were measured."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        row
        for row in rows
        if row["case"] == "sweeps"
        and row["outcome"] == "ok"
        and row["implementation"] != "torch.zeros"
        and all(row[column] == rows[-1][column] for column in _MACHINE)
    ]


def _belongs(row: Row, panel: Panel, series: Series) -> bool:
    if row["implementation"] != series.implementation:
        return False
    if series.group_size not in (None, row["group_size"]):
        return False
    if panel.series is _FULL:
        return row["num_candidates"] == ""
    return all(row[size] == str(n) for size, n in COMMON_SIZES.items() if size != panel.size)


def figure(rows: list[Row]) -> Any:
    """Time above workspace, one column for each panel."""
    drawing = make_subplots(
        rows=2,
        cols=len(_PANELS),
        shared_xaxes="columns",
        shared_yaxes="rows",
        horizontal_spacing=0.015,
        vertical_spacing=0.05,
    )
    named = set()
    for column, panel in enumerate(_PANELS, 1):
        for series in panel.series:
            points = sorted(
                (int(row[panel.size]), float(row["median_ms"]), int(row["workspace_bytes"]))
                for row in rows
                if _belongs(row, panel, series)
            )
            if not points:
                continue
            sizes, milliseconds, workspace = map(list, zip(*points, strict=True))
            line = {"color": series.color, "width": 2}
            mode = "lines+markers"
            if panel.size == "group_size" and series.implementation != "ours":
                # They share nothing: one value, drawn as a level to compare with.
                sizes, milliseconds, workspace = (
                    [1, panel.ticks[-1]],
                    milliseconds * 2,
                    workspace * 2,
                )
                line, mode = {**line, "dash": "dot"}, "lines"
            legend = series.color not in named
            named.add(series.color)
            for place, values in enumerate(
                (milliseconds, [num_bytes / 2**20 for num_bytes in workspace]), 1
            ):
                drawing.add_scatter(
                    x=sizes,
                    y=values,
                    mode=mode,
                    line=line,
                    marker={"size": 5},
                    name=series.name,
                    legendgroup=series.color,
                    showlegend=legend and place == 1,
                    row=place,
                    col=column,
                )
        drawing.update_xaxes(
            type="log",
            tickvals=panel.ticks,
            ticktext=[_short(tick) for tick in panel.ticks],
            col=column,
        )
        drawing.update_xaxes(title=panel.title, row=2, col=column)
    drawing.update_yaxes(type="log", dtick=1, tickformat=",~r")
    drawing.update_yaxes(title="time (ms)", row=1, col=1)
    drawing.update_yaxes(title="workspace (MiB)", row=2, col=1)
    for update in (drawing.update_xaxes, drawing.update_yaxes):
        update(gridcolor="#E6E6E6", showgrid=True, ticks="", title_font_size=13)
    common = ", ".join(
        f"{name} = {COMMON_SIZES[size]:,}"
        for name, size in (("N", "num_rows"), ("V", "num_items"), ("K", "num_candidates"))
    )
    drawing.update_layout(
        template="simple_white",
        width=1280,
        height=600,
        margin={"l": 70, "r": 15, "t": 100, "b": 55},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13},
        title={
            "text": f"Forward and backward, bf16, D = {rows[0]['width']}, {rows[0]['gpu']}. "
            f"{common} where the axis says nothing else; full softmax with N = {FULL_ROWS:,}",
            "font": {"size": 14},
            "x": 0.055,
            "xanchor": "left",
            "y": 0.97,
        },
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    return drawing


def _short(number: int) -> str:
    """10M, 10k, 4,096."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if number % unit == 0:
            return f"{number // unit}{name}"
    return f"{number:,}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, default=RESULTS / "kernels.csv")
    parser.add_argument("--output", type=Path, default=_IMAGE)
    arguments = parser.parse_args()
    if importlib.util.find_spec("kaleido") is None:
        parser.error(
            "the image is written by kaleido, which nothing else needs: pip install kaleido"
        )
    rows = read_sweeps(arguments.input) if arguments.input.exists() else []
    if not rows:
        parser.error(f"{arguments.input} has no sweeps: run python -m benchmarks.kernels first")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure(rows).write_image(arguments.output)


if __name__ == "__main__":
    main()
