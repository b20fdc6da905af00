"""A trial answered from a table of finished runs: for judging the search itself."""

import csv
import math
from pathlib import Path

from objectives.config import TrialConfig
from objectives.errors import UserError
from objectives.loss_config import CCE, CCEMinus
from objectives.trial import QUALITY, DivergedTrial, InfeasibleTrial, TrialContext, TrialResult

_COLUMNS = (
    "dataset",
    "batch_size",
    "negatives",
    "sequence_length",
    "ndcg_at_10",
    "peak_memory_gib",
    "epoch_seconds",
    "epochs",
)


class RecordedObjective:
    """Looks a configuration up by batch size, negatives and sequence length.

    Full softmax stands in the table as infinitely many negatives. A cell that is not in the table
    ran out of memory when the table was made: its peak is at least that of the largest neighbour
    with fewer negatives at the same batch size and length.

    Attributes:
        cells: (batch size, negatives, sequence length) -> (quality, peak bytes, seconds, epochs).
    """

    def __init__(self, table: Path, dataset: str) -> None:
        try:
            with table.open(newline="") as stream:
                reader = csv.DictReader(stream)
                columns = reader.fieldnames or ()
                rows = [row for row in reader if row.get("dataset") == dataset]
        except OSError as error:
            raise UserError(f"{table}: cannot be read ({error.strerror})") from error
        if missing := [name for name in _COLUMNS if name not in columns]:
            raise UserError(f"{table}: the table lacks the columns {', '.join(missing)}")
        if not rows:
            raise UserError(f"{table}: the table has no runs of the data set {dataset!r}")
        self.cells = {
            (int(row["batch_size"]), float(row["negatives"]), int(row["sequence_length"])): (
                float(row["ndcg_at_10"]),
                round(float(row["peak_memory_gib"]) * 2**30),
                float(row["epoch_seconds"]) * int(row["epochs"]),
                int(row["epochs"]),
            )
            for row in rows
        }

    def __call__(self, config: TrialConfig, context: TrialContext) -> TrialResult:
        """The recorded outcome; one report stands for the whole run."""
        loss = config.loss
        if not isinstance(loss, CCE | CCEMinus):
            raise UserError(f"loss {loss.loss}: the table has runs of cce and cce- alone")
        negatives = loss.negatives if isinstance(loss, CCEMinus) else math.inf
        key = (config.training.batch_size, negatives, config.model.max_length)
        cell = self.cells.get(key)
        if cell is None:
            smaller = [
                (other[1], recorded[1])
                for other, recorded in self.cells.items()
                if other[0] == key[0] and other[2] == key[2] and other[1] < negatives
            ]
            raise InfeasibleTrial(
                max(context.memory_budget, max(smaller)[1] if smaller else 0), "out-of-memory"
            )
        quality, peak_bytes, seconds, epochs = cell
        if peak_bytes > context.memory_budget:
            raise InfeasibleTrial(peak_bytes, "probed")
        if epochs == 0:
            raise DivergedTrial(peak_bytes, epoch=1)
        context.report(epochs, {QUALITY: quality, "memory/peak_bytes": peak_bytes})
        return TrialResult(
            quality, peak_bytes, seconds, {QUALITY: quality}, epochs=epochs, best_epoch=epochs
        )
