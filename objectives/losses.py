"""From a loss's configuration to a call into `kernels`.

Shapes: N rows, V items, D width.
"""

from collections.abc import Callable

from torch import Tensor

from kernels import RowSink, Uniform, full_cross_entropy, sampled_cross_entropy
from objectives.config import LossConfig
from objectives.data.batches import NO_TARGET

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""loss(states_ND, table_VD, targets_N, step): the sum over the rows, which are shuffled, but those
without a target; step is int64 [1] on the device."""


def build_loss(config: LossConfig, seed: int, sink: RowSink | None = None) -> Loss:
    """The loss that the configuration names; its negatives are drawn anew for every step.

    Args:
        config: The loss.
        seed: Seeds the negatives.
        sink: Where the rows of the table's gradient go; None: it is dense, as it always is over
            the whole catalogue.
    """
    if config.loss == "cce":
        return lambda states_ND, table_VD, targets_N, step: full_cross_entropy(
            states_ND, table_VD, targets_N, reduction="sum", ignore_index=NO_TARGET
        )

    def sampled(states_ND: Tensor, table_VD: Tensor, targets_N: Tensor, step: Tensor) -> Tensor:
        candidates = Uniform(config.negatives, (seed & 0xFFFF_FFFF) << 32, step)
        return sampled_cross_entropy(
            states_ND,
            table_VD,
            targets_N,
            candidates,
            group_size=config.group_size,
            ignore_index=NO_TARGET,
            reduction="sum",
            table_gradient="dense" if sink is None else sink,
        )

    return sampled
