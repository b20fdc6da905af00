"""Training to a known epoch, without validation: how the model is made that serves."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from objectives import checkpoint
from objectives.config import TrialConfig
from objectives.data import Sequences
from objectives.memory import measured_memory
from objectives.training import NonFiniteLoss, arithmetic, build_trainer
from objectives.trial import DivergedTrial


@dataclass(frozen=True)
class Fitted:
    """What a training came to.

    Attributes:
        weights: Of the model, on the CPU.
        peak_memory: Bytes allocated at most in this process.
        seconds: What it took, without what was lost between a checkpoint and a new try.
    """

    weights: dict[str, Tensor]
    peak_memory: int
    seconds: float


def fit(
    config: TrialConfig,
    train: Sequences,
    num_items: int,
    device: torch.device,
    *,
    epochs: int,
    budget: int,
    training: Mapping[str, Any],
    path: Path,
    report: Callable[[int, float], None],
    weights: Mapping[str, Tensor] | None = None,
) -> Fitted:
    """Trains for some epochs of the trial's schedule; goes on from a checkpoint if there is one.

    Args:
        config: The trial.
        train: What to train on.
        num_items: V.
        device: Where.
        epochs: How many, of the `max_epochs` that the schedule is for.
        budget: Bytes that it may allocate.
        training: What the training is of, for the checkpoint; has its "seed".
        path: The checkpoint, removed at the end.
        report: Called with each epoch, from 1, and its mean loss.
        weights: What the model begins with; None: fresh ones.

    Raises:
        InfeasibleTrial: It does not fit the budget.
        DivergedTrial: The loss is not finite.
        UserError: The checkpoint is of another training.
    """
    config = config.resolved(num_items)
    known = checkpoint.load(path, training)
    begin = time.perf_counter() - (known["seconds"] if known else 0.0)
    with arithmetic(config.training), measured_memory(device, budget) as memory:
        trainer = build_trainer(
            config, train, num_items, device, seed=training["seed"], budget=budget
        )
        if known is not None:
            trainer.load_state_dict(known["trainer"])
        elif weights is not None:
            trainer.model.load_state_dict(weights)
        pace = checkpoint.Pace()
        for epoch in range(known["epoch"] + 1 if known else 1, epochs + 1):
            try:
                report(epoch, trainer.train_epoch())
            except NonFiniteLoss:
                raise DivergedTrial(memory.peak, epoch) from None
            if epoch < epochs and pace.allows():
                state = {
                    "trainer": trainer.state_dict(),
                    "epoch": epoch,
                    "seconds": time.perf_counter() - begin,
                }
                with pace.writing():
                    checkpoint.save(path, training, state)
        found = {
            name: value.to("cpu", copy=True) for name, value in trainer.model.state_dict().items()
        }
    path.unlink(missing_ok=True)
    return Fitted(found, memory.peak, time.perf_counter() - begin)
