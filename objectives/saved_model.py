"""A trained model in a folder: all that is needed to serve it, and nothing that is executed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.transformer import Transformer
from objectives.config import TrialConfig
from objectives.errors import UserError

_WEIGHTS, _ITEMS, _MODEL = "weights.pt", "items.parquet", "model.json"
_FORMAT = 1
"""Version of the files; raise it when they change."""


@dataclass(frozen=True)
class SavedModel:
    """A trained model and its catalogue.

    Attributes:
        config: How it was trained.
        weights: Of the model; those of a loaded one stay in the file until they are used.
        item_ids: The source's id of every item [V].
        counts_V: How often each item occurs in the training data.
        batch_tokens: Tokens of an evaluation batch, as trials have it.
        about: Where it comes from: `study.retrain` says what is in it.
    """

    config: TrialConfig
    weights: Mapping[str, Tensor]
    item_ids: pa.Array
    counts_V: NDArray[np.int64]
    batch_tokens: int
    about: Mapping[str, Any]

    def build(self, device: torch.device) -> Transformer:
        """The model with its weights, in evaluation mode."""
        with torch.device("meta"):
            model = self.config.model.build(
                len(self.item_ids), table_dtype=self.config.training.table_dtype
            )
        model.load_state_dict(self.weights, assign=True)
        return model.eval().requires_grad_(False).to(device)

    def save(self, folder: Path) -> None:
        """Writes the folder, `model.json` last: where that stands, all is there.

        Raises:
            UserError: It cannot be written.
        """
        model = {
            "format": _FORMAT,
            "config": self.config.flat(),
            "batch_tokens": self.batch_tokens,
            "about": dict(self.about),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _MODEL).unlink(missing_ok=True)
            torch.save(dict(self.weights), folder / _WEIGHTS)
            items = pa.table({"item": self.item_ids, "count": self.counts_V})
            pa.parquet.write_table(items, folder / _ITEMS)
            (folder / _MODEL).write_text(json.dumps(model, indent=2) + "\n")
        except (OSError, RuntimeError) as error:
            raise UserError(f"{folder}: cannot be written ({error})") from error

    @staticmethod
    def load(folder: Path) -> "SavedModel":
        """What `save` wrote.

        Raises:
            UserError: The folder holds no such model, or a damaged one.
        """
        model = _read(folder)
        try:
            items = pa.parquet.read_table(folder / _ITEMS)
            return SavedModel(
                TrialConfig.from_flat(model["config"]),
                torch.load(folder / _WEIGHTS, mmap=True, weights_only=True),
                items["item"].combine_chunks(),
                items["count"].to_numpy(),
                model["batch_tokens"],
                model["about"],
            )
        except Exception as error:
            raise UserError(f"{folder}: the model is damaged ({error}); train it again") from error


def read_about(folder: Path) -> dict[str, Any]:
    """Where a saved model comes from.

    Raises:
        UserError: There is none, or it is of another version.
    """
    about: dict[str, Any] = _read(folder)["about"]
    return about


def _read(folder: Path) -> dict[str, Any]:
    try:
        model: dict[str, Any] = json.loads((folder / _MODEL).read_text())
        is_known = model["format"] == _FORMAT and isinstance(model["about"], dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: holds no model of python -m study.best --retrain") from error
    if not is_known:
        raise UserError(f"{folder}: the model is of another version of ParetoCut; train it again")
    return model
