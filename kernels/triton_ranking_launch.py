"""Launches the ranking kernels.

Shapes: B rows, V items, D width, P seen pairs, S item groups, C capacity.

Top-k takes two passes over the catalogue and writes few scores in either. The first leaves the
best item of each of S groups of items; the k-th best of those that were not seen is a bound that k
unseen items reach. The second collects what reaches it, a little more than k items of each row
where S is several times k. Of few items every one is its own group, and the first pass is enough;
so it is where lists need not be exact.
"""

from typing import Any, Literal, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from kernels import reference, reference_ranking, triton_ranking
from kernels.gpu import gpu_of
from kernels.launch import (
    WIDEST_BLOCK,
    LaunchConfig,
    Tile,
    block_of,
    cdiv,
    for_group,
    launch_config,
    next_power_of_2,
)
from kernels.reference import Problem

_LEAST_GROUPS = 2048
_GROUPS_PER_PLACE = {True: 8, False: 16}
"""Groups for each place of a list, and for each item that a row has seen on average, by whether
lists are exact. Of those of one pass alone, k / (2 S) of the k best items share their group with a
better one, and are missing."""
_LEAST_GROUP_SIZE = 4
"""Up to as many items a group, one pass keeps the keys of all items."""
_ROOM_PER_PLACE = 4
"""Unseen items of a row that can be collected, for each place of its list."""
_LEAST_ROOM = 256
_BLOCK = 256
"""Pairs, or keys, of a program that multiplies nothing."""
_SPLIT_COLUMNS = 32
"""Columns of a product whose operands are split: with more the registers do not suffice."""
_MEASURED: dict[Literal["ranks", "lists"], Tile] | None = None
"""Tiles in place of the chosen ones: for `benchmarks.ranking`, which measures them."""


class _Cut(NamedTuple):
    """How the matrices are cut; what all kernels that multiply them take by name."""

    tile: Tile
    programs: int
    constants: dict[str, Any]

    def row_tiles(self, num_rows: int) -> int:
        return cdiv(num_rows, self.tile.block_r)

    def splits(self, num_rows: int, num_items: int) -> tuple[int, int]:
        """Splits of the items, and items of a split: enough for four waves of programs."""
        item_tiles = cdiv(num_items, self.tile.block_k)
        wanted = 4 * self.programs // self.row_tiles(num_rows)
        tiles_per_split = cdiv(item_tiles, max(1, min(wanted, item_tiles // 8)))
        return cdiv(item_tiles, tiles_per_split), tiles_per_split * self.tile.block_k


def target_ranks(
    states_BD: Tensor, table_VD: Tensor, targets_B: Tensor, seen: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The rank of each row's target; see `ranking.target_ranks`."""
    num_rows, num_items = states_BD.shape[0], table_VD.shape[0]
    counts_B = torch.zeros(num_rows, dtype=torch.int32, device=states_BD.device)
    own_B = torch.full_like(counts_B, torch.nan, dtype=torch.float32)
    if num_rows and num_items:
        states_BD, table_VD = _dense_rows(states_BD), _dense_rows(table_VD)
        targets_B = targets_B.contiguous()
        outputs = counts_B, own_B, states_BD, table_VD, targets_B
        strides = states_BD.stride(0), table_VD.stride(0)
        cut = _cut(states_BD, table_VD, "ranks")
        row_tiles = cut.row_tiles(num_rows)
        splits, items_per_split = cut.splits(num_rows, num_items)
        triton_ranking.count_above[(row_tiles * splits,)](
            *outputs, num_rows, num_items, row_tiles, items_per_split, *strides, **cut.constants
        )
        if seen is not None and len(seen[0]):
            pairs_P = _sorted_pairs(seen, num_rows, num_items)
            triton_ranking.discount_seen[(cdiv(len(pairs_P), cut.tile.block_r),)](
                *outputs, pairs_P, len(pairs_P), num_items, *strides, **cut.constants
            )
    return torch.where(own_B > -torch.inf, counts_B.long() + 1, num_items + 1)


def top_k(
    states_BD: Tensor,
    table_VD: Tensor,
    k: int,
    seen: tuple[Tensor, Tensor] | None,
    exact: bool = True,
) -> Tensor:
    """The k best items of each row; see `ranking.top_k`.

    Where rows are ranked in two passes, those in which more items reach the bound than there is
    room for are ranked again by the eager backend; for their number the device is waited for at
    the end, once.
    """
    num_rows, num_items = states_BD.shape[0], table_VD.shape[0]
    places = min(k, num_items)
    if num_rows == 0 or num_items == 0:
        return torch.full((num_rows, k), -1, dtype=torch.int64, device=states_BD.device)
    states_BD, table_VD = _dense_rows(states_BD), _dense_rows(table_VD)
    cut = _cut(states_BD, table_VD, "lists", exact)
    num_pairs = 0 if seen is None else len(seen[0])
    pairs_P = starts_B1 = None
    if seen is not None and num_pairs:
        pairs_P = _sorted_pairs(seen, num_rows, num_items)
        bounds_B1 = torch.arange(num_rows + 1, device=pairs_P.device) * num_items
        starts_B1 = torch.searchsorted(pairs_P, bounds_B1)
    num_groups, one_pass = _groups(cut, num_rows, num_items, places, num_pairs, exact)
    capacity = max(_LEAST_ROOM, next_power_of_2(_ROOM_PER_PLACE * places))
    # Every pass reads the catalogue: it shall be one of the buckets of a loss.
    keys_per_row = max(num_groups, capacity) if exact else cdiv(num_groups, 2)
    rows_per_pass = max(1, reference.TILE_ELEMENTS // keys_per_row)
    ids_Bk = torch.empty(num_rows, k, dtype=torch.int64, device=states_BD.device)
    kept_B = torch.zeros(num_rows, dtype=torch.int32, device=states_BD.device)
    for first in range(0, num_rows, rows_per_pass):
        rows = slice(first, first + rows_per_pass)
        keys_bS = _best_of_groups(cut, states_BD[rows], table_VD, num_groups, pairs_P, first)
        keys_bk = keys_bS.topk(places, dim=1).values
        del keys_bS
        if not one_pass:
            starts_b1 = None if starts_B1 is None else starts_B1[first : rows.stop + 1]
            keys_bC = _collect(
                cut, states_BD[rows], table_VD, keys_bk.amin(1), capacity, kept_B[rows],
                pairs_P, starts_b1, first,
            )  # fmt: skip
            keys_bk = keys_bC.topk(places, dim=1).values
            del keys_bC
        ids_Bk[rows] = reference_ranking.ids_of_keys(keys_bk, k)
    if not one_pass:
        full_F = (kept_B > capacity).nonzero()[:, 0]
        if len(full_F):
            seen_of_full = None if seen is None else _seen_of(seen, full_F, num_rows)
            ids_Bk[full_F] = reference_ranking.top_k(states_BD[full_F], table_VD, k, seen_of_full)
    return ids_Bk


def _groups(
    cut: _Cut, num_rows: int, num_items: int, places: int, num_pairs: int, exact: bool
) -> tuple[int, bool]:
    """How many groups the items are cut into, and whether their best are enough."""
    block_k = cut.tile.block_k
    num_groups = max(
        _LEAST_GROUPS,
        _GROUPS_PER_PLACE[exact] * (places + cdiv(num_pairs, num_rows)),
        # Two waves of programs, however few rows there are.
        2 * cut.programs * block_k // cut.row_tiles(num_rows),
    )
    is_alone = num_items <= _LEAST_GROUP_SIZE * num_groups
    num_groups = cdiv(num_items if is_alone else num_groups, block_k) * block_k
    return num_groups, is_alone or not exact


def _best_of_groups(
    cut: _Cut,
    states_bD: Tensor,
    table_VD: Tensor,
    num_groups: int,
    pairs_P: Tensor | None,
    first_row: int,
) -> Tensor:
    """The sort key of the best item of each group [b, S], absent where that was seen."""
    num_rows, num_items = states_bD.shape[0], table_VD.shape[0]
    keys_bS = torch.empty(num_rows, num_groups, dtype=torch.int64, device=states_bD.device)
    row_tiles = cut.row_tiles(num_rows)
    triton_ranking.best_of_groups[(row_tiles * (num_groups // cut.tile.block_k),)](
        keys_bS,
        states_bD,
        table_VD,
        num_rows,
        num_items,
        row_tiles,
        num_groups,
        states_bD.stride(0),
        table_VD.stride(0),
        **cut.constants,
    )
    if pairs_P is not None:
        triton_ranking.drop_seen_groups[(cdiv(len(pairs_P), _BLOCK),)](
            keys_bS,
            pairs_P,
            first_row,
            num_rows,
            num_items,
            num_groups,
            len(pairs_P),
            BLOCK=_BLOCK,
        )
    return keys_bS


def _collect(
    cut: _Cut,
    states_bD: Tensor,
    table_VD: Tensor,
    bounds_b: Tensor,
    capacity: int,
    kept_b: Tensor,
    pairs_P: Tensor | None,
    starts_b1: Tensor | None,
    first_row: int,
) -> Tensor:
    """The sort keys of unseen items that reach their row's bound [b, C], and their number.

    Args:
        cut: How the matrices are cut.
        states_bD: Some rows.
        table_VD: Item table.
        bounds_b: Their bounds, sort keys.
        capacity: C.
        kept_b: Becomes the number of keys of each row, where it exceeds C some are missing.
        pairs_P: Sorted pairs of all rows.
        starts_b1: Where those of each row begin, and where they end.
        first_row: Row of the pairs that the first of these rows is.
    """
    num_rows, num_items = states_bD.shape[0], table_VD.shape[0]
    keys_bC = bounds_b.new_full((num_rows, capacity), reference_ranking.LAST_ABSENT_KEY)
    found, num_found_b = keys_bC, kept_b
    if pairs_P is not None:
        found = bounds_b.new_empty(keys_bC.numel() + len(pairs_P))
        num_found_b = torch.zeros_like(kept_b)
    row_tiles = cut.row_tiles(num_rows)
    splits, items_per_split = cut.splits(num_rows, num_items)
    triton_ranking.append_above[(row_tiles * splits,)](
        found,
        num_found_b,
        bounds_b,
        starts_b1,
        states_bD,
        table_VD,
        num_rows,
        num_items,
        row_tiles,
        items_per_split,
        capacity,
        states_bD.stride(0),
        table_VD.stride(0),
        **cut.constants,
    )
    if pairs_P is not None:
        triton_ranking.keep_unseen[(num_rows,)](
            keys_bC,
            kept_b,
            found,
            num_found_b,
            starts_b1,
            pairs_P,
            first_row,
            num_items,
            capacity,
            len(pairs_P).bit_length(),
            BLOCK=_BLOCK,
        )
    return keys_bC


def _sorted_pairs(seen: tuple[Tensor, Tensor], num_rows: int, num_items: int) -> Tensor:
    """The seen pairs as row * V + item in ascending order, -1 for one outside the matrix."""
    rows_P, ids_P = seen
    inside_P = (rows_P >= 0) & (rows_P < num_rows) & (ids_P >= 0) & (ids_P < num_items)
    return (rows_P * num_items + ids_P).where(inside_P, -1).sort().values


def _seen_of(seen: tuple[Tensor, Tensor], rows_F: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The seen pairs of some rows, numbered in their order."""
    rows_P, ids_P = seen
    place_B = rows_F.new_full((num_rows,), -1)
    place_B[rows_F] = torch.arange(len(rows_F), device=rows_F.device)
    inside_P = (rows_P >= 0) & (rows_P < num_rows)
    place_P = place_B[rows_P.where(inside_P, 0)].where(inside_P, -1)
    return place_P[place_P >= 0], ids_P[place_P >= 0]


def _cut(
    states_BD: Tensor, table_VD: Tensor, kernels: Literal["ranks", "lists"], exact: bool = True
) -> _Cut:
    """How these kernels cut the matrices. Ranks and lists sum a score in the same order."""
    dtype = torch.promote_types(states_BD.dtype, table_VD.dtype)
    gpu = gpu_of(states_BD.device)
    if not exact and dtype == torch.float32 and gpu is not None and gpu.capability >= 8:
        dtype = torch.bfloat16
    problem = Problem(states_BD, table_VD, torch.empty(0), operand_dtype=dtype)
    config = launch_config(problem, by_row=False)
    if _splits_items(states_BD, table_VD, config):
        config = config._replace(dtype=tl.bfloat16, precision="bf16x3")
    tile, block_d = _tile(states_BD.device, states_BD.shape[1], kernels, config, exact)
    tile = (_MEASURED or {}).get(kernels, tile)
    tile = for_group(tile, states_BD.shape[0])
    constants = {
        "D": states_BD.shape[1],
        "DTYPE": config.dtype,
        "PRECISION": config.precision,
        "BLOCK_R": tile.block_r,
        "BLOCK_K": tile.block_k,
        "BLOCK_D": block_d,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    return _Cut(tile, config.programs, constants)


def _splits_items(states_BD: Tensor, table_VD: Tensor, config: LaunchConfig) -> bool:
    """Whether scores are three bfloat16 products; wider states would not fit beside the items."""
    gpu = gpu_of(states_BD.device)
    return (
        (states_BD.dtype, table_VD.dtype) == (torch.bfloat16, torch.float32)
        and config.precision == "tf32x3"
        and states_BD.shape[1] <= WIDEST_BLOCK
        and (gpu is None or gpu.capability >= 8)
    )


def _tile(
    device: torch.device,
    width: int,
    kernels: Literal["ranks", "lists"],
    config: LaunchConfig,
    exact: bool,
) -> tuple[Tile, int]:
    """The tile for a card, and the columns of its products.

    On Hopper the states of a program wait in shared memory, and each tile of items serves them
    all: few would be bound by the L2 cache. Lists hold the best score and item of every place of a
    tile beside its product, so theirs is smaller. The tiles are the fastest that
    `benchmarks.ranking` measured at width 256, and none has been timed at another. In those of
    bf16x3 a group of four warps takes 64 items: with fewer for each group, groups would repeat
    each other's work. Elsewhere it is the tile of the loss over the whole catalogue with fewer
    scores a warp, not timed. Compiled by Triton 3.6 for sm_80 and sm_90 none spills registers, and
    beside Hopper 99 KiB of shared memory are enough.
    """
    half, block_d = config.dtype != tl.float32, min(WIDEST_BLOCK, block_of(width))
    gpu = gpu_of(device)
    hopper = gpu is not None and gpu.capability == 9
    if config.precision == "bf16x3":
        tile = Tile(64, 32, 4, 2)
        if hopper:
            tile = Tile(128, 64, 4, 3) if kernels == "ranks" else Tile(64, 64, 4, 2)
        return tile, min(block_d, _SPLIT_COLUMNS)
    if not half and block_d > 64:
        block_d = _SPLIT_COLUMNS
    if hopper:
        if not half:
            return Tile(128, 128, 8, 4) if kernels == "ranks" else Tile(128, 64, 8, 3), block_d
        if width > block_d:
            return Tile(128, 128 if kernels == "ranks" else 64, 8, 4), 64
        if not exact:
            return Tile(128, 64, 8, 3), block_d
        return Tile(256, 64, 8, 3) if kernels == "ranks" else Tile(64, 64, 4, 2), block_d
    if not half:
        return Tile(64, 32, 4, 3), block_d
    tile = config.forward
    warps = max(tile.num_warps, tile.block_r * tile.block_k // 1024)
    return tile._replace(num_warps=warps, num_stages=min(tile.num_stages, 4)), block_d


def _dense_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
