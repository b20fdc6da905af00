"""What changes the weights: optimizers, learning rates and clipping."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kernels import RowGradient, RowWiseAdagrad, RowWiseAdam
from models.transformer import Transformer
from objectives.config import TrainingConfig


class Optimization:
    """AdamW, and row-wise Adam or Adagrad for item tables of which only touched rows move."""

    def __init__(self, model: Transformer, config: TrainingConfig, num_steps: int) -> None:
        """Prepares for so many steps."""
        self._config = config
        self._parameters = list(model.parameters())
        self._sinks = [table.sink for table in model.tables if table.sink is not None]
        tables = [table.weight for table in model.tables if table.sink is not None]
        # Decay pulls on what mixes features, not on the vectors of items, positions and norms.
        matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
        apart = {id(parameter) for parameter in [*matrices, *tables]}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self._parameters if id(p) not in apart], "weight_decay": 0.0},
            {"params": matrices, "weight_decay": config.weight_decay},
        ]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        ]
        self._by_rows: RowWiseAdagrad | RowWiseAdam | None = None
        if tables:
            self._by_rows = _row_optimizer(tables, config)
            self._optimizers.append(self._by_rows)
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: _share_of_rate(config, step, num_steps)
            )
            for optimizer in self._optimizers
        ]

    def take_rows(self) -> list[RowGradient | None]:
        """What backward passes left of the tables that move by rows, since the last call.

        Nothing waits for the device. A captured step ends with this call: its replays write the
        same tensors again, which `step` is then given.
        """
        return [sink.take() for sink in self._sinks]

    def step(self, rows: list[RowGradient | None] | None = None) -> None:
        """Moves the weights along their gradients, and drops these.

        Args:
            rows: From `take_rows`; None: they are taken now.
        """
        if rows is None:
            rows = self.take_rows()
        if self._config.clip_norm:
            grads = [parameter.grad for parameter in self._parameters]
            # Behind the touched rows there are zeros.
            grads += [gradient.rows_UD for gradient in rows if gradient is not None]
            _clip([grad for grad in grads if grad is not None], self._config.clip_norm)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            if self._by_rows is not None and optimizer is self._by_rows:
                self._by_rows.step(gradients=rows)
            else:
                optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        rate: float = self._optimizers[0].param_groups[0]["lr"]
        return rate

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "schedules": [schedule.state_dict() for schedule in self._schedules],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        for optimizer, known in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        for schedule, known in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(known)


def _row_optimizer(
    tables: list[nn.Parameter], config: TrainingConfig
) -> RowWiseAdagrad | RowWiseAdam:
    if config.table_updates == "adagrad":
        return RowWiseAdagrad(tables, lr=config.learning_rate)
    # With float32 moments, a float32 table [5 M, 128] and its state would take 5.2 GB, not 3.9;
    # dense AdamW takes 10.2 with the gradient.
    return RowWiseAdam(tables, lr=config.learning_rate, exp_avg_dtype=torch.bfloat16)


def _clip(gradients: list[Tensor], most: float) -> None:
    """Scales all gradients down so that their norm together is at most this; nothing waits."""
    scale = most / (nn.utils.get_total_norm(gradients) + 1e-6)
    torch._foreach_mul_(gradients, scale.clamp(max=1.0))


def _share_of_rate(config: TrainingConfig, step: int, num_steps: int) -> float:
    """What part of the highest learning rate a step has; the first is step 0."""
    warmup = config.warmup * num_steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    fallen = max(0.0, step - warmup) / (num_steps - warmup)
    return 0.5 + 0.5 * math.cos(math.pi * fallen)
