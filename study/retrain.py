"""The model that serves: the chosen configuration trained on all interactions."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels.gpu import on_gpu
from objectives.config import DataConfig, TrialConfig
from objectives.data import PreparedData, prepare
from objectives.errors import UserError
from objectives.evaluation import batch_tokens
from objectives.fitting import Fitted, fit
from objectives.saved_model import SavedModel, read_about
from objectives.trial import DivergedTrial, InfeasibleTrial
from study.budget import format_bytes
from study.environment import choose_device, describe

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor

    from study.records import StudyRecord, TrialRecord

_OF_SPLITS = ("validation_users", "split_quantile", "split_date", "target")
"""What of the data that a study asked for is of its split alone."""


class Retraining:
    """Trains a complete trial's configuration for as many epochs as its best weights had.

    There is no validation: the learning rate follows the schedule of the trial, and ends where the
    trial's best epoch did.

    Attributes:
        config: The configuration, for one device.
        device: Where it is trained.
        folder: Where models are kept.
        seed: That of the trial.
        epochs: After so many the trial's weights were the best.
    """

    def __init__(
        self,
        record: "StudyRecord",
        trial: "TrialRecord",
        *,
        device: str,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        """Prepares.

        Args:
            record: The study.
            trial: One of its complete trials.
            device: As `--device` has it.
            folder: That of the study.
            say: Tells people how far it is.

        Raises:
            UserError: The study is of recorded runs, or the device does not exist.
        """
        if "data" not in record.identity["request"]:
            raise UserError(
                f"--retrain: study {record.name} is of recorded runs, which have no data to train "
                "on; --toml writes the configuration for python -m study.run --data"
            )
        self._record, self._trial, self._say = record, trial, say
        self.folder = folder / "models"
        self.seed = int(trial.tags["seed"])
        self.epochs = trial.best_epoch
        self.device: torch.device = choose_device(device)
        config = TrialConfig.from_flat(trial.config)
        # One device takes in turn what several took at a time.
        parts = config.training.accumulation * (record.identity.get("gpus_per_trial") or 1)
        self.config = config.model_copy(
            update={"training": config.training.model_copy(update={"accumulation": parts})}
        )

    @property
    def request(self) -> DataConfig:
        """The data as the study asked for them."""
        return DataConfig.model_validate(self._record.identity["request"])

    def check_data(self) -> None:
        """Refuses data that have changed since the study.

        Raises:
            UserError: They have.
        """
        digest, studied = prepare(self.request).digest, self._record.identity["data"]["digest"]
        if digest != studied:
            raise UserError(
                f"--retrain: {self.request.data} has changed since study {self._record.name} "
                f"({digest}, was {studied}); --changed-data trains on what it is now"
            )

    def data(
        self,
        split: str,
        *,
        date: str | None = None,
        since: str | None = None,
        catalogue: "pa.Array | None" = None,
    ) -> PreparedData:
        """The study's data in another split.

        Args:
            split: Which.
            date: When a temporal split cuts.
            since: As `prepare` has it.
            catalogue: Likewise.
        """
        request = {
            name: value
            for name, value in self._record.identity["request"].items()
            if name not in _OF_SPLITS
        }
        asked = DataConfig.model_validate({**request, "split": split, "split_date": date})
        return prepare(asked, since=since, catalogue=catalogue)

    def training(self, data: PreparedData, seed: int, epochs: int, **more: Any) -> dict[str, Any]:
        """What a training is of: another one has another of these."""
        return {
            **self.config.flat(),
            "seed": seed,
            "epochs": epochs,
            "data": data.digest,
            **more,
        }

    def seeds(self, count: int) -> Iterator[Path]:
        """Trains with so many seeds, the trial's and those behind it; those done are left alone.

        Returns:
            The folder of each.

        Raises:
            UserError: It does not fit the study's budget, or diverges.
        """
        data = self.data("none")
        for seed in range(self.seed, self.seed + count):
            folder = self.folder / f"trial-{self._trial.number}-seed-{seed}"
            training = self.training(data, seed, self.epochs)
            if _is_there(folder, training):
                self._say(f"{folder} is there already")
            else:
                fitted = self.train(data, training, folder)
                self.saved(data, training, fitted).save(folder)
            yield folder

    def train(
        self,
        data: PreparedData,
        training: Mapping[str, Any],
        folder: Path,
        config: TrialConfig | None = None,
        weights: "Mapping[str, Tensor] | None" = None,
    ) -> Fitted:
        """Trains on the training sequences of data.

        Args:
            data: Which.
            training: What the training is of; says the seed and how many epochs.
            folder: Where its checkpoint is kept.
            config: The configuration, if it is not the trial's own.
            weights: What the model begins with; None: fresh ones.

        Raises:
            UserError: It does not fit the study's budget, or diverges.
        """
        budget, epochs = self._record.budget, training["epochs"]
        self._say(
            f"training on {len(data.train):,} sequences of {data.num_items:,} items, "
            f"{epochs} epochs, seed {training['seed']}"
        )
        try:
            return fit(
                config or self.config,
                data.train,
                data.num_items,
                self.device,
                epochs=epochs,
                budget=budget,
                training=training,
                path=folder.with_name(f"{folder.name}.checkpoint.pt"),
                report=lambda epoch, loss: self._say(
                    f"epoch {epoch} of {epochs}: loss {loss:.4f}"
                ),
                weights=weights,
            )
        except InfeasibleTrial as error:
            raise UserError(
                f"--retrain: on all data trial {self._trial.number} needs "
                f"{format_bytes(error.peak_bytes)} or more, beyond the study's budget of "
                f"{format_bytes(budget)}; choose one that takes less with --budget"
            ) from None
        except DivergedTrial as error:
            raise UserError(f"--retrain: {error}; choose another trial with --budget") from None

    def saved(
        self,
        data: PreparedData,
        training: Mapping[str, Any],
        fitted: Fitted,
        **more: Any,
    ) -> SavedModel:
        """A trained model with what there is to know of it.

        Args:
            data: What it was trained on.
            training: What the training was of.
            fitted: What it came to.
            more: What `model.json` says besides, or in place of what it would say.
        """
        config = self.config.resolved(data.num_items)
        lengths = np.minimum(data.train.lengths, config.model.max_length)
        about = {
            "study": self._record.name,
            "trial": self._trial.number,
            "metrics": dict(self._trial.metrics),
            "judged_on": self._record.identity["data"],
            "training": dict(training),
            "memory_budget": self._record.budget,
            "peak_memory": fitted.peak_memory,
            "seconds": fitted.seconds,
            "versions": describe(self.device),
            **more,
        }
        return SavedModel(
            config,
            fitted.weights,
            data.item_ids,
            np.bincount(data.train.items, minlength=data.num_items),
            batch_tokens(
                config.training,
                config.model,
                float(lengths.mean()),
                len(lengths),
                data.num_items,
                on_gpu=on_gpu(self.device),
            ),
            about,
        )


def _is_there(folder: Path, training: Mapping[str, Any]) -> bool:
    try:
        return bool(read_about(folder)["training"] == training)
    except UserError:
        return False
