"""A trial answered from a table of finished runs: to judge the search itself, and to try it.

A table has a row for a run, as CSV or Parquet: `dataset`, a column for each setting that it
varies, by the setting's name, `ndcg_at_10`, `peak_memory_gib`, `epoch_seconds`, `epochs` (0: the
loss was never finite) and, where they were recorded, `test_ndcg_at_10` and `curve`: NDCG@10 after
every epoch, a list, or with spaces between in a CSV. `sequence_length` stands for `max_length`;
infinitely many negatives are the full softmax. Other columns are not read.
"""

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from objectives.config import SETTINGS, TrialConfig
from objectives.errors import UserError
from objectives.loss_config import CCE, CCEMinus
from objectives.trial import QUALITY, DivergedTrial, InfeasibleTrial, TrialContext, TrialResult

TABLES = Path(__file__).with_name("grids")
"""Folder of the tables that come with ParetoCut, which `benchmarks.grid` made."""

Value = float | str

_MEASURED = ("ndcg_at_10", "peak_memory_gib", "epoch_seconds", "epochs")
_ALIASES = {"sequence_length": "max_length"}
_SIZES = ("batch_size", "negatives", "max_length", "width", "num_blocks")
"""More of these never takes less memory."""


class Cell(NamedTuple):
    """A run.

    Attributes:
        quality: NDCG@10.
        peak_bytes: Its peak memory.
        seconds: Of all its epochs.
        epochs: How many it had.
        curve: Quality after every epoch; empty where that was not recorded.
        test: NDCG@10 of the test split; None where that was not recorded.
    """

    quality: float
    peak_bytes: int
    seconds: float
    epochs: int
    curve: tuple[float, ...] = ()
    test: float | None = None


class RecordedObjective:
    """Looks a configuration up by the settings that the table has. See `objectives.trial`.

    A run that is not in the table ran out of memory when that was made: its peak is at least that
    of any run that is not larger in anything.

    Attributes:
        dataset: Whose runs.
        settings: What the table varies.
        cells: Values of these settings -> run.
    """

    def __init__(self, table: Path, dataset: str | None = None) -> None:
        """Reads the table; dataset: of a table of several.

        Raises:
            UserError: It cannot be read, lacks something, or has no such data set.
        """
        columns, rows = _read(table)
        if missing := [name for name in ("dataset", *_MEASURED) if name not in columns]:
            raise UserError(f"{table}: the table lacks the columns {', '.join(missing)}")
        names = {name: _ALIASES.get(name, name) for name in columns}
        settings = [name for name in columns if names[name] in SETTINGS]
        if not settings:
            raise UserError(
                f"{table}: no column is a setting of a trial; name them as --help does, such as "
                "batch_size and negatives"
            )
        datasets = list(dict.fromkeys(str(row["dataset"]) for row in rows))
        if dataset is None and len(datasets) == 1:
            dataset = datasets[0]
        if dataset not in datasets:
            wanted = "runs of several data sets" if dataset is None else f"no runs of {dataset!r}"
            raise UserError(
                f"{table}: the table has {wanted}; choose from {', '.join(datasets) or 'none'}"
            )
        # What all of its runs leave empty, other data sets have.
        its_rows = [row for row in rows if str(row["dataset"]) == dataset]
        used = [name for name in settings if any(row[name] not in ("", None) for row in its_rows)]
        self.settings = tuple(names[name] for name in used)
        self.dataset = dataset
        self.cells: dict[tuple[Value | None, ...], Cell] = {}
        for number, row in enumerate(rows, 1):
            if str(row["dataset"]) == dataset:
                try:
                    named = {names[name]: value for name, value in row.items() if name in names}
                    key = tuple(_value(name, named[name]) for name in self.settings)
                    self.cells[key] = _cell(row)
                except (TypeError, ValueError) as error:
                    raise UserError(f"{table}: row {number}: {error}") from None

    @property
    def axes(self) -> dict[str, list[Value]]:
        """Setting -> the values that the table has of it, in order; full softmax is a loss."""
        found: dict[str, list[Value]] = {}
        for place, name in enumerate(self.settings):
            kind: Any = type(SETTINGS[name].default)
            values = {key[place] for key in self.cells} - {None, math.inf}
            found[name] = sorted(kind(value) for value in values)
        if self._has_full_softmax:
            found["loss"] = ["cce-", "cce"]
        return found

    @property
    def digest(self) -> str:
        """Tells other runs from these."""
        text = json.dumps([self.settings, sorted(self.cells.items(), key=str)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __call__(self, config: TrialConfig, context: TrialContext) -> TrialResult:
        """The recorded outcome, with a report for each epoch of its curve, or one for all."""
        cell = self.cells.get(self.key(config))
        if cell is None:
            bound = max(context.memory_budget, self._least(config))
            raise InfeasibleTrial(bound, "out-of-memory")
        if cell.peak_bytes > context.memory_budget:
            raise InfeasibleTrial(cell.peak_bytes, "probed")
        if cell.epochs == 0:
            raise DivergedTrial(cell.peak_bytes, epoch=1)
        curve = dict(enumerate(cell.curve, 1)) or {cell.epochs: cell.quality}
        for epoch, quality in curve.items():
            context.report(
                epoch,
                {
                    QUALITY: quality,
                    "memory/peak_bytes": cell.peak_bytes,
                    "train/epoch_seconds": cell.seconds / len(curve),
                },
            )
        tested = {} if cell.test is None else {"test/ndcg_at_10": cell.test}
        return TrialResult(
            cell.quality,
            cell.peak_bytes,
            cell.seconds,
            {QUALITY: cell.quality, **tested},
            epochs=cell.epochs,
            best_epoch=max(curve, key=lambda epoch: curve[epoch]),
            memory_source="recorded",
        )

    def key(self, config: TrialConfig) -> tuple[Value | None, ...]:
        """Where a configuration stands among the cells."""
        chosen = config.flat()
        if "loss" not in self.settings:
            if not isinstance(config.loss, CCE | CCEMinus):
                raise UserError(
                    f"loss {config.loss.loss}: the table has runs of cce and cce- alone"
                )
            chosen.setdefault("negatives", math.inf)
        values = (chosen.get(name) for name in self.settings)
        return tuple(value if value is None else _value_of(value) for value in values)

    @property
    def predicts(self) -> bool:
        """That peaks are known before a trial."""
        return True

    def predicts_at_once(self, config: TrialConfig) -> bool:
        """That they are looked up."""
        return True

    def predicted_peak(self, config: TrialConfig, budget: int) -> int:
        """The recorded peak in bytes; of a run that is not there, more than the budget."""
        cell = self.cells.get(self.key(config))
        return max(budget + 1, self._least(config)) if cell is None else cell.peak_bytes

    def check(self, config: TrialConfig, budget: int) -> bool:
        """Whether the configuration is near the budget, which none is: peaks are known.

        Raises:
            InfeasibleTrial: It exceeds the budget.
        """
        if (peak := self.predicted_peak(config, budget)) > budget:
            raise InfeasibleTrial(peak, "predicted")
        return False

    @property
    def _has_full_softmax(self) -> bool:
        if "negatives" not in self.settings or "loss" in self.settings:
            return False
        place = self.settings.index("negatives")
        return any(key[place] == math.inf for key in self.cells)

    def _least(self, config: TrialConfig) -> int:
        """What the largest run takes that is not larger than a configuration in anything."""
        wanted = self.key(config)
        peaks = [
            cell.peak_bytes
            for key, cell in self.cells.items()
            if all(map(_is_part, self.settings, key, wanted))
        ]
        return max(peaks, default=0)


def _is_part(name: str, value: Value | None, wanted: Value | None) -> bool:
    if name in _SIZES and isinstance(value, float) and isinstance(wanted, float):
        return value <= wanted
    return value == wanted


def _read(table: Path) -> tuple[Sequence[str], list[Mapping[str, Any]]]:
    """Columns and rows."""
    try:
        if table.suffix == ".parquet":
            read = pq.read_table(table)
            return read.column_names, read.to_pylist()
        with table.open(newline="") as stream:
            reader = csv.DictReader(stream)
            return reader.fieldnames or (), list(reader)
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is no table"
        raise UserError(f"{table}: cannot be read ({reason})") from error


def _value(name: str, raw: Any) -> Value | None:
    """A setting as it stands in a row; None: the run's loss has no such setting."""
    if raw in (None, ""):
        return None
    if isinstance(SETTINGS[name].default, str):
        return str(raw)
    return float(raw)


def _value_of(value: Any) -> Value:
    return value if isinstance(value, str) else float(value)


def _cell(row: Mapping[str, Any]) -> Cell:
    epochs = int(row["epochs"])
    curve, test = row.get("curve") or (), row.get("test_ndcg_at_10")
    return Cell(
        float(row["ndcg_at_10"]),
        round(float(row["peak_memory_gib"]) * 2**30),
        float(row["epoch_seconds"]) * epochs,
        epochs,
        tuple(float(value) for value in (curve.split() if isinstance(curve, str) else curve)),
        None if test in (None, "") else float(test),
    )
