"""Launches the forward pass in Triton, and what makes the states' gradient of it.

Shapes: N rows, G groups, R rows of a group, K candidates, V items, D width.
"""

from typing import Any

import torch
from torch import Tensor

from kernels import triton_lists, triton_rows, triton_softmax
from kernels.launch import cdiv, for_group, forward_splits, next_power_of_2
from kernels.reference import Problem
from kernels.triton_plan import (
    UNCLAIMED,
    Plan,
    Saved,
    corrects,
    is_given,
    lists_of,
    log_q_of,
    log_weight_of,
    met_of,
    plan,
    saved_like,
    strides,
    weight_strides,
)


def forward(
    problem: Problem,
    table_gradient: str,
    with_mixtures: bool,
    filter_eps: float | None,
    faults: Tensor,
) -> Saved:
    """Losses of all rows and what the backward pass needs."""
    cut = plan(problem, table_gradient)
    saved = saved_like(problem, table_gradient, with_mixtures)
    if cut.num_rows == 0:
        return saved
    if cut.drawn_lists:
        _write_lists(problem, cut, saved)
    lists = lists_of(problem, saved.lists_GK)
    outputs = (*saved[:4], saved.mixtures_ND if with_mixtures else None, faults)
    if cut.by_row:
        _forward_by_row(problem, cut, lists, outputs)
    else:
        _forward_by_group(problem, cut, lists, filter_eps, outputs)
    return saved


def _write_lists(problem: Problem, cut: Plan, saved: Saved) -> None:
    assert problem.draws is not None
    arguments = (problem.draws.alias_V2, *problem.draws.key)
    block = min(1024, next_power_of_2(cut.num_candidates))
    owner_V = None
    if cut.claims:
        owner_V = torch.full(
            (cut.num_items,), UNCLAIMED, dtype=torch.int32, device=saved.lists_GK.device
        )
        grid = (cut.num_groups, cdiv(cut.num_candidates, block))
        triton_lists.claim_items[grid](
            owner_V, *arguments, cut.num_items, cut.num_candidates, BLOCK=block
        )
        words = len(saved.touched_W)
        triton_lists.pack_claimed[(cdiv(words, 64),)](
            saved.touched_W, owner_V, cut.num_items, BLOCK=64
        )
    triton_lists.write_lists[(cut.num_groups,)](
        saved.lists_GK,
        saved.num_first_G if cut.claims else None,
        owner_V,
        *arguments,
        0,
        cut.num_items,
        cut.num_candidates,
        BLOCK=block,
    )


def _forward_by_row(
    problem: Problem, cut: Plan, lists: Tensor | None, outputs: tuple[Tensor | None, ...]
) -> None:
    assert problem.draws is not None
    config = cut.config
    triton_rows.row_forward[(cut.num_rows,)](
        *problem[:3],
        lists,
        problem.draws.alias_V2,
        problem.bias_V,
        problem.logit_scale,
        log_q_of(problem),
        *outputs,
        problem.positive_weight,
        *problem.draws.key,
        cut.num_rows,
        cut.num_items,
        cut.num_candidates,
        *strides(problem),
        problem.ignore_index,
        D=cut.width,
        CORRECTION=corrects(problem),
        CORRECTED_VALUE=problem.corrected_value,
        DTYPE=config.dtype,
        BLOCK_K=config.forward.block_k,
        BLOCK_D=config.block_d,
        num_warps=config.forward.num_warps,
        num_stages=config.forward.num_stages,
    )


def _forward_by_group(
    problem: Problem,
    cut: Plan,
    lists: Tensor | None,
    filter_eps: float | None,
    outputs: tuple[Tensor | None, ...],
) -> None:
    config = cut.config
    tile = for_group(config.forward, cut.group_size)
    tiles_per_group = cdiv(cut.group_size, tile.block_r)
    num_tiles = cut.num_groups * tiles_per_group
    with_gradient = outputs[4] is not None
    blocks = cut.blocks_of_width if with_gradient else 1
    splits = forward_splits(config, cut.group_size, cut.num_groups, cut.num_candidates, blocks)
    partial_rows = partial_mixture = None
    if splits > 1:
        empty = problem.states_ND.new_empty
        partial_rows = empty(splits, 2, cut.num_rows, dtype=torch.float32)
        if with_gradient:
            partial_mixture = empty(splits, cut.num_rows, cut.width, dtype=torch.float32)
    absent = _count_absent(problem, cut, lists)
    numbers, rounds_and_reach = met_of(problem)
    shared: dict[str, Any] = {
        "D": cut.width,
        "CORRECTION": corrects(problem),
        "CORRECTED_VALUE": problem.corrected_value,
        "SPLITS": splits,
        "DTYPE": config.dtype,
        "BLOCK_D": config.block_d,
    }
    triton_softmax.softmax_forward[(num_tiles, blocks, splits)](
        *problem[:3],
        lists,
        problem.bias_V,
        problem.logit_scale,
        log_q_of(problem),
        log_weight_of(problem),
        *numbers,
        *outputs,
        absent,
        filter_eps,
        partial_rows,
        partial_mixture,
        problem.positive_weight,
        cut.num_rows,
        cut.num_items,
        cut.num_candidates,
        cut.group_size,
        tiles_per_group,
        *rounds_and_reach,
        *strides(problem),
        problem.ignore_index,
        **shared,
        GIVEN=is_given(problem),
        PRECISION=config.precision,
        BLOCK_R=tile.block_r,
        BLOCK_K=tile.block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    if splits > 1:
        rows = 16
        triton_softmax.combine_splits[(cdiv(cut.num_rows, rows), blocks)](
            *problem[:3],
            lists,
            problem.bias_V,
            problem.logit_scale,
            log_q_of(problem),
            *outputs,
            absent,
            partial_rows,
            partial_mixture,
            problem.positive_weight,
            cut.num_rows,
            cut.num_items,
            cut.num_candidates,
            *strides(problem),
            problem.ignore_index,
            **shared,
            BLOCK_R=rows,
        )


def _count_absent(problem: Problem, cut: Plan, lists: Tensor | None) -> Tensor | None:
    if lists is None or not (corrects(problem) or problem.corrected_value):
        return None
    absent_N = torch.empty(cut.num_rows, dtype=torch.int32, device=lists.device)
    rows = max(16, min(32, next_power_of_2(cut.group_size)))
    tiles_per_group = cdiv(cut.group_size, rows)
    triton_softmax.count_absent[(cut.num_groups * tiles_per_group,)](
        absent_N,
        problem.targets_N,
        lists,
        cut.num_rows,
        cut.num_candidates,
        cut.group_size,
        tiles_per_group,
        GIVEN=is_given(problem),
        BLOCK_R=rows,
        BLOCK_K=64,
        num_warps=1,
    )
    return absent_N


def finish_states_gradient(
    problem: Problem,
    mixtures_ND: Tensor,
    target_error_N: Tensor,
    loss_weight_N: Tensor | None,
    lse_weight_N: Tensor | None,
) -> Tensor:
    """Turns the mixtures of `forward` into the gradient of the states, in place.

    Returns:
        The gradient of the logit scale, float32 [1]; empty without one.
    """
    num_rows, width = problem.states_ND.shape
    config = plan(problem, "none").config
    blocks = cdiv(width, config.block_d)
    scales = blocks if problem.logit_scale is not None else 0
    scale_gradient_BN = mixtures_ND.new_zeros(scales, num_rows, dtype=torch.float32)
    if num_rows > 0:
        rows = max(1, 4096 // config.block_d)
        triton_softmax.finish_states_gradient[(cdiv(num_rows, rows), blocks)](
            mixtures_ND,
            scale_gradient_BN if scales else None,
            *problem[:3],
            problem.logit_scale,
            target_error_N,
            loss_weight_N,
            lse_weight_N,
            num_rows,
            problem.table_VD.shape[0],
            *weight_strides(loss_weight_N, lse_weight_N),
            *strides(problem),
            problem.ignore_index,
            D=width,
            CATALOGUE=problem.draws is None,
            BLOCK_R=rows,
            BLOCK_D=config.block_d,
            DTYPE=config.dtype,
        )
    return scale_gradient_BN.sum().reshape(1) if scales else scale_gradient_BN.flatten()
