"""A champion trained on, with what has come since: new interactions and new items."""

import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from objectives.data import PreparedData, sources
from objectives.errors import UserError
from objectives.moments import parse_moment
from objectives.new_items import with_new_items
from objectives.recommending import Recommender, raw_ids
from objectives.saved_model import SavedModel

if TYPE_CHECKING:
    from study.registry import Registry
    from study.retrain import Retraining

SHARE_OF_STEPS = 0.25
"""Of a training from scratch, what a refresh takes."""

_TAIL = 0.9
"""Quantile of the times since then from which on a refresh is judged."""

_CUTOFF = 10


def served_ndcg(recommender: Recommender, data: PreparedData) -> float:
    """NDCG@10 of what a model would have answered the test histories of data, in raw ids."""
    ids, test = raw_ids(data.item_ids), data.test
    begins, ends = test.inputs.offsets[:-1], test.inputs.offsets[1:]
    histories = [
        [ids[item] for item in test.inputs.items[begin:end]]
        for begin, end in zip(begins, ends, strict=True)
    ]
    gains = [
        1 / np.log2(items.index(ids[target]) + 2) if ids[target] in items else 0.0
        for items, target in zip(
            recommender.recommend(histories, _CUTOFF).items, test.items, strict=True
        )
    ]
    return float(np.mean(gains))


class Refresh:
    """One champion, and the configuration that it was trained by."""

    def __init__(self, champion: SavedModel, retraining: "Retraining", since: str) -> None:
        """Prepares; since: as `--since` has it."""
        self._champion, self._retraining, self._since = champion, retraining, since
        name = f"trial-{champion.about['trial']}-since-{re.sub(r'[^0-9A-Za-z.]+', '-', since)}"
        self.folder = retraining.folder / name

    def train(self, split: str, date: str | None = None) -> SavedModel:
        """The champion, trained on on the users of a split who were active since then."""
        retraining, champion = self._retraining, self._champion
        data = retraining.data(split, date=date, since=self._since, catalogue=champion.item_ids)
        epochs = self._epochs(data, retraining.data(split, date=date))
        # A schedule that falls does so within the refresh.
        shorter = retraining.config.training.model_copy(update={"max_epochs": epochs})
        config = retraining.config.model_copy(update={"training": shorter})
        training = retraining.training(
            data, retraining.seed, epochs, champion=champion.about["training"]
        )
        begin = time.perf_counter()
        weights = with_new_items(
            champion, data.train, data.num_items, retraining.device, retraining.seed
        )
        begun = time.perf_counter() - begin
        folder = self.folder.with_name(f"{self.folder.name}-{split}")
        fitted = retraining.train(data, training, folder, config, weights)
        return retraining.saved(data, training, fitted, seconds=begun + fitted.seconds)

    def _epochs(self, active: PreparedData, whole: PreparedData) -> int:
        epochs = self._retraining.epochs
        return min(
            max(1, int(SHARE_OF_STEPS * epochs * len(whole.train) / len(active.train))), epochs
        )

    def tail(self) -> str:
        """When the last tenth of the interactions since then begins.

        Raises:
            UserError: There are none, or the log has no times.
        """
        request = self._retraining.request
        files, columns, _ = sources.locate(request)
        times = sources.read(files, columns, request.filter).times
        try:
            begin = parse_moment(self._since)
        except ValueError as error:
            raise UserError(f"--since {self._since}: {error}") from None
        if times is None or not (times >= begin).any():
            raise UserError(f"--since {self._since}: {request.data} has no interaction so late")
        return str(np.quantile(times[times >= begin], _TAIL))

    def judge(self, date: str, *, against_scratch: bool) -> dict[str, dict[str, float]]:
        """NDCG@10 from a time on, before which all are trained, and the seconds of that.

        Args:
            date: When; as `--split-date` has it.
            against_scratch: Whether to train a model from scratch, too.

        Raises:
            UserError: Nobody was active between `--since` and then, or after both.
        """
        retraining = self._retraining
        models = {"champion": self._champion, "refreshed": self.train("temporal", date)}
        data = retraining.data("temporal", date=date)
        if against_scratch:
            training = retraining.training(data, retraining.seed, retraining.epochs)
            folder = self.folder.with_name(f"{self.folder.name}-scratch")
            fitted = retraining.train(data, training, folder)
            models["scratch"] = retraining.saved(data, training, fitted)
        return {
            name: {
                "ndcg_at_10": served_ndcg(Recommender(model, retraining.device), data),
                "seconds": model.about["seconds"],
            }
            for name, model in models.items()
        }


def refresh(
    registry: "Registry",
    version: Any,
    retraining: "Retraining",
    since: str,
    *,
    against_scratch: bool,
) -> tuple[Path, dict[str, Any]]:
    """Trains the champion on, judges how well that works, and saves the model.

    Args:
        registry: Has the champion.
        version: That of the champion.
        retraining: By the champion's trial.
        since: As `--since` has it.
        against_scratch: Whether it is judged against a training from scratch, too.

    Returns:
        The folder of the model, and for each of the `models` that were judged what it reached;
        `is_better` says whether it is better than the champion, and `why` the figures.
    """
    with tempfile.TemporaryDirectory() as temporary:
        champion = SavedModel.load(registry.fetch(version.name, version.version, Path(temporary)))
        asked = Refresh(champion, retraining, since)
        try:
            judged = asked.judge(asked.tail(), against_scratch=against_scratch)
        except UserError as error:
            judged, is_better, why = {}, False, f"it could not be judged ({error})"
        else:
            now, before = (judged[name]["ndcg_at_10"] for name in ("refreshed", "champion"))
            is_better = now > before
            why = f"NDCG@10 {now:.4f} against {before:.4f} in the last tenth since then"
        asked.train("none").save(asked.folder)
    return asked.folder, {"models": judged, "is_better": is_better, "why": why}
