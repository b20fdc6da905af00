"""Ranking over the whole catalogue without a [rows x items] tensor.

Shapes: B rows, V items, D width, P seen pairs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from kernels import reference_ranking
from kernels._backend import check_interpreter, choose_backend
from kernels._checks import check_count, kind
from kernels.gpu import on_gpu


def target_ranks(
    states_BD: Tensor,
    table_VD: Tensor,
    targets_B: Tensor,
    seen: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The rank of each row's target in the list of all items that the row has not seen.

    With z_v the inner product of the row's state and item v, and t its target::

        rank = 1 + |{v unseen: z_v > z_t, or z_v = z_t and v < t}|

    The catalogue is streamed in tiles. Scores are float32; NaN and -inf are above nothing.

    Args:
        states_BD: Query states.
        table_VD: Item table.
        targets_B: Item ids, int64.
        seen: Items to leave out: (rows, item ids), two int64 tensors of one length, in which pairs
            may repeat.

    Returns:
        ranks_B, int64, from 1. V + 1 where the target has no place in the list: its own score is
        NaN or -inf, or it was seen.

    Raises:
        ValueError: An argument does not fit; the message names it. On a GPU a target outside
            [0, V) has rank V + 1, and a seen pair outside the matrix is left out.
    """
    _check(states_BD, table_VD, seen)
    if targets_B.shape != states_BD.shape[:1] or targets_B.dtype != torch.int64:
        raise ValueError(
            f"targets_B must be int64 of shape [{states_BD.shape[0]}], not {kind(targets_B)}"
        )
    if targets_B.device != table_VD.device:
        raise ValueError(
            f"targets_B is on {targets_B.device}, but table_VD is on {table_VD.device}"
        )
    _check_ids("targets_B", targets_B, len(table_VD))
    with _backend(states_BD, table_VD) as backend:
        ranks_B: Tensor = backend.target_ranks(states_BD, table_VD, targets_B, seen)
    return ranks_B


def top_k(
    states_BD: Tensor,
    table_VD: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None = None,
    *,
    exact: bool = True,
) -> Tensor:
    """The k items with the highest inner products, best first, ties by the lower item id.

    The catalogue is streamed in tiles. Scores are float32; NaN and -inf never enter a list.

    Args:
        states_BD: Query states.
        table_VD: Item table.
        k: Length of the lists, at least 1.
        seen: Items to leave out: (rows, item ids), two int64 tensors of one length, in which pairs
            may repeat.
        exact: Of a large catalogue on a GPU, look for rows whose best items crowd among ids that
            are equal modulo some number, and rank them again: the device is waited for, once a
            call. Without it nothing waits, products are of bfloat16, and a list is chosen from the
            best items of 16 k or more parts, of ids that are equal modulo their number: of items
            in no order it holds 97 % of the k best, and next best ones, the same in every run.

    Returns:
        ids_Bk, int64; -1 where fewer than k items remain.

    Raises:
        ValueError: An argument does not fit; the message names it. On a GPU a seen pair outside
            the matrix is left out.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    _check(states_BD, table_VD, seen)
    with _backend(states_BD, table_VD) as backend:
        ids_Bk: Tensor = backend.top_k(states_BD, table_VD, k, seen, exact)
    return ids_Bk


@contextmanager
def _backend(states_BD: Tensor, table_VD: Tensor) -> Iterator[ModuleType]:
    """The module that ranks, and the state of PyTorch that it ranks in."""
    device = states_BD.device
    backend: ModuleType = reference_ranking
    if choose_backend(states_BD, table_VD) == "triton":
        check_interpreter(device)
        from kernels import triton_ranking_launch as backend
    with (
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        # Triton launches on the current CUDA device, which need not be that of the tensors.
        torch.cuda.device_of(states_BD),  # type: ignore[no-untyped-call]
    ):
        yield backend


def _check(states_BD: Tensor, table_VD: Tensor, seen: tuple[Tensor, Tensor] | None) -> None:
    """Raises a ValueError if the matrices, or the seen pairs, do not fit each other."""
    if states_BD.ndim != 2 or table_VD.ndim != 2 or states_BD.shape[1] != table_VD.shape[1]:
        raise ValueError(
            f"states_BD {list(states_BD.shape)} and table_VD {list(table_VD.shape)} "
            "must be matrices of one width"
        )
    if states_BD.shape[1] == 0:
        raise ValueError("states_BD must have at least one column")
    if states_BD.device != table_VD.device:
        raise ValueError(
            f"states_BD is on {states_BD.device}, but table_VD is on {table_VD.device}"
        )
    check_count("states_BD", "rows", len(states_BD))
    check_count("table_VD", "items", len(table_VD))
    if seen is None:
        return
    for ids_P in seen:
        if ids_P.ndim != 1 or ids_P.dtype != torch.int64 or len(ids_P) != len(seen[0]):
            raise ValueError(
                "seen must be two int64 vectors of one length, not "
                f"{kind(seen[0])} and {kind(seen[1])}"
            )
        if ids_P.device != table_VD.device:
            raise ValueError(f"seen is on {ids_P.device}, but table_VD is on {table_VD.device}")
    check_count("seen", "pairs", len(seen[0]))
    _check_ids("the rows of seen", seen[0], len(states_BD))
    _check_ids("the items of seen", seen[1], len(table_VD))


def _check_ids(name: str, ids: Tensor, end: int) -> None:
    """Raises a ValueError if an id is out of range; on a GPU that would have to be waited for."""
    if len(ids) and not on_gpu(ids.device):
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= end:
            raise ValueError(f"{name} must lie in [0, {end}), but span {low} to {high}")
