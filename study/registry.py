"""MLflow's registry: a version for each model, and the alias that says which one serves."""

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import UserError
from study.credentials import hide_password
from study.tracking import build_client, check_server, experiment_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
"""The alias of the version that serves."""

_PACKAGES = ("kernels", "models", "objectives")
"""What the registered model brings of ours: a machine that serves need not have ParetoCut."""
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "torch")


class Registry:
    """The registry of a tracking store."""

    def __init__(self, uri: str, output_dir: Path) -> None:
        """Connects.

        Raises:
            UserError: The server does not answer.
        """
        check_server(uri)
        # The upload of a large model is answered when it is stored.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
        self.client: MlflowClient = build_client(uri)
        self._uri, self._output_dir = uri, output_dir
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)

    def champion(self, name: str) -> Any:
        """The version that serves; None where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            # There is no such name, or it has no such alias.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def fetch(self, name: str, number: str, folder: Path) -> Path:
        """The folder of a version's model, copied to this machine."""
        import mlflow

        found = mlflow.artifacts.download_artifacts(
            f"models:/{name}/{number}", dst_path=str(folder)
        )
        return Path(found) / "artifacts" / _artifact(Path(found))

    def register(
        self,
        name: str,
        folder: Path,
        about: Mapping[str, Any],
        front: list[dict[str, Any]],
        *,
        parent: str | None,
        int8: bool = False,
    ) -> str:
        """Puts a saved model into the registry.

        Args:
            name: Of the registered model.
            folder: The saved model.
            about: What `model.json` of it says.
            front: That of the study, kept beside the model.
            parent: The study's own run, if it has one.
            int8: Whether it is served by a table of bytes.

        Returns:
            The number of the version.

        Raises:
            UserError: MLflow does not take it.
        """
        import mlflow
        from mlflow.exceptions import MlflowException

        run = self.client.create_run(
            experiment_id(self.client, self._uri, self._output_dir),
            run_name=f"{about['study']} {about['trial']} model",
            tags={} if parent is None else {"mlflow.parentRunId": parent},
        )
        try:
            with mlflow.start_run(run_id=run.info.run_id):
                mlflow.log_dict(front, "front.json")
                info = mlflow.pyfunc.log_model(
                    name="model",
                    registered_model_name=name,
                    **as_pyfunc(folder, int8=int8),
                )
        except MlflowException as error:
            raise UserError(
                f"--register {name}: MLflow at {hide_password(self._uri)} does not take the "
                f"model ({' '.join(error.message.split())[:200]})"
            ) from error
        number = str(info.registered_model_version)
        for key, value in _tags(about).items():
            self.client.set_model_version_tag(name, number, key, value)
        return number

    def crown(self, name: str, number: str) -> None:
        """Moves the alias to a version."""
        self.client.set_registered_model_alias(name, CHAMPION, number)


def is_better(about: Mapping[str, Any], champion: Any) -> tuple[bool, str]:
    """Whether a model is to replace the champion, and why.

    It has to have the higher test NDCG@10 of its trial on the same data and split. The test split
    is the one that neither was chosen by.

    Args:
        about: What `model.json` of it says.
        champion: The version that serves; None: there is none.
    """
    if champion is None:
        return True, "the first version of this name"
    known, own = champion.tags, _tags(about)
    for key, what in (("data_digest", "data"), ("split", "split")):
        if known.get(key) != own[key]:
            return False, (
                f"version {champion.version} was judged on another {what} "
                f"({known.get(key)}, not {own[key]})"
            )
    before, now = float(known["test_ndcg_at_10"]), float(own["test_ndcg_at_10"])
    words = f"test NDCG@10 {now:.4f} against {before:.4f} of version {champion.version}"
    return now > before, words


def _tags(about: Mapping[str, Any]) -> dict[str, str]:
    judged = about["judged_on"]
    tags = {
        "study": about["study"],
        "trial": about["trial"],
        "seed": about["training"]["seed"],
        "epochs": about["training"]["epochs"],
        "memory_budget_bytes": about["memory_budget"],
        "peak_memory_bytes": about["peak_memory"],
        "data": judged["name"],
        "data_digest": judged["digest"],
        "split": judged["split"],
        "val_ndcg_at_10": about["metrics"]["val/ndcg_at_10"],
        "test_ndcg_at_10": about["metrics"]["test/ndcg_at_10"],
    }
    return {key: str(value) for key, value in tags.items()}


def as_pyfunc(folder: Path, *, int8: bool) -> dict[str, Any]:
    """A saved model as `mlflow.pyfunc.log_model` takes it.

    Args:
        folder: The saved model.
        int8: Whether it is served by a table of bytes.
    """
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from objectives.recommending import raw_ids
    from objectives.saved_model import SavedModel

    saved = SavedModel.load(folder)
    common = saved.counts_V.argsort(kind="stable")[:-4:-1].copy()
    example = raw_ids(saved.item_ids.take(common))
    kind = DataType.long if isinstance(example[0], int) else DataType.string
    outputs = {
        "items": Array(kind),
        "scores": Array(DataType.double),
        "unknown": DataType.long,
        "popular": DataType.boolean,
    }
    params = [
        ParamSpec("k", DataType.long, 10),
        ParamSpec("remove_seen", DataType.boolean, True),
        ParamSpec("candidates", kind, [], shape=(-1,)),
    ]
    root = Path(__file__).parent.parent
    return {
        "python_model": str(root / "study" / "serving.py"),
        "artifacts": {"model": str(folder)},
        "code_paths": [str(root / package) for package in _PACKAGES],
        "pip_requirements": _requirements(),
        "model_config": {"int8": int8},
        "signature": ModelSignature(
            Schema([ColSpec(Array(kind), "history")]),
            Schema([ColSpec(of, name) for name, of in outputs.items()]),
            ParamSchema(params),
        ),
        "input_example": pd.DataFrame({"history": [example, example[:1]]}),
    }


def _requirements() -> list[str]:
    # The part behind + is of a wheel that the package index does not have.
    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def _artifact(model: Path) -> str:
    """The folder of the saved model below a downloaded one's artifacts."""
    (folder,) = (path.parent.name for path in (model / "artifacts").glob("*/model.json"))
    return folder
