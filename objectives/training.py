"""The training loop.

Shapes: B sequences, L positions, N rows (non-pad positions), D width.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.sasrec import SASRec
from objectives.config import TrainingConfig
from objectives.data.sequences import (
    DeviceSequences,
    TargetBatch,
    TrainingBatch,
    training_batch,
    training_batches,
)
from objectives.losses import Loss


class NonFiniteLoss(Exception):
    """The mean training loss of an epoch is not finite."""


@dataclass
class Trainer:
    """Trains a model on sequences: AdamW, bf16 autocast on CUDA.

    Attributes:
        model: The model, on its device.
        loss: The loss of a step.
        sequences: Training sequences on the model's device.
        config: Optimizer and schedule.
        seed: Seeds the order of sequences and rows.
    """

    model: SASRec
    loss: Loss
    sequences: DeviceSequences
    config: TrainingConfig
    seed: int

    def __post_init__(self) -> None:
        self.device = self.model.items.weight.device
        self.step = 0
        self._order = torch.Generator().manual_seed(self.seed)
        self._rows = torch.Generator(self.device).manual_seed(self.seed)
        # Decay pulls on what mixes features, not on the vectors of items, positions and norms.
        matrices = {
            id(parameter) for parameter in self.model.blocks.parameters() if parameter.ndim == 2
        }
        groups: list[list[nn.Parameter]] = [[], []]
        for parameter in self.model.parameters():
            groups[id(parameter) in matrices].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups[0], "weight_decay": 0.0},
                {"params": groups[1], "weight_decay": self.config.weight_decay},
            ],
            lr=self.config.learning_rate,
            fused=True,
        )

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
        for batch in training_batches(
            self.sequences, self.config.batch_size, self.model.config.max_length, self._order
        ):
            total += self.train_step(batch) * len(batch.targets_N)
            rows += len(batch.targets_N)
        mean = float(total) / rows
        if mean - mean != 0:
            raise NonFiniteLoss
        return mean

    def train_step(self, batch: TrainingBatch) -> Tensor:
        """One optimizer step.

        Returns:
            The mean loss of the batch, detached.
        """
        with self._autocast():
            states_BLD = self.model(batch.ids_BL)
        # Random order: neighbours of one sequence must not share their negatives.
        rows_N = torch.randperm(len(batch.targets_N), device=self.device, generator=self._rows)
        states_ND = states_BLD[batch.valid_BL][rows_N]
        loss = self.loss(states_ND, self.model.items.weight, batch.targets_N[rows_N], self.step)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    def largest_batch(self) -> TrainingBatch:
        """The batch that takes most memory: that of the longest sequences."""
        rows_B = self.sequences.lengths_S.argsort(descending=True)[: self.config.batch_size]
        return training_batch(self.sequences, rows_B, self.model.config.max_length)

    def encoder(self) -> Callable[[TargetBatch], Tensor]:
        """The state behind each history's last item, in evaluation mode."""
        self.model.eval()

        def encode(batch: TargetBatch) -> Tensor:
            with torch.no_grad(), self._autocast():
                states_BLD = self.model(batch.ids_BL)
            rows_B = torch.arange(len(batch.last_B), device=self.device)
            states_BD: Tensor = states_BLD[rows_B, batch.last_B]
            return states_BD

        return encode

    def _autocast(self) -> AbstractContextManager[object]:
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()
