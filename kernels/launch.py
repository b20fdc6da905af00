"""Launch configurations of the Triton kernels: a small table, measured, and a safe default.

Nothing is tuned at run time, and no entry depends on the number of rows, so that ragged batches
run what has been compiled. `python -m benchmarks.tune` measures candidates on the card at hand and
writes rows to `launch_table.json`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton.language as tl

from kernels.gpu import Gpu, gpu_of
from kernels.reference import Problem

TABLE = Path(__file__).with_name("launch_table.json")
"""Tiles by `Key`."""


class Key(NamedTuple):
    """What a row of the table is for.

    Attributes:
        capability: Major number of the compute capability.
        operand_bytes: Bytes of an operand of the matrix products.
        table_bytes: Bytes of an element of the item table, which waits in shared memory as it is.
        block_d: Power of two that holds the width; no row is for a width of several blocks.
    """

    capability: int
    operand_bytes: int
    table_bytes: int
    block_d: int


class Tile(NamedTuple):
    """Block sizes of one kernel, and the warps and pipeline stages of its programs."""

    block_r: int
    block_k: int
    num_warps: int
    num_stages: int


class Tiles(NamedTuple):
    """Tiles of all kernels for one width, type and card.

    Attributes:
        forward: `softmax_forward` over lists.
        catalogue: `softmax_forward` over the whole catalogue.
        group: `group_gradient`; block_r is the largest group that a program can hold.
        pool: `pool_gradient`.
        row: `row_forward`, block_k candidates at a time.
        segment: `sum_segments`, block_k entries at a time.
    """

    forward: Tile
    catalogue: Tile
    group: Tile
    pool: Tile
    row: Tile
    segment: Tile


class LaunchConfig(NamedTuple):
    """How the kernels of one problem are launched."""

    forward: Tile
    group: Tile
    pool: Tile
    segment: Tile
    block_d: int
    dtype: Any
    precision: str
    programs: int
    """Programs that fill the device; fewer rows than that are cut further."""


WIDEST_BLOCK = 256
_WIDEST_SPLIT_BLOCK = 64
"""Of float32 that is multiplied as three TF32 products: wider blocks spill registers."""
_WIDEST_ROW_BLOCK = 1024
_TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@cache
def _table() -> dict[Key, Tiles]:
    return {
        Key(*(row[field] for field in Key._fields)): Tiles(
            *(Tile(*row[kernel]) for kernel in Tiles._fields)
        )
        for row in json.loads(TABLE.read_text())
    }


def default_tiles(operand_bytes: int, block_d: int) -> Tiles:
    """Tiles that fit in 99 KiB of shared memory, the least of any card since Ampere."""
    half = operand_bytes < 4
    rows = 64 if half else 32
    warps = 4 if block_d <= 128 else 8
    alone = Tile(1, max(4, min(8, 4096 // block_d)), max(1, block_d // 256), 1)
    return Tiles(
        forward=Tile(rows, 32, warps, 2),
        catalogue=Tile(rows, 32, warps, 2),
        group=Tile(64, 32, warps, 2) if half else Tile(16, 16, warps, 2),
        pool=Tile(32, 64, warps, 2) if half else Tile(16, 32, warps, 2),
        row=alone,
        segment=alone,
    )


def launch_config(problem: Problem, by_row: bool) -> LaunchConfig:
    """The configuration for a problem's width, type and device."""
    return config_of(
        gpu_of(problem.states_ND.device),
        problem.operand_dtype,
        problem.table_VD.dtype,
        int(problem.states_ND.shape[1]),
        "row" if by_row else "catalogue" if problem.draws is None else "forward",
        torch.get_float32_matmul_precision() == "highest",
    )


def forward_splits(
    config: LaunchConfig, group_size: int, num_groups: int, num_candidates: int, blocks: int
) -> int:
    """Parts that the candidates of the forward pass are cut into, for few rows to fill a device.

    Args:
        config: The configuration.
        group_size: R.
        num_groups: G.
        num_candidates: K.
        blocks: Blocks of the width.
    """
    tile = for_group(config.forward, group_size)
    num_tiles = num_groups * cdiv(group_size, tile.block_r)
    candidate_tiles = cdiv(num_candidates, tile.block_k)
    return max(1, min(config.programs // (num_tiles * blocks), candidate_tiles // 8, 16))


def for_group(tile: Tile, group_size: int) -> Tile:
    """The tile with no more rows than a group needs."""
    return tile._replace(block_r=min(tile.block_r, block_of(group_size)))


@cache
def config_of(
    gpu: Gpu | None,
    dtype: torch.dtype,
    table_dtype: torch.dtype,
    width: int,
    kernel: str,
    exact: bool = True,
) -> LaunchConfig:
    """The configuration for a GPU.

    Args:
        gpu: The card; None: another kind of device.
        dtype: Of the operands.
        table_dtype: Of the item table.
        width: D.
        kernel: Of the forward pass: "forward" of lists, "catalogue" or "row".
        exact: Float32 is not to be multiplied as TF32.
    """
    precision = "tf32x3" if exact and dtype == torch.float32 else "tf32"
    widest = WIDEST_BLOCK
    if kernel == "row":
        widest = _WIDEST_ROW_BLOCK
    elif gpu is not None and precision == "tf32x3":
        widest = _WIDEST_SPLIT_BLOCK
    block_d = min(widest, block_of(width))
    capability, num_sms = gpu or (0, 0)
    key = Key(capability, dtype.itemsize, table_dtype.itemsize, block_of(width))
    tiles = _table().get(key)
    if tiles is None:
        tiles = default_tiles(dtype.itemsize, block_d)
    return LaunchConfig(
        forward=getattr(tiles, kernel),
        group=tiles.group,
        pool=tiles.pool,
        segment=tiles.segment,
        block_d=block_d,
        dtype=_TRITON_DTYPES[dtype],
        precision=precision,
        programs=max(1, 2 * num_sms),
    )


def block_of(width: int) -> int:
    """The power of two that holds a width; a matrix product has at least 16."""
    return max(16, next_power_of_2(width))


def cdiv(number: int, divisor: int) -> int:
    """The quotient rounded up; `triton.cdiv` takes 10 microseconds on the host."""
    return -(-number // divisor)


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below a number of at least 1."""
    return 1 << (number - 1).bit_length()
