"""The nearest of some anchors to every vector: a product of which only the largest remains.

Shapes: N vectors, B anchors, D width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import gpu_of
from kernels.launch import Tile, block_of, cdiv, config_of, for_group
from kernels.triton_tiles import load_rows, scores

_BLOCK_OF_WIDE = 64
"""Columns at a time of vectors wider than a block: then both operands wait in shared memory."""


@triton.jit(do_not_specialize=["num_vectors", "num_anchors"])
def nearest(
    output, vectors, anchors, num_vectors: tl.int32, num_anchors: tl.int32,
    vectors_stride: tl.int64, anchors_stride: tl.int64,
    D: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The anchor with the highest inner product. Grid: tiles of vectors."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row_mask = row < num_vectors
    row = tl.minimum(row, num_vectors - 1)
    held = load_rows(vectors, row, vectors_stride, None, 0, D, BLOCK_D, DTYPE)
    best = tl.full((BLOCK_R,), -float("inf"), tl.float32)
    place = tl.zeros((BLOCK_R,), tl.int32)
    for begin in range(0, num_anchors, BLOCK_K):
        anchor = begin + tl.arange(0, BLOCK_K)
        inside = anchor < num_anchors
        z, _ = scores(
            held, vectors, row, vectors_stride, anchors, tl.minimum(anchor, num_anchors - 1),
            anchors_stride, D, BLOCK_D, DTYPE, PRECISION,
        )  # fmt: skip
        z = tl.where(inside[None, :], z, -float("inf"))
        highest, where = tl.max(z, 1, return_indices=True)
        place = tl.where(highest > best, begin + where, place)
        best = tl.maximum(best, highest)
    tl.store(output + row, place, mask=row_mask)


def nearest_anchors(nearest_N: Tensor, vectors_ND: Tensor, anchors_BD: Tensor) -> None:
    """Writes the nearest anchor of each vector.

    The anchors are random: that products are rounded to bfloat16 makes others of them, no worse
    ones. The tiles were not timed.
    """
    num_vectors, width = vectors_ND.shape
    if num_vectors == 0:
        return
    if vectors_ND.stride(1) != 1:
        vectors_ND = vectors_ND.contiguous()
    gpu = gpu_of(vectors_ND.device)
    dtype = torch.bfloat16 if gpu is not None and gpu.capability >= 8 else vectors_ND.dtype
    config = config_of(gpu, dtype, dtype, width, "forward", exact=False)
    block_d = block_of(width) if width <= config.block_d else _BLOCK_OF_WIDE
    tile = Tile(64, 32, 4, 2) if dtype.itemsize < 4 else Tile(32, 32, 4, 2)
    if gpu is not None and gpu.capability == 9:
        tile = Tile(128, 64, 8, 3)
    tile = for_group(tile, num_vectors)
    with torch.cuda.device_of(vectors_ND):  # type: ignore[no-untyped-call]
        nearest[(cdiv(num_vectors, tile.block_r),)](
            nearest_N,
            vectors_ND,
            anchors_BD.to(dtype),
            num_vectors,
            len(anchors_BD),
            vectors_ND.stride(0),
            anchors_BD.stride(0),
            D=width,
            DTYPE=config.dtype,
            PRECISION=config.precision,
            BLOCK_R=tile.block_r,
            BLOCK_K=tile.block_k,
            BLOCK_D=block_d,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
