"""The training loop.

Shapes: B sequences, T tokens of packed sequences, N rows of the loss, D width.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.gpu import on_gpu
from models.blocks import Block
from models.transformer import Transformer
from objectives.capture import CapturedStep, GraphMemory
from objectives.config import TrainingConfig, TrialConfig
from objectives.data.batch_sizes import Shape
from objectives.data.batches import Plan, TrainingBatches
from objectives.data.prepared import Sequences
from objectives.data.sequences import DeviceSequences, TargetBatch, stays_on_host
from objectives.evaluation import autocast, encode
from objectives.losses import Loss, build_loss
from objectives.optimization import Optimization
from objectives.parallel import ALONE, Group


class NonFiniteLoss(Exception):
    """The mean training loss of an epoch is not finite."""


@contextmanager
def arithmetic(config: TrainingConfig) -> Iterator[None]:
    """Sums within the block are added in a fixed order, if the configuration asks for it.

    cuBLAS reads the size of its workspace once in a process. By default it takes 32 MiB of a
    Hopper card, which are part of every peak; 8 MiB are as fast (H200, a step of 21,000 tokens of
    width 256), but only the former sums in a fixed order.
    """
    is_fixed = config.arithmetic == "deterministic"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8" if is_fixed else ":4096:2:16:8")
    if is_fixed == torch.are_deterministic_algorithms_enabled():
        # To say it again would import torch's compiler, in three seconds.
        yield
        return
    torch.use_deterministic_algorithms(is_fixed)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(not is_fixed)


@dataclass
class Trainer:
    """Trains a model on sequences; bf16 autocast and captured steps on CUDA.

    Dropout and the order of rows are drawn from torch's own generator of the device.

    A group of N processes trains as one does with N times the accumulation: part p of a batch is
    that of rank p modulo N, with the candidates that it has there. Only what comes from torch's
    own generator is drawn by each rank for itself.

    Attributes:
        model: The model, on its device.
        loss: The loss of a step.
        sequences: Training sequences for the model's device.
        config: Optimizer and schedule.
        seed: Seeds the order of sequences, and the masks.
        group: The processes that train the model, each with a copy of it.
        step: Optimizer steps so far.
        optimization: What makes a step.
        batches: What it is made of.
    """

    model: Transformer
    loss: Loss
    sequences: DeviceSequences
    config: TrainingConfig
    seed: int
    group: Group = ALONE

    def __post_init__(self) -> None:
        self.device = self.model.items.weight.device
        self.step = 0
        # Of the parts so far, in the order of the group.
        self._num_losses = torch.full((1,), self.group.rank, device=self.device)
        self._order = torch.Generator().manual_seed(self.seed)
        for block in self.model.modules():
            if isinstance(block, Block):
                block.recomputes = self.config.activations == "recomputed"
        model = self.model.config
        self.batches = TrainingBatches(
            self.sequences,
            batch_size=self.config.batch_size,
            parts=self.config.accumulation * self.group.size,
            max_length=model.max_length,
            mask_share=None if self.model.causal else model.mask_share,
            generator=self._order,
            fixed_sizes=on_gpu(self.device),
            mine=slice(self.group.rank, None, self.group.size),
        )
        num_steps = self.config.max_epochs * len(self.batches)
        self.optimization = Optimization(self.model, self.config, num_steps, self.group)
        self._graphs = self._captured = None
        if self.device.type == "cuda":
            self._graphs = GraphMemory(self.device)
            self._captured = CapturedStep(self._graphs, self.group)

    def train_epoch(self) -> float:
        """One pass over the sequences.

        Returns:
            The mean loss of a prediction.

        Raises:
            NonFiniteLoss: The mean is not finite.
        """
        self.model.train()
        self._part_ways()
        total = torch.zeros((), device=self.device)
        num_predictions = 0
        for parts in self.batches.epoch():
            total += self.train_step(parts)
            num_predictions += sum(part.num_predictions for part in parts)
        self.group.reduce(total)
        mean = float(total) / max(1, sum(self.group.agree(num_predictions)))
        if mean - mean != 0:
            raise NonFiniteLoss
        return mean

    def _part_ways(self) -> None:
        """From here on ranks draw differently, and as in every try that comes to this step."""
        if self.group.size > 1:
            source = np.random.SeedSequence((self.seed, self.step, self.group.rank))
            torch.manual_seed(int(source.generate_state(1)[0]))

    def train_step(self, parts: list[Plan]) -> Tensor:
        """One optimizer step on a batch in parts, in a group on those of this rank.

        Returns:
            The loss, summed over these parts' predictions.
        """
        self.optimization.set_rate(self.step)
        self.step += 1
        if self._captured is not None:
            numbers = torch.from_numpy(np.stack([part.numbers for part in parts]))
            if self.sequences.on_host:
                # With all the items it is long: only a copy of pinned memory waits for nothing.
                numbers = numbers.pin_memory()
            return self._captured(self._step_on_device, numbers, parts[0].shape)
        total = sum(
            (self._add_gradients(torch.from_numpy(part.numbers), part.shape) for part in parts),
            start=torch.zeros(()),
        )
        self.optimization.step()
        return total

    def _step_on_device(self, numbers: Tensor, shape: Shape) -> Tensor:
        """A step on parts of one shape, each with a row of numbers."""
        total = torch.zeros((), device=self.device)
        for part in numbers:
            total += self._add_gradients(part, shape)
        self.optimization.step()
        return total

    def _add_gradients(self, numbers: Tensor, shape: Shape) -> Tensor:
        """Adds the gradients of a part to those of the mean loss; gives its summed loss."""
        batch = self.batches.assemble(numbers, shape)
        # Random order: neighbours of one sequence must not share their negatives.
        order_N = torch.randperm(shape.num_rows, device=self.device)
        with autocast(self.device):
            states_TD = self.model(batch.ids_T, batch.packing)
            loss = self.loss(
                states_TD.index_select(0, batch.rows_N[order_N]),
                self.model.outputs.weight,
                batch.targets_N[order_N],
                self._num_losses,
            )
        (loss / batch.num_predictions.clamp(min=1)).backward()  # type: ignore[no-untyped-call]
        self._num_losses += self.group.size
        return loss.detach()

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
        """Goes back to where `state_dict` was called, before the first step."""
        self.model.load_state_dict(state["model"])
        self.optimization.load_state_dict(state["optimization"])
        self.step = state["step"]
        # The state is that of rank 0.
        self._num_losses.copy_(state["num_losses"] + self.group.rank)
        for generator, known in zip(self._generators(), state["generators"], strict=True):
            generator.set_state(known)

    def _generators(self) -> list[torch.Generator]:
        """That of the order of sequences, and torch's own of the device."""
        default = torch.default_generator
        if self.device.type == "cuda":
            default = torch.cuda.default_generators[self.device.index or 0]
        return [self._order, default]

    def encoder(self) -> Callable[[TargetBatch], Tensor]:
        """The state behind each history's last item, in evaluation mode."""
        self.model.eval()

        def encoded(batch: TargetBatch) -> Tensor:
            with self._memory():
                return encode(self.model, batch)

        return encoded

    def _memory(self) -> AbstractContextManager[object]:
        """Memory that lies idle between steps."""
        return nullcontext() if self._graphs is None else self._graphs.lent()


def build_trainer(
    config: TrialConfig,
    train: Sequences,
    num_items: int,
    device: torch.device,
    *,
    seed: int,
    budget: int,
    group: Group = ALONE,
) -> Trainer:
    """A trainer of a fresh model on a device.

    Args:
        config: The trial, `resolved`.
        train: What it trains on.
        num_items: V.
        device: That of this process.
        seed: Seeds the weights, and all that is random in the training.
        budget: Bytes that it may allocate: data that is large beside them stays on the host.
        group: The processes that it is shared by.
    """
    torch.manual_seed(seed)
    with device:
        model = config.build_model(num_items)
    on_host = stays_on_host(train.items.nbytes + train.offsets.nbytes, budget)
    sequences = DeviceSequences(train, device, on_host=on_host)
    counts_V = None
    if config.loss.needs_counts:
        counts_V = torch.from_numpy(np.bincount(train.items, minlength=num_items)).to(device)
    loss = build_loss(config.loss, seed, model.outputs.sink, counts_V)
    return Trainer(model, loss, sequences, config.training, seed, group)
