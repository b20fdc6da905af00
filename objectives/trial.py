"""The contract of an objective: `objective(config, context) -> TrialResult`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from objectives.config import TrialConfig

QUALITY = "val/ndcg_at_10"
"""The metric that a study maximises and that early stopping watches."""

MemorySource = Literal["cuda", "tracked", "recorded"]
"""Where a peak comes from: CUDA's caching allocator, without a GPU tracked tensors, or a table."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial that trained to its end has to say.

    Attributes:
        quality: Validation NDCG@10 of the best epoch.
        peak_memory: Bytes allocated at most, training, validation and test included.
        seconds: Wall time of the trial.
        metrics: Validation and test metrics of the best epoch's weights, by name.
        epochs: Epochs trained.
        best_epoch: The epoch, from 1, whose weights were kept.
        peak_reserved: Bytes that the allocator had reserved at most; None without a GPU.
        memory_source: Where the peaks come from.
        memory_parts: Bytes of each part of the peak as it is predicted; empty where it is not.
    """

    quality: float
    peak_memory: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    best_epoch: int = 0
    peak_reserved: int | None = None
    memory_source: MemorySource = "cuda"
    memory_parts: Mapping[str, int] = field(default_factory=dict)


class InfeasibleTrial(Exception):
    """The configuration does not fit the budget.

    Attributes:
        peak_bytes: Its peak memory; a lower bound unless the source is "probed".
        source: How that is known.
    """

    def __init__(
        self, peak_bytes: int, source: Literal["predicted", "probed", "out-of-memory"]
    ) -> None:
        super().__init__(f"needs {peak_bytes} bytes or more ({source})")
        self.peak_bytes = peak_bytes
        self.source = source


class DivergedTrial(Exception):
    """The training loss is no longer finite.

    Attributes:
        peak_bytes: Peak memory up to then.
        epoch: The epoch, from 1, in which it happened.
    """

    def __init__(self, peak_bytes: int, epoch: int) -> None:
        super().__init__(f"the training loss was not finite in epoch {epoch}")
        self.peak_bytes = peak_bytes
        self.epoch = epoch


class MachineFault(Exception):
    """The machine failed, not the configuration: the trial deserves another try."""


class DeviceLost(MachineFault):
    """The process can use its device no more: only another one can."""


class TrialContext(Protocol):
    """What an objective is given beside the configuration.

    Attributes:
        seed: Seeds all that is random in the trial.
        memory_budget: Bytes that the trial may allocate.
        checkpoint: File for the state of the training, from which another try goes on; None: none.
        leaving: Whether the next report will end this try, so that its state is to be written.
    """

    @property
    def seed(self) -> int:
        """See the class."""

    @property
    def memory_budget(self) -> int:
        """See the class."""

    @property
    def checkpoint(self) -> Path | None:
        """See the class."""

    @property
    def leaving(self) -> bool:
        """See the class."""

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Called for every epoch, from 1; may raise `optuna.TrialPruned`.

        A training that goes on from a checkpoint reports the epochs before it again.
        """


Objective = Callable[[TrialConfig, TrialContext], TrialResult]
"""Trains, evaluates and measures one configuration.

Raises InfeasibleTrial if it does not fit the budget, DivergedTrial if its loss is not finite,
MachineFault if the machine failed.
"""
