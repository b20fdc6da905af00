"""The objective of a real trial: train a sequential recommender, evaluate it, measure it."""

import time

import torch

from objectives.config import TrialConfig
from objectives.data import PreparedData, Targets
from objectives.data.sequences import DeviceSequences
from objectives.evaluation import evaluate
from objectives.losses import build_loss
from objectives.memory import MemoryMeter, measured_memory
from objectives.training import NonFiniteLoss, Trainer
from objectives.trial import QUALITY, DivergedTrial, TrialContext, TrialResult

_EVALUATION_BATCHES = 2
"""Users of an evaluation batch over sequences of a training batch; a forward pass keeps nothing,
so twice the batch still needs less than a training step."""


class SequentialObjective:
    """Trains on one data set on one device. Follows the contract of `objectives.trial`."""

    def __init__(self, data: PreparedData, device: torch.device) -> None:
        self.data = data
        self.device = device

    def __call__(self, config: TrialConfig, context: TrialContext) -> TrialResult:
        """Trains with early stopping, restores the best weights, and tests once."""
        begin = time.perf_counter()
        with measured_memory(self.device, context.memory_budget) as memory:
            trainer = self._trainer(config, context.seed)
            epoch, best_epoch, quality = 0, 0, -1.0
            best_metrics: dict[str, float] = {}
            while epoch < min(config.training.max_epochs, best_epoch + config.training.patience):
                epoch += 1
                epoch_begin = time.perf_counter()
                loss = self._train_epoch(trainer, epoch, memory)
                seconds = time.perf_counter() - epoch_begin
                metrics = self._evaluate(trainer, "val", self.data.validation)
                if metrics[QUALITY] > quality:
                    quality, best_epoch, best_metrics = metrics[QUALITY], epoch, metrics
                    best_weights = {
                        name: value.to("cpu", copy=True)
                        for name, value in trainer.model.state_dict().items()
                    }
                context.report(
                    epoch,
                    {
                        "train/loss": loss,
                        "train/epoch_seconds": seconds,
                        "memory/peak_bytes": memory.peak,
                        **metrics,
                    },
                )
            trainer.model.load_state_dict(best_weights)
            test = self._evaluate(trainer, "test", self.data.test)
        return TrialResult(
            quality=quality,
            peak_memory=memory.peak,
            seconds=time.perf_counter() - begin,
            metrics={**best_metrics, **test},
            epochs=epoch,
            best_epoch=best_epoch,
            peak_reserved=memory.peak_reserved,
            memory_source=memory.source,
        )

    def probe(self, config: TrialConfig, budget: int) -> int:
        """Peak memory, in bytes, of one training step on the largest batch.

        Raises:
            InfeasibleTrial: It does not fit the budget.
        """
        with measured_memory(self.device, budget) as memory:
            trainer = self._trainer(config, seed=0)
            trainer.train_step(trainer.largest_batch())
        return memory.peak

    def _trainer(self, config: TrialConfig, seed: int) -> Trainer:
        torch.manual_seed(seed)
        return Trainer(
            config.model.build(self.data.num_items).to(self.device),
            build_loss(config.loss, seed),
            DeviceSequences(self.data.train, self.device),
            config.training,
            seed,
        )

    def _train_epoch(self, trainer: Trainer, epoch: int, memory: MemoryMeter) -> float:
        try:
            return trainer.train_epoch()
        except NonFiniteLoss:
            raise DivergedTrial(memory.peak, epoch) from None

    def _evaluate(self, trainer: Trainer, prefix: str, targets: Targets) -> dict[str, float]:
        metrics = evaluate(
            trainer.encoder(),
            trainer.model.outputs.weight.detach(),
            targets,
            batch_size=_EVALUATION_BATCHES * trainer.config.batch_size,
            max_length=trainer.model.config.max_length,
        )
        return {f"{prefix}/{name}": value for name, value in metrics.items()}
