"""The objective of a real trial: train a sequential recommender, evaluate it, measure it."""

import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from kernels import target_ranks
from kernels.gpu import on_gpu
from objectives import checkpoint
from objectives.card import available_memory
from objectives.config import TrainingConfig, TrialConfig
from objectives.data import PreparedData, Targets
from objectives.data.sequences import DeviceTargets, stays_on_host
from objectives.errors import UserError
from objectives.evaluation import batch_tokens, evaluate
from objectives.memory import MemoryMeter, least_table_memory, measured_memory
from objectives.memory_gate import MemoryGate
from objectives.memory_model import serves_all_sizes
from objectives.parallel import ALONE, EndedTrial, Group
from objectives.training import NonFiniteLoss, Trainer, arithmetic, build_trainer
from objectives.trial import (
    QUALITY,
    DivergedTrial,
    InfeasibleTrial,
    MachineFault,
    TrialContext,
    TrialResult,
)


@dataclass
class _Progress:
    """How far a training is.

    Attributes:
        history: Metrics of every epoch.
        best: Validation metrics of the best epoch.
        best_epoch: That epoch, from 1.
        best_weights: Its weights, on the CPU.
        seconds: What it took so far, without what was lost between a checkpoint and a new try.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    def goes_on(self, config: TrainingConfig) -> bool:
        """Whether there is another epoch."""
        return len(self.history) < min(config.max_epochs, self.best_epoch + config.patience)

    def peak_with(self, memory: MemoryMeter) -> int:
        """Peak memory, that of earlier tries included."""
        earlier = self.history[-1]["memory/peak_bytes"] if self.history else 0
        return max(int(earlier), memory.peak)


@dataclass(frozen=True)
class _Followed:
    """The context of a trial where rank 0 has the true one."""

    seed: int
    memory_budget: int
    checkpoint: Path | None
    leaving: bool = False

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Rank 0 reports."""


class SequentialObjective:
    """Trains on one data set on one device, or on one for each process of a group.

    Follows the contract of `objectives.trial`. In a group rank 0 is called, the others `follow`.
    """

    def __init__(
        self,
        data: PreparedData,
        device: torch.device,
        gate: MemoryGate | None = None,
        group: Group = ALONE,
    ) -> None:
        """Prepares for trials.

        Args:
            data: What they train on.
            device: That of this process.
            gate: Predicts their peaks (default: on CUDA, that of the card).
            group: The processes that a trial is shared by.
        """
        self.data = data
        self.device = device
        self.group = group
        self._gate = None
        if group.rank == 0:
            self._gate = gate or MemoryGate.of_card(data, device, group.size)

    def __call__(self, config: TrialConfig, context: TrialContext) -> TrialResult:
        """Trains with early stopping, restores the best weights, and tests once.

        The peak is that of the process that took most.
        """
        config = config.resolved(self.data.num_items)
        self._check_parts(config.training)
        budget = context.memory_budget
        is_near = self.check(config, budget)
        try:
            # Alone, this process cannot take the steps of a probe.
            if is_near and self.group.size == 1:
                peak = self.probe(config, budget, room=self.room)
                if peak > budget:
                    raise InfeasibleTrial(peak, "probed")
            followed = _Followed(context.seed, budget, context.checkpoint)
            self.group.tell((config, followed))
            result = self._run(config, context)
        except InfeasibleTrial as error:
            self._learn(config, budget, error.peak_bytes)
            raise
        self._learn(config, budget, result.peak_memory)
        return result

    def follow(self) -> None:
        """Does what rank 0 does, until it says `end`; signals are for rank 0."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        while (trial := self.group.hear()) is not None:
            # Rank 0 says what has become of it.
            with suppress(EndedTrial, InfeasibleTrial, DivergedTrial, MachineFault):
                self._run(*trial)
        self.group.leave()

    def end(self) -> None:
        """Ends the group, on rank 0."""
        self.group.tell(None)
        self.group.leave()

    def _check_parts(self, training: TrainingConfig) -> None:
        """Refuses batches that cannot be shared out."""
        if self.group.size == 1:
            return
        parts = training.accumulation * self.group.size
        num_sequences = len(self.data.train)
        smallest = num_sequences // -(-num_sequences // training.batch_size)
        if smallest < parts:
            raise UserError(
                f"batches of {smallest} sequences (--space.batch_size {training.batch_size}) do "
                f"not make {parts} parts (--space.accumulation {training.accumulation} on "
                f"{self.group.size} devices): raise the batch size"
            )

    def _run(self, config: TrialConfig, context: TrialContext) -> TrialResult:
        with self.group.together():
            return self._train(config, context)

    def _train(self, config: TrialConfig, context: TrialContext) -> TrialResult:
        begin = time.perf_counter()
        training = {**config.flat(), "seed": context.seed, "data": self.data.digest}
        path = context.checkpoint
        # Before the memory is measured: what is read is not part of a training.
        known = None if path is None else checkpoint.load(path, training)
        progress = _Progress() if known is None else _Progress(**known["progress"])
        begin -= progress.seconds
        for epoch, metrics in enumerate(progress.history, 1):
            self._report(context, epoch, metrics)
        with (
            arithmetic(config.training),
            measured_memory(self.device, context.memory_budget) as memory,
        ):
            trainer = self._trainer(config, context.seed, context.memory_budget, self.group)
            validation = self._targets(self.data.validation, context.memory_budget)
            if known is not None:
                trainer.load_state_dict(known["trainer"])
                del known
            pace = checkpoint.Pace()
            while progress.goes_on(config.training):
                metrics = self._epoch(trainer, validation, progress, memory)
                is_due = context.leaving or pace.allows()
                if path is not None and self.group.rank == 0 and is_due:
                    progress.seconds = time.perf_counter() - begin
                    state = {"trainer": trainer.state_dict(), "progress": vars(progress)}
                    with pace.writing():
                        checkpoint.save(path, training, state)
                self._report(context, len(progress.history), metrics)
            trainer.model.load_state_dict(progress.best_weights)
            # Epochs were judged by ranks alone.
            lists = self._evaluate(trainer, "val", validation, lists=True)
            del validation
            tests = self._targets(self.data.test, context.memory_budget)
            test = self._evaluate(trainer, "test", tests, lists=True)
        return TrialResult(
            quality=progress.best[QUALITY],
            peak_memory=self._peak(progress, memory),
            seconds=time.perf_counter() - begin,
            metrics={**lists, **progress.best, **test},
            epochs=len(progress.history),
            best_epoch=progress.best_epoch,
            peak_reserved=memory.peak_reserved,
            memory_source=memory.source,
            memory_parts={}
            if self._gate is None
            else self._gate.model.predict(config, context.memory_budget).parts,
        )

    def _epoch(
        self,
        trainer: Trainer,
        validation: DeviceTargets,
        progress: "_Progress",
        memory: MemoryMeter,
    ) -> dict[str, float]:
        """Trains an epoch, evaluates it, and keeps its weights if they are the best so far."""
        begin = time.perf_counter()
        loss = self._train_epoch(trainer, len(progress.history) + 1, memory)
        seconds = time.perf_counter() - begin
        metrics = self._evaluate(trainer, "val", validation)
        if metrics[QUALITY] > progress.best.get(QUALITY, -1.0):
            progress.best, progress.best_epoch = metrics, len(progress.history) + 1
            progress.best_weights = {
                name: value.to("cpu", copy=True)
                for name, value in trainer.model.state_dict().items()
            }
        progress.history.append(
            {
                "train/loss": loss,
                "train/epoch_seconds": seconds,
                "memory/peak_bytes": self._peak(progress, memory),
                **metrics,
            }
        )
        return progress.history[-1]

    def _peak(self, progress: _Progress, memory: MemoryMeter) -> int:
        """That of the process that took most."""
        return max(self.group.agree(progress.peak_with(memory)))

    def _report(self, context: TrialContext, epoch: int, metrics: Mapping[str, float]) -> None:
        context.report(epoch, metrics)
        # What ends the trial there ends it on all ranks.
        self.group.agree()

    @property
    def predicts(self) -> bool:
        """Whether peaks are predicted here."""
        return self._gate is not None

    def predicts_at_once(self, config: TrialConfig) -> bool:
        """Whether a peak is predicted without a trace of the very configuration."""
        return self.group.size == 1 and serves_all_sizes(config)

    def predicted_peak(self, config: TrialConfig, budget: int) -> int:
        """The peak predicted for a trial, in bytes, corrected by what others have taken."""
        assert self._gate is not None
        return self._gate.predict(config, budget)

    def check(self, config: TrialConfig, budget: int) -> bool:
        """Whether the configuration is predicted to be near the budget; allocates nothing.

        Raises:
            InfeasibleTrial: It is predicted to exceed the budget: its item tables alone do or, on
                a GPU, all that it needs.
        """
        needed = least_table_memory(config, self.data.num_items)
        if needed > budget:
            raise InfeasibleTrial(needed, "predicted")
        return self._gate is not None and self._gate.check(config, budget)

    def probe(self, config: TrialConfig, budget: int, *, room: int | None = None) -> int:
        """Peak memory, in bytes, of two training steps and a batch of an evaluation.

        In a group they are on the share of one process, without what is exchanged.

        Args:
            config: The trial.
            budget: As the trial has it: data that is large beside it stays on the host.
            room: What the probe may allocate, in bytes; None: the budget.

        Raises:
            InfeasibleTrial: It does not fit there.
        """
        config = config.resolved(self.data.num_items)
        share = -(-config.training.batch_size // self.group.size)
        training = config.training.model_copy(update={"batch_size": share})
        config = config.model_copy(update={"training": training})
        needed = least_table_memory(config, self.data.num_items)
        room = budget if room is None else room
        if needed > room:
            raise InfeasibleTrial(needed, "predicted")
        with arithmetic(config.training), measured_memory(self.device, room) as memory:
            trainer = self._trainer(config, 0, budget)
            for _ in range(2):
                trainer.train_step(trainer.batches.largest())
            validation = self._targets(self.data.validation, budget)
            for batch in islice(validation.batches(**self._cut(trainer)), 1):
                states_BD = trainer.encoder()(batch)
                table_VD = trainer.model.outputs.weight.detach()
                target_ranks(states_BD, table_VD, batch.targets_B, batch.seen)
        return memory.peak

    @property
    def room(self) -> int:
        """Bytes that a probe may allocate: beyond the budget, so that its peak is a true one.

        Of a card nearly all that others leave, who may take a little more meanwhile.
        """
        if self.device.type == "cuda":
            return available_memory(self.device) * 15 // 16
        return int(psutil.virtual_memory().available)

    def _learn(self, config: TrialConfig, budget: int, peak: int) -> None:
        if self._gate is not None:
            self._gate.learn(config, budget, peak)

    def _trainer(
        self, config: TrialConfig, seed: int, budget: int, group: Group = ALONE
    ) -> Trainer:
        return build_trainer(
            config,
            self.data.train,
            self.data.num_items,
            self.device,
            seed=seed,
            budget=budget,
            group=group,
        )

    def _targets(self, targets: Targets, budget: int) -> DeviceTargets:
        on_host = stays_on_host(targets.inputs.items.nbytes + targets.items.nbytes, budget)
        return DeviceTargets(targets, self.device, on_host=on_host)

    def _train_epoch(self, trainer: Trainer, epoch: int, memory: MemoryMeter) -> float:
        try:
            return trainer.train_epoch()
        except NonFiniteLoss:
            raise DivergedTrial(memory.peak, epoch) from None

    def _evaluate(
        self, trainer: Trainer, prefix: str, targets: DeviceTargets, *, lists: bool = False
    ) -> dict[str, float]:
        metrics = evaluate(
            trainer.encoder(),
            trainer.model.outputs.weight.detach(),
            targets,
            lists=lists,
            group=trainer.group,
            **self._cut(trainer),
        )
        return {f"{prefix}/{name}": value for name, value in metrics.items()}

    def _cut(self, trainer: Trainer) -> dict[str, Any]:
        """How an evaluation is cut into batches."""
        config, training = trainer.model.config, trainer.config
        # The parts of a training batch are those of all processes.
        parts = training.accumulation * trainer.group.size
        lengths = self.data.train.lengths
        tokens = batch_tokens(
            training.model_copy(update={"accumulation": parts}),
            config,
            float(np.minimum(lengths, config.max_length).mean()),
            len(lengths),
            self.data.num_items,
            on_gpu=on_gpu(self.device),
        )
        return {
            "batch_tokens": tokens,
            "max_length": config.max_length,
            "masked": not trainer.model.causal,
        }
