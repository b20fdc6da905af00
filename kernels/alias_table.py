"""Distributions over the items that a counter-based generator draws from in constant time.

Shapes: V items.

Source: Walker, "An efficient method for generating discrete random variables with general
distributions" (TOMS 1977).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels._checks import check_weights


@dataclass(frozen=True, eq=False)
class AliasTable:
    """A distribution over the items that is drawn from in constant time.

    Column v stands for a probability of 1/V, of which item v has threshold / 2^32 and the alias
    item the rest. Build it once, with `from_weights` or `log_uniform`.

    Attributes:
        alias_V2: int32, the bits of the unsigned 32-bit threshold, and the alias item. A column
            that is all item v has v as its alias.
        log_q_V: float32, log of the probability that the table realises exactly; -inf for an item
            that is never drawn.
    """

    alias_V2: Tensor
    log_q_V: Tensor

    @staticmethod
    def from_weights(weights_V: Tensor) -> "AliasTable":
        """The table of q(v) = weight_v / sum of the weights, on the device of the weights.

        Probabilities are rounded to multiples of 1 / (2^32 V), and these are realised exactly: an
        item of weight 0 is never drawn. Made on the CPU without a loop over the items.

        Args:
            weights_V: Finite and not negative, of any dtype; for example counts, or a power of
                them. At least one is positive.

        Returns:
            The table.

        Raises:
            ValueError: weights_V is none of that.

        Source: the sweep of Huebschle-Schneider and Sanders, "Parallel weighted random sampling"
        (ESA 2019), in integers. Light items (less than a column) and heavy ones are lined up; the
        first heavy item that has some excess left fills the next light column, and is itself
        filled by the next heavy item where it gave too much. Prefix sums tell which.
        """
        check_weights("weights_V", weights_V)
        device = weights_V.device
        weights_V = weights_V.to("cpu", torch.float64)
        sums_V = (weights_V / weights_V.max()).cumsum(0)
        num_items, column = len(sums_V), 1 << 32
        bounds_V = (sums_V / sums_V[-1] * (num_items * column)).round().to(torch.int64)
        shares_V = bounds_V.diff(prepend=bounds_V.new_zeros(1))
        light = torch.nonzero(shares_V < column)[:, 0]
        heavy = torch.nonzero(shares_V >= column)[:, 0]
        missing = torch.nn.functional.pad((column - shares_V[light]).cumsum(0), (1, 0))
        excess = (shares_V[heavy] - column).cumsum(0)
        thresholds_V, aliases_V = shares_V.clone(), torch.empty_like(shares_V)
        aliases_V[light] = heavy[torch.searchsorted(excess, missing[:-1], right=True)]
        # Less what the heavy item gave beyond its excess to the last light column it filled.
        thresholds_V[heavy] = column + excess - missing[torch.searchsorted(missing, excess)]
        aliases_V[heavy] = torch.where(
            thresholds_V[heavy] == column, heavy, torch.cat([heavy[1:], heavy[-1:]])
        )
        log_q_V = shares_V.double().log() - math.log(num_items * column)
        # A threshold of 2^32 wraps to 0; either way its column is the item's.
        alias_V2 = torch.stack([thresholds_V, aliases_V], dim=1).to(torch.int32)
        return AliasTable(alias_V2, log_q_V.float()).to(device)

    @staticmethod
    def log_uniform(num_items: int, device: torch.device | str = "cpu") -> "AliasTable":
        """The table of `LogUniform` for a catalogue of num_items."""
        rank_V = torch.arange(1, num_items + 1, dtype=torch.float64)
        return AliasTable.from_weights(torch.log1p(1 / rank_V)).to(device)

    def to(self, device: torch.device | str) -> "AliasTable":
        """The table on another device."""
        return AliasTable(self.alias_V2.to(device), self.log_q_V.to(device))
