"""The row updates as optimizers of PyTorch, for tables whose gradient is one of rows.

Shapes: V items, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from kernels.row_gradient import RowGradient
from kernels.row_updates import check_adagrad, check_adam, row_adagrad, row_adam


class _RowWise(torch.optim.Optimizer, ABC):
    """What the optimizers do around the update of one table."""

    @abstractmethod
    def _update(self, table_VD: Tensor, gradient: RowGradient, group: dict[str, Any]) -> None:
        """Updates a table by its gradient."""

    @overload
    def step(
        self, closure: None = None, *, gradients: Sequence[RowGradient | None] | None = None
    ) -> None: ...

    @overload
    def step(
        self,
        closure: Callable[[], float],
        *,
        gradients: Sequence[RowGradient | None] | None = None,
    ) -> float: ...

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], float] | None = None,
        *,
        gradients: Sequence[RowGradient | None] | None = None,
    ) -> float | None:
        """Updates the rows that the tables' gradients hold.

        Args:
            closure: Computes the loss again; its value is returned.
            gradients: Those of the tables, in the order of the groups, each item once; None for a
                table without one. Nothing waits for the device then. Left out: the tables' `.grad`
                are taken.

        Raises:
            ValueError: A gradient is not one of rows of a matrix, or a setting is out of range.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        tables = [(table_VD, group) for group in self.param_groups for table_VD in group["params"]]
        if gradients is None:
            gradients = [_rows_of(table_VD.grad) for table_VD, _ in tables]
        for (table_VD, group), gradient in zip(tables, gradients, strict=True):
            if gradient is not None:
                state = self.state[table_VD]
                if "step" not in state:
                    rate = group["lr"]
                    # The number of the step is where the rate is.
                    state["step"] = (
                        torch.zeros_like(rate, dtype=torch.int32)
                        if isinstance(rate, Tensor)
                        else 0
                    )
                state["step"] += 1
                self._update(table_VD, gradient, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a `state_dict`, with copies of its tensors, in their types.

        Without this, PyTorch would cast them to the type of the table.
        """
        super().load_state_dict({**state_dict, "state": {}})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        tables = [table_VD for group in self.param_groups for table_VD in group["params"]]
        for number, table_VD in zip(numbers, tables, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    value = value.to(table_VD.device, copy=True)
                self.state[table_VD][name] = value


class RowWiseAdagrad(_RowWise):
    """`row_adagrad` for tables whose gradient is one of rows; it keeps 4 bytes a row.

    Args:
        params: Tables [V, D], float32, bfloat16 or float16, contiguous, or groups of them. Their
            gradients are those that `step` is given, or sparse COO tensors of rows, as
            `sampled_cross_entropy` leaves them with table_gradient="touched", and
            `torch.nn.functional.embedding` with sparse=True; these are coalesced where they are
            not.
        lr: Learning rate; a tensor, float32 [1] on the tables' device, lets steps be captured in a
            CUDA graph: it is read there, and steps are counted there.
        eps: Added to the root, positive.
        seed: 64-bit key of the rounding of half tables, unsigned.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-2, *, eps: float = 1e-8, seed: int = 0
    ) -> None:
        check_adagrad(0.0 if isinstance(lr, Tensor) else lr, eps, seed)
        super().__init__(params, {"lr": lr, "eps": eps, "seed": seed})

    def _update(self, table_VD: Tensor, gradient: RowGradient, group: dict[str, Any]) -> None:
        state = self.state[table_VD]
        if "square_sum" not in state:
            state["square_sum"] = table_VD.new_zeros(len(table_VD), dtype=torch.float32)
        settings = {name: group[name] for name in ("lr", "eps", "seed")}
        items_U, rows_UD, num_touched = gradient
        row_adagrad(
            table_VD,
            items_U,
            rows_UD,
            state["square_sum"],
            step=state["step"],
            num_touched=num_touched,
            **settings,
        )


class RowWiseAdam(_RowWise):
    """`row_adam` for tables whose gradient is one of rows.

    It keeps 4 D + 8 bytes a row: 2 D less with a first moment in bfloat16, 4 D less with a beta1
    of 0, 4 D - 4 more with a second moment for each element. A table's steps are those in which it
    has a gradient.

    Args:
        params: As in `RowWiseAdagrad`.
        lr: As there.
        betas: Decay of the two moments, each in [0, 1).
        eps: Added to the root, positive.
        weight_decay: Decoupled weight decay of the rows that are touched, below 1 / lr.
        second_moment: "row", one for each row, or "element", as `torch.optim.AdamW` has them.
        exp_avg_dtype: float32 or bfloat16, of the first moment.
        seed: 64-bit key of the rounding of half tables, unsigned.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        second_moment: str = "row",
        exp_avg_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        check_adam(0.0 if isinstance(lr, Tensor) else lr, betas, eps, weight_decay, seed)
        if second_moment not in ("row", "element"):
            raise ValueError(f"second_moment must be 'row' or 'element', not {second_moment!r}")
        if exp_avg_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"exp_avg_dtype must be float32 or bfloat16, not {exp_avg_dtype}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "second_moment": second_moment,
            "exp_avg_dtype": exp_avg_dtype,
            "seed": seed,
        }
        super().__init__(params, defaults)

    def _update(self, table_VD: Tensor, gradient: RowGradient, group: dict[str, Any]) -> None:
        state = self.state[table_VD]
        if "exp_avg_sq" not in state:
            by_row = group["second_moment"] == "row"
            squares = table_VD.shape[:1] if by_row else table_VD.shape
            if group["betas"][0]:
                state["exp_avg"] = torch.zeros_like(table_VD, dtype=group["exp_avg_dtype"])
            state["exp_avg_sq"] = table_VD.new_zeros(squares, dtype=torch.float32)
            state["last_step"] = table_VD.new_zeros(len(table_VD), dtype=torch.int32)
        moments = state.get("exp_avg"), state["exp_avg_sq"], state["last_step"]
        settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "seed")}
        items_U, rows_UD, num_touched = gradient
        row_adam(
            table_VD,
            items_U,
            rows_UD,
            *moments,
            step=state["step"],
            num_touched=num_touched,
            **settings,
        )


def _rows_of(gradient: Tensor | None) -> RowGradient | None:
    """A sparse gradient by its rows."""
    if gradient is None:
        return None
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise ValueError(
            "the gradient must be a sparse COO tensor of rows, as table_gradient='touched' and "
            f"embedding(sparse=True) make it, not {gradient.layout} of shape "
            f"{list(gradient.shape)}"
        )
    gradient = gradient.coalesce()
    return RowGradient(gradient.indices()[0], gradient.values())
