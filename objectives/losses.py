"""From a loss's configuration to a call into `kernels`.

Shapes: N rows, K candidates, V items, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import (
    AliasTable,
    InBatch,
    Mixed,
    Popularity,
    RowSink,
    Uniform,
    calibrated_weight,
    full_cross_entropy,
    reduced_cross_entropy,
    sampled_binary_cross_entropy,
    sampled_cross_entropy,
    scalable_cross_entropy,
)
from kernels.candidates import Candidates
from kernels.gpu import is_simulated
from objectives.data.batches import NO_TARGET
from objectives.loss_config import (
    BCE,
    CCE,
    GBCE,
    RECE,
    SCE,
    BCEPlus,
    CCEMinus,
    CCEMinusInBatch,
    CCEMinusMixed,
    LossConfig,
)

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""loss(states_ND, table_VD, targets_N, step): the sum over the rows, which are shuffled, but those
without a target; step is int64 [1] on the device."""

_Gradient = str | RowSink


def build_loss(
    config: LossConfig,
    seed: int,
    sink: RowSink | None = None,
    counts_V: Tensor | None = None,
) -> Loss:
    """The loss that the configuration names; its candidates are drawn anew for every step.

    Args:
        config: The loss.
        seed: Seeds the negatives. The directions of SCE and RECE come from torch's own generator
            of the device.
        sink: Where the rows of the table's gradient go; None: it is dense, as it always is where
            the loss touches every row.
        counts_V: How often each item occurs in the training data, on the device; for a loss that
            `needs_counts`.
    """
    gradient: _Gradient = "dense" if sink is None else sink
    key = (seed & 0xFFFF_FFFF) << 32
    match config:
        case CCE():
            return _full
        case CCEMinus() | CCEMinusMixed() | CCEMinusInBatch():
            return _sampled(config, _source(config, key, counts_V), gradient)
        case BCE() | BCEPlus() | GBCE():
            return _binary(config, key, gradient)
        case SCE():
            return _in_buckets(config, gradient)
        case RECE():
            return _by_hashes(config)


def _full(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
    return full_cross_entropy(
        states_ND, table_VD, targets_N, reduction="sum", ignore_index=NO_TARGET
    )


def _sampled(
    config: CCEMinus | CCEMinusMixed | CCEMinusInBatch,
    source: Callable[[Tensor], Candidates],
    gradient: _Gradient,
) -> Loss:
    # Of the others all rows are one group.
    group_size = config.group_size if isinstance(config, CCEMinus) else 1

    def sampled(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        return sampled_cross_entropy(
            states_ND,
            table_VD,
            targets_N,
            source(step),
            group_size=group_size,
            correction=config.correction,
            ignore_index=NO_TARGET,
            reduction="sum",
            table_gradient=gradient,
        )

    return sampled


def _source(
    config: CCEMinus | CCEMinusMixed | CCEMinusInBatch, key: int, counts_V: Tensor | None
) -> Callable[[Tensor], Candidates]:
    """The candidates of each step; what they need to know of the data is made here, once."""
    if isinstance(config, CCEMinus) and config.candidates == "uniform":
        return lambda step: Uniform(config.negatives, key, step)
    if counts_V is None:
        raise ValueError(f"candidates {config.candidates} need counts_V, the items' counts")
    if isinstance(config, CCEMinus):
        table = _alias_table(counts_V, by_rank=config.candidates == "log-uniform")
        return lambda step: Popularity(config.negatives, key, table, step)
    # What is in a batch has a probability, also where its counts are of other data.
    in_batch = InBatch(counts_V.clamp(min=1).float())
    if isinstance(config, CCEMinusMixed):
        return lambda step: Mixed(config.negatives, key, in_batch, step)
    return lambda step: in_batch


def _alias_table(counts_V: Tensor, *, by_rank: bool) -> AliasTable:
    """Items in proportion to their counts or, by rank r from 1, to log(1 + 1 / r)."""
    if is_simulated():
        # There are no numbers to look at.
        empty = counts_V.new_empty
        num_items = len(counts_V)
        return AliasTable(
            empty(num_items, 2, dtype=torch.int32), empty(num_items, dtype=torch.float32)
        )
    weights_V = counts_V.cpu()
    if by_rank:
        rank_V = torch.arange(1, len(weights_V) + 1, dtype=torch.float64)
        order_V = weights_V.argsort(descending=True, stable=True)
        weights_V = torch.empty_like(rank_V).scatter(0, order_V, torch.log1p(1 / rank_V))
    return AliasTable.from_weights(weights_V).to(counts_V.device)


def _binary(config: BCE | BCEPlus | GBCE, key: int, gradient: _Gradient) -> Loss:
    num_negatives, group_size = 1, 1
    if not isinstance(config, BCE):
        num_negatives, group_size = config.negatives, config.group_size

    def binary(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        weight = 1.0
        if isinstance(config, GBCE):
            weight = calibrated_weight(num_negatives, len(table_VD), config.calibration)
        # Released gBCE divides by K + 1; gradients so short are not clipped (docs/log.md).
        return sampled_binary_cross_entropy(
            states_ND,
            table_VD,
            targets_N,
            Uniform(num_negatives, key, step),
            group_size=group_size,
            positive_weight=weight,
            ignore_index=NO_TARGET,
            reduction="sum",
            table_gradient=gradient,
        )

    return binary


def _in_buckets(config: SCE, gradient: _Gradient) -> Loss:
    def in_buckets(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        buckets = config.buckets(len(targets_N), len(table_VD))
        mean = scalable_cross_entropy(
            states_ND,
            table_VD,
            targets_N,
            num_buckets=buckets.number,
            bucket_rows=buckets.rows,
            bucket_items=buckets.items,
            mix=config.centres == "mixed",
            ignore_index=NO_TARGET,
            table_gradient=gradient,
        )
        # The mean is that of the rows that are in a bucket: they stand for the others.
        return mean * (targets_N != NO_TARGET).sum()

    return in_buckets


def _by_hashes(config: RECE) -> Loss:
    def by_hashes(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        return reduced_cross_entropy(
            states_ND,
            table_VD,
            targets_N,
            num_buckets=config.num_buckets(len(targets_N), len(table_VD)),
            buckets_per_chunk=config.buckets_per_chunk,
            neighbours=config.neighbours,
            rounds=config.rounds,
            ignore_index=NO_TARGET,
            reduction="sum",
        )

    return by_hashes
