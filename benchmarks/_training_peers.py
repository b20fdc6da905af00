"""The workers of `benchmarks.training` that train other people's systems, from their own code.

python -m benchmarks._training_peers SYSTEM FOLDER

Each has its own data set classes, loader, model, loss, optimizer and trainer, built by its public
interface; what is ours is a callback that reads the clock. Loggers, progress bars, checkpoints and
validation are off. README.md beside this says how to get their code.

Shapes: U users, B sequences of a batch, L positions, D width.
"""

import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks import _gpu_profile
from benchmarks._training_setup import Arrays, Setup, peak_bytes, spread, synchronize, work

_STACK = Path(__file__).parents[1] / ".peers" / "published-stack"
_WARMUP_STEPS = 10
_WINDOW = 5
"""Steps between two readings of the clock, which wait for the device."""
_PROFILED_STEPS = 10
_PUBLISHED_WORKERS = 4
"""As in its configuration of MovieLens-20M."""
_RECTOOLS_WORKERS = 8
_ATTENTION = torch.nn.MultiheadAttention
"""What all of them attend with; the first one sees every position that is computed."""
_BUCKET_ROWS = 32
"""Sequences that RePlay's encoder takes together where it sorts them by length."""


class _Clock:
    """A callback that times steps, then profiles a few more, then stops the training.

    The clock runs on between the steps: waiting for the loader counts, as does all else that the
    trainer does there.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._count = self._tokens = self._last_step = 0
        self._begin = self._last = self._ended = self._waited = 0.0
        self._windows: list[float] = []
        self._profiler: Any = None
        self._result: dict[str, Any] = {}

    def __deepcopy__(self, _: dict[int, Any]) -> "_Clock":
        """Itself: RecTools trains with a copy of its trainer, which is to have this clock."""
        return self

    def start(self, trainer: Any, module: Any) -> None:
        """Called when the training starts."""
        self._begin = self._last = self._ended = time.perf_counter()
        attention = next(part for part in module.modules() if isinstance(part, _ATTENTION))
        attention.register_forward_pre_hook(self._add_tokens, with_kwargs=True)

    def _add_tokens(self, _: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        query_BLD = arguments[0] if arguments else keywords["query"]
        self._tokens += query_BLD.shape[0] * query_BLD.shape[1]

    def start_step(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Called when a batch is there."""
        if self._count >= _WARMUP_STEPS:
            self._waited += time.perf_counter() - self._ended

    def end_step(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Called behind every step."""
        self._read(trainer, outputs)
        self._ended = time.perf_counter()

    def _read(self, trainer: Any, outputs: Any) -> None:
        self._count += 1
        if self._profiler is not None:
            if self._count == self._last_step:
                torch.cuda.synchronize()
                self._result |= _gpu_profile.shares(self._profiler, _is_loss)
                trainer.should_stop = True
            return
        if self._count % _WINDOW:
            return
        synchronize(self._setup)
        now = time.perf_counter()
        if self._count > _WARMUP_STEPS:
            self._windows.append((now - self._last) / _WINDOW)
        self._last = now
        timed = self._count - _WARMUP_STEPS
        if timed >= self._setup.steps or (
            self._windows and now - self._begin > self._setup.time_limit
        ):
            self._finish(trainer, float(outputs["loss"]))

    def _finish(self, trainer: Any, loss: float) -> None:
        self._result = {
            "timed_steps": _WINDOW * len(self._windows),
            "tokens_per_step": self._tokens / self._count,
            "final_loss": loss,
            "peak_bytes": peak_bytes(self._setup),
            "data_share": self._waited / (_WINDOW * sum(self._windows)),
            **spread("step_ms", [1e3 * seconds for seconds in self._windows]),
        }
        if self._setup.device == "cuda":
            self._last_step = self._count + _PROFILED_STEPS
            self._profiler = _gpu_profile.start()
        else:
            trainer.should_stop = True

    @property
    def result(self) -> dict[str, Any]:
        """The measurement, of a loss that may have diverged.

        Raises:
            RuntimeError: The training ended before it was measured.
        """
        if not self._result:
            raise RuntimeError("the training ended before it was measured")
        is_finite = math.isfinite(self._result["final_loss"])
        return {**self._result, "outcome": "ok" if is_finite else "the loss is not finite"}


def _is_loss(name: str) -> bool:
    """Whether a kernel can only be the loss's; its matrix products are not among these."""
    return any(part in name for part in ("cce_", "indexed_neg_dot", "nll_loss", "LogSoftMax"))


def _trainer(lightning: Any, clock: _Clock, setup: Setup, precision: str) -> Any:
    """A trainer of either Lightning package that has the clock, and writes nothing."""
    callback = lightning.callbacks.LambdaCallback(
        on_train_start=clock.start,
        on_train_batch_start=clock.start_step,
        on_train_batch_end=clock.end_step,
    )
    return lightning.Trainer(
        max_epochs=-1,
        accelerator="gpu" if setup.device == "cuda" else "cpu",
        devices=1,
        precision=precision,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )


def _published(setup: Setup, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """MemoryEfficientSRS: `TrainRunner` with its configuration of MovieLens-20M.

    Two and not four heads, and a dropout of 0.1 are there. Its kernels need a GPU: without one the
    loss is its CE- of all gathered rows, and the precision full.
    """
    if not _STACK.is_dir():
        raise RuntimeError(f"no folder {_STACK}: benchmarks/README.md says how to get it")
    _do_without_polars()
    # Both its `kernels` and, inside, packages that it imports by themselves.
    sys.path[:0] = [str(_STACK), str(_STACK / "kernels")]
    import lightning.pytorch
    import pandas
    from src.data import FeatureHint, FeatureSource, FeatureType
    from src.data.nn import (
        PandasSequentialDataset,
        TensorFeatureInfo,
        TensorFeatureSource,
        TensorSchema,
    )
    from src.models.nn.optimizer_utils import FatOptimizerFactory
    from src.models.nn.sequential.sasrec import SasRec, SasRecTrainingDataset
    from torch.utils.data import DataLoader

    on_gpu = setup.device == "cuda"
    loss, precision = ("CCE", "16-mixed") if on_gpu else ("CE", "32-true")
    feature = "item_id_seq"
    schema = TensorSchema(
        TensorFeatureInfo(
            name=feature,
            cardinality=setup.items,
            is_seq=True,
            feature_type=FeatureType.CATEGORICAL,
            feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
            feature_hint=FeatureHint.ITEM_ID,
            embedding_dim=setup.width,
        )
    )
    items = np.split(arrays.items.astype(np.int64), arrays.offsets[1:-1])
    sequences = pandas.DataFrame({"user_id": np.arange(setup.users), feature: items})
    loader = DataLoader(
        SasRecTrainingDataset(
            PandasSequentialDataset(schema, "user_id", feature, sequences),
            max_sequence_length=setup.max_length,
            padding_value=0,
        ),
        shuffle=True,
        batch_size=setup.batch_size,
        num_workers=_PUBLISHED_WORKERS,
        pin_memory=True,
    )
    torch.manual_seed(setup.seed)
    model = SasRec(
        schema,
        block_count=setup.blocks,
        head_count=setup.heads,
        hidden_size=setup.width,
        max_seq_len=setup.max_length,
        dropout_rate=setup.dropout,
        loss_type=loss,
        loss_sample_count=setup.negatives,
        optimizer_factory=FatOptimizerFactory(learning_rate=0.001),
    )
    clock = _Clock(setup)
    _trainer(lightning.pytorch, clock, setup, precision).fit(model, loader)
    about = {"loss": f"{loss}-", "precision": precision, "workers": _PUBLISHED_WORKERS}
    return {**clock.result, **about}


def _rectools(loss: str, setup: Setup, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """`SASRecModel.fit` on a data set of interactions; mixed precision is the trainer's option."""
    import pandas
    import pytorch_lightning
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models.nn.transformers.sasrec import SASRecModel

    places = np.arange(len(arrays.items)) - np.repeat(arrays.offsets[:-1], arrays.lengths)
    interactions = pandas.DataFrame(
        {
            Columns.User: np.repeat(np.arange(setup.users), arrays.lengths),
            Columns.Item: arrays.items.astype(np.int64),
            Columns.Weight: np.ones(len(arrays.items)),
            Columns.Datetime: places.astype("datetime64[s]").astype("datetime64[ns]"),
        }
    )
    clock = _Clock(setup)
    precision = "bf16-mixed"
    torch.manual_seed(setup.seed)
    model = SASRecModel(
        n_blocks=setup.blocks,
        n_heads=setup.heads,
        n_factors=setup.width,
        session_max_len=setup.max_length,
        dropout_rate=setup.dropout,
        dataloader_num_workers=_RECTOOLS_WORKERS,
        batch_size=setup.batch_size,
        loss=loss,
        n_negatives=setup.negatives,
        get_trainer_func=lambda: _trainer(pytorch_lightning, clock, setup, precision),
    )
    model.fit(Dataset.construct(interactions))
    return {**clock.result, "loss": loss, "precision": precision, "workers": _RECTOOLS_WORKERS}


def _replay(
    loss: str, in_buckets: bool, setup: Setup, arrays: Arrays, folder: Path
) -> dict[str, Any]:
    """`replay.nn`'s SasRec on a Parquet file, whose batches it makes on the device.

    Args:
        loss: "CE", or "CESampled" with negatives that a batch shares.
        in_buckets: Sequences of a batch are encoded together with those of about their length.
        setup: The shape.
        arrays: The data.
        folder: Gets the Parquet file.
    """
    _do_without_polars()
    import lightning.pytorch
    import pyarrow as pa
    import pyarrow.parquet
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import ParquetModule, TensorFeatureInfo, TensorFeatureSource, TensorSchema
    from replay.nn import loss as losses
    from replay.nn.lightning import LightningModule
    from replay.nn.sequential import LengthBucketedQueryEncoder, SasRec
    from replay.nn.transform import UniformNegativeSamplingTransform
    from replay.nn.transform.template import make_default_sasrec_transforms

    feature = "item_id"
    schema = TensorSchema(
        [
            TensorFeatureInfo(
                feature,
                is_seq=True,
                feature_type=FeatureType.CATEGORICAL,
                embedding_dim=setup.width,
                padding_value=setup.items,
                cardinality=setup.items,
                feature_hint=FeatureHint.ITEM_ID,
                feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, feature)],
            )
        ]
    )
    lists = pa.LargeListArray.from_arrays(arrays.offsets, arrays.items.astype(np.int64))
    path = folder / "replay.parquet"
    pa.parquet.write_table(pa.table({feature: lists}), path, row_group_size=setup.users)
    transforms = make_default_sasrec_transforms(schema)["train"]
    if loss == "CESampled":
        transforms.append(UniformNegativeSamplingTransform(setup.items, setup.negatives))
    data = ParquetModule(
        batch_size=setup.batch_size,
        metadata={"train": {feature: {"shape": setup.max_length + 1, "padding": setup.items}}},
        transforms={"train": transforms},
        train_path=str(path),
    )
    torch.manual_seed(setup.seed)
    body = SasRec.from_params(
        schema,
        embedding_dim=setup.width,
        num_heads=setup.heads,
        num_blocks=setup.blocks,
        max_sequence_length=setup.max_length,
        dropout=setup.dropout,
    ).body
    if in_buckets:
        body.encoder = LengthBucketedQueryEncoder(body.encoder, _BUCKET_ROWS)
    of_loss = {"CE": {"ignore_index": setup.items}, "CESampled": {}}
    model = LightningModule(SasRec(body, getattr(losses, loss)(**of_loss[loss])))
    clock = _Clock(setup)
    # Its buckets cannot be put together again under autocast.
    precision = "bf16-true" if in_buckets else "bf16-mixed"
    _trainer(lightning.pytorch, clock, setup, precision).fit(model, datamodule=data)
    name = f"{loss}, {_BUCKET_ROWS} in a bucket" if in_buckets else loss
    return {**clock.result, "loss": name, "precision": precision, "workers": 0}


def _do_without_polars() -> None:
    """Stands in for polars, of which the peers import names and here use none."""
    polars: Any = ModuleType("polars")
    polars.DataFrame = type("DataFrame", (), {})
    polars.read_parquet = polars.from_pandas = None
    sys.modules["polars"] = polars


SYSTEMS: dict[str, Callable[[Setup, Arrays, Path], dict[str, Any]]] = {
    "published": _published,
    "rectools-softmax": functools.partial(_rectools, "softmax"),
    "rectools-sampled": functools.partial(_rectools, "sampled_softmax"),
    "rectools-gbce": functools.partial(_rectools, "gBCE"),
    "replay-ce": functools.partial(_replay, "CE", False),
    "replay-sampled": functools.partial(_replay, "CESampled", False),
    "replay-buckets": functools.partial(_replay, "CESampled", True),
}


def measure(system: str, setup: Setup, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """Trains a few steps."""
    return SYSTEMS[system](setup, arrays, folder)


if __name__ == "__main__":
    work(measure)
