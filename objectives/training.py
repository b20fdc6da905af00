"""The training loop.

Shapes: B sequences, T tokens of packed sequences, D width.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.transformer import Transformer
from objectives.config import TrainingConfig
from objectives.data.sequences import (
    DeviceSequences,
    TargetBatch,
    TrainingBatch,
    masked_batch,
    next_item_batch,
    shuffled_batches,
)
from objectives.losses import Loss
from objectives.optimization import Optimization


class NonFiniteLoss(Exception):
    """The mean training loss of an epoch is not finite."""


@dataclass
class Trainer:
    """Trains a model on sequences; bf16 autocast on CUDA.

    Attributes:
        model: The model, on its device.
        loss: The loss of a step.
        sequences: Training sequences on the model's device.
        config: Optimizer and schedule.
        seed: Seeds the order of sequences and rows.
        step: Optimizer steps so far.
        optimization: What makes a step.
    """

    model: Transformer
    loss: Loss
    sequences: DeviceSequences
    config: TrainingConfig
    seed: int

    def __post_init__(self) -> None:
        self.device = self.model.items.weight.device
        self.step = 0
        self._num_losses = 0
        self._order = torch.Generator().manual_seed(self.seed)
        self._rows = torch.Generator(self.device).manual_seed(self.seed)
        steps_per_epoch = math.ceil(len(self.sequences) / self.config.batch_size)
        num_steps = self.config.max_epochs * steps_per_epoch
        self.optimization = Optimization(self.model, self.config, num_steps)

    def train_epoch(self) -> float:
        """One pass over the sequences.

        Returns:
            The mean loss per row.

        Raises:
            NonFiniteLoss: The mean is not finite.
        """
        self.model.train()
        total = torch.zeros((), device=self.device)
        rows = 0
        for rows_of_parts in shuffled_batches(
            len(self.sequences), self.config.batch_size, self.config.accumulation, self._order
        ):
            parts = [self._batch(rows_B) for rows_B in rows_of_parts]
            rows_of_batch = _num_rows(parts)
            total += self.train_step(parts) * rows_of_batch
            rows += rows_of_batch
        mean = float(total) / rows
        if mean - mean != 0:
            raise NonFiniteLoss
        return mean

    def train_step(self, parts: list[TrainingBatch]) -> Tensor:
        """One optimizer step on a batch in parts.

        Returns:
            The mean loss of the batch, detached.
        """
        num_rows = max(1, _num_rows(parts))
        total = torch.zeros((), device=self.device)
        for part in parts:
            loss = self._mean_loss(part) * (len(part.targets_N) / num_rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.optimization.step()
        self.step += 1
        return total

    def _mean_loss(self, batch: TrainingBatch) -> Tensor:
        with self._autocast():
            states_TD = self.model(batch.ids_T, batch.packing)
        # Random order: neighbours of one sequence must not share their negatives.
        order_N = torch.randperm(len(batch.rows_N), device=self.device, generator=self._rows)
        self._num_losses += 1
        return self.loss(
            states_TD[batch.rows_N[order_N]],
            self.model.outputs.weight,
            batch.targets_N[order_N],
            self._num_losses - 1,
        )

    def largest_batch(self) -> list[TrainingBatch]:
        """The batch that takes most memory: that of the longest sequences."""
        rows_B = self.sequences.lengths_S.argsort(descending=True)[: self.config.batch_size]
        return [self._batch(part_B) for part_B in rows_B.chunk(self.config.accumulation)]

    def _batch(self, rows_B: Tensor) -> TrainingBatch:
        length, share = self.model.config.max_length, self.model.config.mask_share
        if self.model.causal:
            return next_item_batch(self.sequences, rows_B, length)
        return masked_batch(self.sequences, rows_B, length, share, self._order)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, as `torch.save` takes it."""
        return {
            "model": self.model.state_dict(),
            "optimization": self.optimization.state_dict(),
            "step": self.step,
            "num_losses": self._num_losses,
            "generators": [generator.get_state() for generator in self._generators()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        self.model.load_state_dict(state["model"])
        self.optimization.load_state_dict(state["optimization"])
        self.step, self._num_losses = state["step"], state["num_losses"]
        for generator, known in zip(self._generators(), state["generators"], strict=True):
            generator.set_state(known)

    def _generators(self) -> list[torch.Generator]:
        """Those of the order of sequences and rows, and torch's own, which dropout draws from."""
        default = torch.default_generator
        if self.device.type == "cuda":
            default = torch.cuda.default_generators[self.device.index or 0]
        return [self._order, self._rows, default]

    def encoder(self) -> Callable[[TargetBatch], Tensor]:
        """The state behind each history's last item, in evaluation mode."""
        self.model.eval()

        def encode(batch: TargetBatch) -> Tensor:
            with torch.no_grad(), self._autocast():
                states_TD: Tensor = self.model(batch.ids_T, batch.packing)
            return states_TD[batch.packing.last_B]

        return encode

    def _autocast(self) -> AbstractContextManager[object]:
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()


def _num_rows(parts: list[TrainingBatch]) -> int:
    return sum(len(part.targets_N) for part in parts)
