"""The model as MLflow runs it: this file is copied beside the weights (models from code).

A row of the input has a `history` of raw item ids, oldest first; one of the output has `items` and
`scores`, best first, `unknown`, how many items of the history are not in the catalogue, and
`popular`, whether none is, so that the items are the most popular ones.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException

from objectives.errors import UserError
from objectives.recommending import Recommender
from objectives.saved_model import SavedModel


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Answers histories, on a GPU where there is one."""

    def load_context(self, context: Any) -> None:
        """Loads the model from the artifacts."""
        saved = SavedModel.load(Path(context.artifacts["model"]))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        int8 = bool((context.model_config or {}).get("int8"))
        self._recommender = Recommender(saved, device, int8=int8)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Lists as a data frame.

        Args:
            context: Not used.
            model_input: Data frame with a column `history`.
            params: `k`, `remove_seen` and `candidates`; see `Recommender.recommend`.

        Raises:
            MlflowException: Something of that does not fit, which a server answers with 400.
        """
        asked = dict(params or {})
        try:
            lists = self._recommender.recommend(
                list(model_input["history"]),
                asked.get("k", 10),
                remove_seen=asked.get("remove_seen", True),
                candidates=asked.get("candidates") or None,
            )
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return pd.DataFrame(vars(lists), index=model_input.index)


mlflow.models.set_model(Served())
