"""Layer norm and its gradients: every warp has rows of its own, and reads each once.

Shapes: T rows, D width, C columns of a chunk, P programs of the backward pass.

A block of rows is [rows, chunks, C]: a warp reads C columns at a time, the rows are spread over
the warps, and the chunks are the registers of a thread. A sum over a row needs no other warp.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Gpu, gpu_of
from kernels.launch import block_of, cdiv

_WARPS = 8
_BLOCK_ELEMENTS = 2048
"""16 bytes of float32 a thread, twice."""
_CHUNK = 128
"""What a warp reads at once, 16 bytes of float32 a thread."""
_STAGES = 3
_PROGRAMS_PER_SM = 4
"""As many as there are registers for (64 a thread, compiled for sm_90; no other number
was timed)."""
_SUM_BLOCK = {"BLOCK_P": 256, "BLOCK_C": 16}
_INTERPRETED_PROGRAMS = 3


@triton.jit
def columns(D: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Columns [chunks, C], and which of them there are."""
    # Four at a time in every type: else a type would be read in a layout of its own, and exchanged
    # between the warps.
    c = tl.max_contiguous(tl.arange(0, BLOCK_C), 4)
    d = tl.arange(0, CHUNKS)[:, None] * BLOCK_C + c[None, :]
    return d, d < D


@triton.jit
def mean_of(values, D: tl.constexpr):
    """The mean of every row, [rows, 1, 1]."""
    return tl.sum(tl.sum(values, 1), 1)[:, None, None] * (1 / D)


@triton.jit(do_not_specialize=["num_rows"])
def forward_rows(
    x, weight, bias, y, mean, rstd,
    num_rows: tl.int32, eps: tl.float32,
    D: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Grid: blocks of rows."""
    d, in_width = columns(D, CHUNKS, BLOCK_C)
    r = tl.arange(0, ROWS)[:, None, None]
    begin = tl.program_id(0) * ROWS
    here = r < num_rows - begin
    start = begin.to(tl.int64) * D
    place, mask = r * D + d[None, :, :], here & in_width[None, :, :]
    values = tl.load(x + start + place, mask=mask, other=0).to(tl.float32)
    w = tl.load(weight + d, mask=in_width, other=0).to(tl.float32)[None, :, :]
    b = tl.load(bias + d, mask=in_width, other=0).to(tl.float32)[None, :, :]
    center = mean_of(values, D)
    values = tl.where(in_width[None, :, :], values - center, 0)
    scale = tl.div_rn(1.0, tl.sqrt_rn(mean_of(values * values, D) + eps))
    tl.store(y + start + place, (values * scale * w + b).to(y.dtype.element_ty), mask=mask)
    tl.store(mean + begin + r, center, mask=here)
    tl.store(rstd + begin + r, scale, mask=here)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def backward_rows(
    grad_y, x, weight, mean, rstd, grad_x, partial,
    num_rows: tl.int32, rows_per_program: tl.int32,
    D: tl.constexpr, ROWS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and in partial [P, 2, D] what the rows add to those of weight and bias.

    Grid: P programs, of consecutive rows each.
    """
    d, in_width = columns(D, CHUNKS, BLOCK_C)
    r = tl.arange(0, ROWS)[:, None, None]
    program = tl.program_id(0)
    first = program * rows_per_program
    end = tl.minimum(first + rows_per_program, num_rows)
    w = tl.load(weight + d, mask=in_width, other=0).to(tl.float32)[None, :, :]
    weight_sum = tl.zeros((ROWS, CHUNKS, BLOCK_C), tl.float32)
    bias_sum = tl.zeros((ROWS, CHUNKS, BLOCK_C), tl.float32)
    for begin in tl.range(first, end, ROWS, num_stages=STAGES):
        here = r < end - begin
        # In the interpreter it is an int.
        start = tl.cast(begin, tl.int64) * D
        place, mask = r * D + d[None, :, :], here & in_width[None, :, :]
        values = tl.load(x + start + place, mask=mask, other=0).to(tl.float32)
        g = tl.load(grad_y + start + place, mask=mask, other=0).to(tl.float32)
        scale = tl.load(rstd + begin + r, mask=here, other=0)
        values = (values - tl.load(mean + begin + r, mask=here, other=0)) * scale
        weight_sum += g * values
        bias_sum += g
        g *= w
        g = (g - values * mean_of(g * values, D) - mean_of(g, D)) * scale
        tl.store(grad_x + start + place, g.to(grad_x.dtype.element_ty), mask=mask)
    sums = partial + program.to(tl.int64) * (2 * D) + d
    tl.store(sums, tl.sum(weight_sum, 0), mask=in_width)
    tl.store(sums + D, tl.sum(bias_sum, 0), mask=in_width)


@triton.jit(do_not_specialize=["num_programs"])
def sum_programs(
    partial, grad_weight, grad_bias,
    num_programs: tl.int32,
    D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias. Grid: blocks of the 2 D columns of both."""
    d = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for begin in tl.range(0, num_programs, BLOCK_P):
        mask = (begin + p < num_programs)[:, None] & (d < 2 * D)[None, :]
        sums += tl.load(partial + (begin + p)[:, None] * (2 * D) + d[None, :], mask=mask, other=0)
    total = tl.sum(sums, 0)
    tl.store(grad_weight + d, total, mask=d < D)
    tl.store(grad_bias + d - D, total, mask=(d >= D) & (d < 2 * D))


def forward(
    x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and mean and reciprocal deviation of every row."""
    num_rows, width = x_TD.shape
    blocks = _blocks(width)
    y_TD, mean_T, rstd_T = like(x_TD, out_dtype)
    with torch.cuda.device_of(x_TD):
        forward_rows[(max(1, cdiv(num_rows, blocks["ROWS"])),)](
            x_TD, weight_D.contiguous(), bias_D.contiguous(), y_TD, mean_T, rstd_T,
            num_rows, eps, D=width, **blocks, num_warps=_WARPS,
        )  # fmt: skip
    return y_TD, mean_T, rstd_T


def backward(
    grad_y_TD: Tensor, x_TD: Tensor, weight_D: Tensor, mean_T: Tensor, rstd_T: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias; the same bits whenever it runs on one device."""
    num_rows, width = x_TD.shape
    blocks = _blocks(width)
    num_programs = backward_programs(gpu_of(x_TD.device), num_rows, width)
    partial_P2D = x_TD.new_empty(num_programs, 2, width, dtype=torch.float32)
    grad_x_TD, grad_weight_D, grad_bias_D = gradients_like(x_TD, weight_D)
    with torch.cuda.device_of(x_TD):
        backward_rows[(num_programs,)](
            grad_y_TD.contiguous(), x_TD, weight_D.contiguous(), mean_T, rstd_T,
            grad_x_TD, partial_P2D, num_rows, cdiv(num_rows, num_programs),
            D=width, **blocks, STAGES=_STAGES, num_warps=_WARPS,
        )  # fmt: skip
        sum_programs[(cdiv(2 * width, _SUM_BLOCK["BLOCK_C"]),)](
            partial_P2D, grad_weight_D, grad_bias_D, num_programs,
            D=width, **_SUM_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
    return grad_x_TD, grad_weight_D, grad_bias_D


def like(x_TD: Tensor, out_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors for what `forward` returns."""
    y_TD = torch.empty_like(x_TD, dtype=out_dtype)
    # Not len, an int: torch.compile would compile every number of rows anew.
    num_rows = x_TD.shape[0]
    mean_T, rstd_T = (x_TD.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    return y_TD, mean_T, rstd_T


def gradients_like(x_TD: Tensor, weight_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors for what `backward` returns; bias is of the weight's type."""
    grad_weight_D, grad_bias_D = (weight_D.new_empty(len(weight_D)) for _ in range(2))
    return torch.empty_like(x_TD), grad_weight_D, grad_bias_D


def _blocks(width: int) -> dict[str, int]:
    block_d = block_of(width)
    # Wider rows are shared by warps: a thread has room for two chunks.
    block_c = max(min(_CHUNK, block_d), block_d // 2)
    rows = max(1, _BLOCK_ELEMENTS // block_d)
    return {"ROWS": rows, "CHUNKS": block_d // block_c, "BLOCK_C": block_c}


def backward_programs(gpu: Gpu | None, num_rows: int, width: int) -> int:
    """Programs of the backward pass; None: the interpreter's."""
    most = _INTERPRETED_PROGRAMS if gpu is None else _PROGRAMS_PER_SM * gpu.num_sms
    return min(most, max(1, cdiv(num_rows, _blocks(width)["ROWS"])))
