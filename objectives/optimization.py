"""What changes the weights: optimizers, learning rates and clipping."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kernels import RowWiseAdam
from models.transformer import Transformer
from objectives.config import TrainingConfig


class Optimization:
    """AdamW and, where only the touched rows of the item tables move, row-wise Adam.

    Attributes:
        learning_rate: That of the present step.
    """

    def __init__(self, model: Transformer, config: TrainingConfig, num_steps: int) -> None:
        """Prepares for so many steps."""
        self._config = config
        self._parameters = list(model.parameters())
        by_rows = config.table_updates == "rows"
        for table in model.tables:
            table.sparse_gradient = by_rows
        tables = [table.weight for table in model.tables] if by_rows else []
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
        if tables:
            self._optimizers.append(RowWiseAdam(tables, lr=config.learning_rate))
        self._num_steps = num_steps
        self.learning_rate = config.learning_rate

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
        """A rate as AdamW keeps it: a captured step reads it on the device."""
        device = self._parameters[0].device
        return torch.tensor(rate, device=device) if device.type == "cuda" else rate

    def step(self, *, keep_gradients: bool = False) -> None:
        """Moves the weights along their gradients, and drops these, or keeps them as zeros."""
        if self._config.clip_norm:
            _clip(self._parameters, self._config.clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=not keep_gradients)

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, but its rate."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        for optimizer, known in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(known)
        self.learning_rate = float(self._optimizers[0].param_groups[0]["lr"])
        for group in self._optimizers[0].param_groups:
            group["lr"] = self._as_kept(self.learning_rate)


def _clip(parameters: list[nn.Parameter], most: float) -> None:
    """Scales all gradients down so that their norm together is at most this; nothing waits."""
    values: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            # Rows that occur twice have one norm.
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad._values())
        else:
            values.append(parameter.grad)
    scale = most / (nn.utils.get_total_norm(values) + 1e-6)
    torch._foreach_mul_(values, scale.clamp(max=1.0))


def _share_of_rate(config: TrainingConfig, step: int, num_steps: int) -> float:
    """What part of the highest learning rate a step has; the first is step 0."""
    warmup = config.warmup * num_steps
    if step + 1 < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    fallen = max(0.0, step - warmup) / (num_steps - warmup)
    return 0.5 + 0.5 * math.cos(math.pi * fallen)
