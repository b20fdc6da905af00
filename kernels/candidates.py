"""Where the candidate items of a sampled softmax come from.

Shapes: G groups, K candidates.

A candidate is a pure function of (seed, group, slot): one Philox 4x32-10 block per candidate, with
the counter (slot, group, 0, 0). Nothing has to be stored for the backward pass, the indices
do not depend on how the work is tiled, and any backend that has 32-bit integer multiplication can
reproduce them bit for bit.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFF_FFFF
_ROUND_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_KEY_INCREMENTS = (0x9E37_79B9, 0xBB67_AE85)
_NUM_ROUNDS = 10


def philox(seed: int, counter: Tensor) -> Tensor:
    """Philox 4x32-10: four random 32-bit words for each counter.

    Args:
        seed: The 64-bit key.
        counter: Four 32-bit words each, int64 [4, ...] holding [0, 2^32).

    Returns:
        The words, int64 [4, ...] holding [0, 2^32).
    """
    # Made of ranges, on the device: copying constants there would wait for it.
    lane = torch.arange(2, device=counter.device).view(2, *[1] * (counter.ndim - 1))
    multiplier = _ROUND_MULTIPLIERS[0] + lane * (_ROUND_MULTIPLIERS[1] - _ROUND_MULTIPLIERS[0])
    increment = _KEY_INCREMENTS[0] + lane * (_KEY_INCREMENTS[1] - _KEY_INCREMENTS[0])
    low, high = seed & _MASK, (seed >> 32) & _MASK
    key = low + lane * (high - low)
    even, odd = counter[0::2], counter[1::2]  # words 0 and 2, words 1 and 3
    for _ in range(_NUM_ROUNDS):
        # The products wrap in int64; their 64 bits are right, and that is all that is read.
        product = (even * multiplier).flip(0)
        even, odd = ((product >> 32) & _MASK) ^ odd ^ key, product & _MASK
        key = (key + increment) & _MASK
    return torch.stack([even, odd], dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Uniform:
    """Candidates drawn uniformly from the catalogue, with replacement.

    Attributes:
        num_candidates: K, the candidates of each group.
        seed: 64-bit key; a new one for every training step.
    """

    num_candidates: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, not {self.num_candidates}")

    def draw(
        self, first_group: int, num_groups: int, num_items: int, device: torch.device | str
    ) -> Tensor:
        """The candidates of groups first_group .. first_group + num_groups - 1.

        Args:
            first_group: Number of the first group.
            num_groups: G.
            num_items: V, below 2^31.
            device: Where the indices are made.

        Returns:
            ids_GK, int64 in [0, V): the high word of the 96-bit product of a 64-bit random number
            and V, so that no item is favoured by more than V / 2^64.
        """
        counter_4GK = torch.zeros(
            4, num_groups, self.num_candidates, dtype=torch.int64, device=device
        )
        counter_4GK[0] = torch.arange(self.num_candidates, device=device)
        counter_4GK[1] = torch.arange(first_group, first_group + num_groups, device=device)[
            :, None
        ]
        high_GK, low_GK, _, _ = philox(self.seed, counter_4GK)
        ids_GK: Tensor = (high_GK * num_items + (low_GK * num_items >> 32)) >> 32
        return ids_GK
