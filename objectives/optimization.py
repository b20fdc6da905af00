"""What changes the weights: optimizers, learning rates and clipping."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kernels import RowWiseAdagrad, RowWiseAdam
from models.transformer import Transformer
from objectives.config import TrainingConfig
from objectives.parallel import ALONE, Group


class Optimization:
    """AdamW, and row-wise Adam or Adagrad for item tables of which only touched rows move.

    On a GPU a step can be captured in a CUDA graph: its rate and its number are on the device.

    Attributes:
        learning_rate: That of the present step.
    """

    def __init__(
        self, model: Transformer, config: TrainingConfig, num_steps: int, group: Group = ALONE
    ) -> None:
        """Prepares for so many steps; group: the processes whose gradients are summed."""
        self._config = config
        self._group = group
        self._parameters = list(model.parameters())
        self._sinks = [table.sink for table in model.tables if table.sink is not None]
        for sink in self._sinks:
            sink.exchange = group.exchange
        tables = [table.weight for table in model.tables if table.sink is not None]
        # Decay pulls on what mixes features, not on the vectors of items, positions and norms.
        matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
        apart = {id(parameter) for parameter in [*matrices, *tables]}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self._parameters if id(p) not in apart], "weight_decay": 0.0},
            {"params": matrices, "weight_decay": config.weight_decay},
        ]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                groups,
                lr=self._as_kept(config.learning_rate),
                fused=True,
                capturable=self._parameters[0].is_cuda,
            )
        ]
        self._by_rows: RowWiseAdagrad | RowWiseAdam | None = None
        if tables:
            self._by_rows = self._row_optimizer(tables)
            self._optimizers.append(self._by_rows)
        self._num_steps = num_steps
        self.learning_rate = config.learning_rate

    def _row_optimizer(self, tables: list[nn.Parameter]) -> RowWiseAdagrad | RowWiseAdam:
        rate = self._as_kept(self._config.learning_rate)
        if self._config.table_updates == "adagrad":
            return RowWiseAdagrad(tables, lr=rate)
        # A first moment would be as large as the table, and lose what a seldom touched row is due.
        return RowWiseAdam(tables, lr=rate, betas=(0.0, 0.999))

    def set_rate(self, step: int) -> None:
        """Sets the learning rate of a step; the first is step 0."""
        rate = self._config.learning_rate * _share_of_rate(self._config, step, self._num_steps)
        if rate != self.learning_rate:
            self.learning_rate = rate
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    if isinstance(group["lr"], Tensor):
                        group["lr"].fill_(rate)
                    else:
                        group["lr"] = rate

    def _as_kept(self, rate: float) -> float | Tensor:
        """A rate as the optimizers keep it."""
        device = self._parameters[0].device
        return torch.tensor([rate], device=device) if device.type == "cuda" else rate

    def step(self) -> None:
        """Moves the weights along their gradients, and drops these."""
        grads = [each.grad for each in self._parameters if each.grad is not None]
        self._group.sum_gradients(grads)
        rows = [sink.take() for sink in self._sinks]
        if self._config.clip_norm:
            # Behind the touched rows there are zeros.
            grads += [gradient.rows_UD for gradient in rows if gradient is not None]
            _clip(grads, self._config.clip_norm)
        for optimizer in self._optimizers:
            if optimizer is self._by_rows:
                self._by_rows.step(gradients=rows)
            else:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, but its rate."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        for optimizer, known in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
            self.learning_rate = float(optimizer.param_groups[0]["lr"])
            for group in optimizer.param_groups:
                group["lr"] = self._as_kept(self.learning_rate)


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
