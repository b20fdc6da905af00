"""Ranks and lists for any float type and device: the reference of `kernels.ranking`.

Shapes: B rows, k places of a list, V items, D width, lower case for a part.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import reference

_PART_OF_TILE = 128
"""Part of a loss's tile that scores are made in: ordering them takes up to ten times their bytes,
and an evaluation is not to set the peak of a training."""
_LEAST_ITEMS = 64
"""Items of a tile of more rows than that leaves room for."""


def target_ranks(
    states_BD: Tensor, table_VD: Tensor, targets_B: Tensor, seen: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The rank of each row's target; see `ranking.target_ranks`."""
    num_items = len(table_VD)
    own_B = torch.full_like(targets_B, torch.nan, dtype=torch.float32)
    # Taken from the tiles that are counted, so that nothing but an equal score ties.
    for first, scores_Bv in _score_tiles(states_BD, table_VD, seen):
        place_B = targets_B - first
        inside_B = (place_B >= 0) & (place_B < scores_Bv.shape[1])
        place_B1 = place_B.where(inside_B, 0)[:, None]
        own_B = torch.where(inside_B, scores_Bv.gather(1, place_B1)[:, 0], own_B)
    above_B = torch.zeros_like(targets_B)
    own_B1, targets_B1 = own_B[:, None], targets_B[:, None]
    for first, scores_Bv in _score_tiles(states_BD, table_VD, seen):
        ids_v = torch.arange(first, first + scores_Bv.shape[1], device=targets_B.device)
        tied_Bv = (scores_Bv == own_B1) & (ids_v < targets_B1)
        above_B += (tied_Bv | (scores_Bv > own_B1)).sum(1)
    return torch.where(own_B > -torch.inf, above_B + 1, num_items + 1)


def top_k(
    states_BD: Tensor,
    table_VD: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None,
    exact: bool = True,
) -> Tensor:
    """The k best items of each row, exact or not, and nothing waits; see `ranking.top_k`."""
    best_Bk = states_BD.new_empty(len(states_BD), 0, dtype=torch.int64)
    for first, scores_Bv in _score_tiles(states_BD, table_VD, seen, least_items=k):
        merged = torch.cat([best_Bk, _sort_keys(scores_Bv, first)], dim=1)
        best_Bk = merged.topk(min(k, merged.shape[1]), dim=1).values
    return ids_of_keys(best_Bk, k)


def ids_of_keys(keys_Bk: Tensor, k: int) -> Tensor:
    """The item ids of sort keys, -1 for one that is absent and in places up to k."""
    ids_Bk = 0xFFFF_FFFF - (keys_Bk & 0xFFFF_FFFF)
    ids_Bk = ids_Bk.masked_fill(keys_Bk <= LAST_ABSENT_KEY, -1)
    return torch.nn.functional.pad(ids_Bk, (0, k - ids_Bk.shape[1]), value=-1)


def _score_tiles(
    states_BD: Tensor,
    table_VD: Tensor,
    seen: tuple[Tensor, Tensor] | None,
    least_items: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """The scores of all rows for some items, and the first of these; -inf where one was seen."""
    num_items = len(table_VD)
    largest = reference.TILE_ELEMENTS // max(*states_BD.shape, 1)
    items_per_tile = max(least_items, min(largest, _LEAST_ITEMS), largest // _PART_OF_TILE)
    for first in range(0, num_items, items_per_tile):
        last = min(first + items_per_tile, num_items)
        scores_Bv = states_BD.float() @ table_VD[first:last].float().T
        if seen is not None:
            seen_rows, seen_ids = seen
            inside = (seen_ids >= first) & (seen_ids < last)
            inside &= (seen_rows >= 0) & (seen_rows < len(states_BD))
            scores_Bv[seen_rows[inside], seen_ids[inside] - first] = -torch.inf
        yield first, scores_Bv


LAST_ABSENT_KEY = ((-0x7F80_0001) << 32) | 0xFFFF_FFFF
"""Ordered integer of -inf; every key of an absent item lies at or below the end of its range."""


def _sort_keys(scores_Bv: Tensor, first: int) -> Tensor:
    """One int64 per score that sorts by score and then, lower first, by item id."""
    # Adding zero makes -0.0 equal to 0.0; the xor makes the bits of a float sort as an integer.
    bits_Bv = (
        scores_Bv.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) + 0.0
    ).view(torch.int32)
    ordered_Bv = (bits_Bv ^ ((bits_Bv >> 31) & 0x7FFF_FFFF)).to(torch.int64)
    ids_v = torch.arange(first, first + scores_Bv.shape[1], device=scores_Bv.device)
    return (ordered_Bv << 32) | (0xFFFF_FFFF - ids_v)
