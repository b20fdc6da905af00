"""The gradient of an item table as rows of the items that were touched: nothing here is [V, D].

Shapes: V items, D width, U touched items, T looked up ids.

Autograd knows such a gradient as a sparse tensor, whose number of rows the host has to wait for.
Here the number stays on the device, behind a bound that shapes alone give: a step can be captured
in a CUDA graph. What backward passes find goes into a `RowSink` instead of `.grad`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels._backend import check_interpreter, choose_backend


class RowGradient(NamedTuple):
    """Rows of a table's gradient.

    Attributes:
        items_U: Ids of their items, int64.
        rows_UD: The rows.
        num_touched: int32 [1] on the device: so many of the items are meant. They are ascending,
            each once; the items behind them are undefined, the rows behind them 0. None: all are
            meant, in any order, and an item may have several rows, which are summed.
    """

    items_U: Tensor
    rows_UD: Tensor
    num_touched: Tensor | None = None


Arriving = Callable[[], Sequence[RowGradient]]
"""Rows that are on their way: the device waits for them, and there they are."""


class RowSink:
    """Where backward passes leave the rows of one table's gradient, until a step takes them.

    A loss that is given a sink as its `table_gradient`, and a lookup by `look_up`, write to it and
    leave the table's `.grad` alone.

    Attributes:
        exchange: exchange(part) sends rows to the other processes that add to the same gradient,
            and gets theirs, while backward passes go on; None: there are no others.
    """

    def __init__(self, num_items: int) -> None:
        self.exchange: Callable[[RowGradient], Arriving] | None = None
        self._num_items = num_items
        self._parts: list[Arriving] = []

    def add(self, part: RowGradient) -> None:
        """Keeps rows, without a copy."""
        if self.exchange is None:
            self._parts.append(lambda: [part])
        else:
            # Each item once: the fewest rows, whose sums are the same for all.
            self._parts.append(self.exchange(sum_rows([part], self._num_items)))

    def take(self) -> RowGradient | None:
        """The sum of what was added since the last call; None: nothing was.

        Nothing waits for the device: it may be part of a captured step, whose replay writes the
        same tensors again.
        """
        arriving, self._parts = self._parts, []
        parts = [part for arrive in arriving for part in arrive()]
        return sum_rows(parts, self._num_items) if parts else None


def look_up(table_VD: Tensor, ids: Tensor, sink: RowSink) -> Tensor:
    """Rows of a table in float32 [*ids, D]; their gradient goes into the sink.

    Args:
        table_VD: Item table, float32 or a half type.
        ids: Item ids, int64.
        sink: That of the table.
    """
    vectors: Tensor = _LookUp.apply(table_VD, ids, sink)  # type: ignore[no-untyped-call]
    return vectors


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VD: Tensor, ids: Tensor, sink: RowSink) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.sink = sink
        return torch.nn.functional.embedding(ids, table_VD).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.sink.add(RowGradient(ids.flatten(), grad.reshape(-1, grad.shape[-1])))
        return None, None, None


@torch.no_grad()
def sum_rows(
    parts: Sequence[RowGradient], num_items: int, *, deterministic: bool | None = None
) -> RowGradient:
    """One gradient of all parts.

    Args:
        parts: At least one, all of one width on one device.
        num_items: V; an item outside [0, V) is left out on a GPU.
        deterministic: Sums that are equal bit by bit in every run; None: as
            `torch.use_deterministic_algorithms` has it.

    Returns:
        The sum, with `num_touched` and float32 rows. In Triton, which waits for nothing, U is
        min(V, ids of all parts); in the eager backend it is the number of touched items. It may
        share the tensors of a single part.
    """
    if len(parts) == 1 and parts[0].num_touched is not None:
        return parts[0]
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    # Of one column, for the limit that it knows is on the width of matrix products.
    narrow = parts[0].rows_UD[:, :1]
    if choose_backend(narrow, narrow) == "triton":
        from kernels import triton_row_gradient

        check_interpreter(narrow.device)
        return triton_row_gradient.sum_rows(parts, num_items, deterministic)
    return _eager_sum(parts, deterministic)


def _eager_sum(parts: Sequence[RowGradient], deterministic: bool) -> RowGradient:
    numbers = [
        len(part.items_U) if part.num_touched is None else int(part.num_touched) for part in parts
    ]
    items = torch.cat([part.items_U[:number] for part, number in zip(parts, numbers, strict=True)])
    items_U, places = torch.unique(items, return_inverse=True)
    rows_UD = parts[0].rows_UD.new_zeros(
        len(items_U), parts[0].rows_UD.shape[1], dtype=torch.float32
    )
    for part, number, place in zip(parts, numbers, places.split(numbers), strict=True):
        rows = part.rows_UD[:number].float()
        if deterministic and rows.is_cuda:
            rows_UD.index_put_((place,), rows, accumulate=True)
        else:
            rows_UD.index_add_(0, place, rows)  # in order on a CPU
    num_touched = torch.full((1,), len(items_U), dtype=torch.int32, device=items_U.device)
    return RowGradient(items_U, rows_UD, num_touched)
