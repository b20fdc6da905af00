"""What `python -m study.estimate` prints: predicted peaks, a row for each configuration."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from objectives.config import TrialConfig
from study import cli
from study.cards import SHARE_OF_CARD

if TYPE_CHECKING:
    from objectives.memory_model import DataShape, MemoryEstimate
    from study.space import Value

CARDS = (8, 16, 24, 40, 80)
"""GiB of the cards that a table speaks of."""
PARTS = (
    "parameters",
    "optimizer",
    "gradients",
    "activations",
    "loss",
    "data",
    "evaluation",
    "libraries",
)
"""Of a peak, in the order of the table."""


@dataclass(frozen=True)
class Row:
    """A configuration, or one whose largest value of a setting was sought.

    Attributes:
        shown: The settings that vary in the table, of those that the configuration has.
        config: The configuration; the value that was sought is the largest that fits, or 1.
        estimate: Its peak.
        card: GiB of the smallest of `CARDS` that it fits.
        fits: Whether it fits the budget; None: there is none.
        is_most: The value that was sought is the largest that the data allows.
    """

    shown: dict[str, "Value"]
    config: TrialConfig
    estimate: "MemoryEstimate"
    card: int | None
    fits: bool | None
    is_most: bool = False


def as_json(
    rows: list[Row], data: "DataShape", budget: int | None, sought: str | None
) -> dict[str, Any]:
    """The table for machines; memory in bytes."""
    return {
        "num_items": data.num_items,
        "num_sequences": len(data.lengths),
        "memory_budget_bytes": budget,
        "largest": sought,
        "configurations": [
            {
                "config": row.config.flat(),
                "peak_memory_bytes": row.estimate.peak,
                "parts_bytes": {part: row.estimate.parts.get(part, 0) for part in PARTS},
                "fits_cards_gib": [size for size in CARDS if row.card and size >= row.card],
                "fits_budget": row.fits,
                "is_most_of_data": row.is_most,
            }
            for row in rows
        ],
    }


def as_table(rows: list[Row], budget: int | None, sought: str | None) -> str:
    """The table for people."""
    from study.budget import format_bytes
    from study.progress import short

    varying = list(dict.fromkeys(name for row in rows for name in row.shown))
    header = [*varying]
    if sought:
        header.append(f"largest {sought}")
    header += ["peak", "fits a card of"]
    if budget is not None:
        header.append(f"fits {format_bytes(budget)}")
    lines = [(*header, *PARTS)]
    for row in rows:
        line = [short(row.shown.get(name, "-")) for name in varying]
        if sought:
            largest = f"{row.config.flat()[sought]}{' (all)' if row.is_most else ''}"
            line.append(largest if row.fits else "none, 1 does not fit")
        line += [format_bytes(row.estimate.peak), f"{row.card} GiB" if row.card else "-"]
        if budget is not None:
            line.append("yes" if row.fits else "no")
        parts = row.estimate.parts
        sizes = [parts.get(part, 0) for part in PARTS]
        lines.append((*line, *(format_bytes(size) if size else "-" for size in sizes)))
    cards = ", ".join(str(size) for size in CARDS[:-1])
    return (
        cli.aligned(lines) + f"\ncards of {cards} or {CARDS[-1]} GiB: the smallest in "
        f"{SHARE_OF_CARD:.0%} of which it fits, which is what a study takes of a card"
    )
