"""Where the candidate items of a sampled softmax come from.

Shapes: N rows, G groups, K candidates, V items.

A drawn candidate is a pure function of (seed, group, slot): one Philox 4x32-10 block each, with
the counter (slot, group, 0, 0). Nothing has to be stored for the backward pass, the indices do not
depend on how the work is tiled, and any backend that has 32-bit integer multiplication can
reproduce them bit for bit. A distribution that is not uniform is drawn with an `AliasTable` of
integers, so the same holds for it.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from kernels._checks import check_weights, kind
from kernels.alias_table import AliasTable
from kernels.gpu import is_simulated

_MASK = 0xFFFF_FFFF
_ROUND_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_KEY_INCREMENTS = (0x9E37_79B9, 0xBB67_AE85)
_NUM_ROUNDS = 10


class Met(NamedTuple):
    """Pairs of a row and an item that have met before, and are no candidates again.

    They have where their numbers in an earlier round lie within `reach` of each other.

    Attributes:
        row_numbers_QN: Number of each row in each of Q rounds, int32.
        item_numbers_QV: That of each item.
        reach: So far apart the two may be.
    """

    row_numbers_QN: Tensor
    item_numbers_QV: Tensor
    reach: int


class Draws(NamedTuple):
    """What a backend needs to know of the candidates of one call.

    Attributes:
        num_candidates: K.
        seed: 64-bit key, unsigned.
        ids_GK: Lists that are given, not drawn, int64 or int32; -1 is a slot without candidate.
        alias_V2: Alias table of the distribution, see `AliasTable`; None: uniform.
        log_q_V: float32 log-probability of each item; None: uniform or unknown.
        log_weight_GK: float32, added to the logits of the candidates.
        seed_offset: int64 [1], added to the seed modulo 2^64 when candidates are drawn.
        met: Of which candidates a row has none.
        most_targets: Different targets that the rows have at most; None: as many as rows.
    """

    num_candidates: int
    seed: int = 0
    ids_GK: Tensor | None = None
    alias_V2: Tensor | None = None
    log_q_V: Tensor | None = None
    log_weight_GK: Tensor | None = None
    seed_offset: Tensor | None = None
    met: Met | None = None
    most_targets: int | None = None

    @property
    def key(self) -> tuple[int, Tensor | None]:
        """What the generator starts from."""
        return self.seed, self.seed_offset


def draw(
    draws: Draws, first_group: int, num_groups: int, num_items: int, device: torch.device | str
) -> Tensor:
    """The candidates of groups first_group .. first_group + num_groups - 1.

    A uniform id is the high word of the 96-bit product of a 64-bit random number (words 0 and 1 of
    the Philox block) and V, so that no item is favoured by more than V / 2^64. With an alias table
    it is a column, and word 2 chooses between the column's item and the alias.

    Args:
        draws: The source.
        first_group: Number of the first group.
        num_groups: G.
        num_items: V, below 2^31.
        device: Where the indices are made.

    Returns:
        ids_GK, int64 in [0, V), or -1 where a given list has no candidate.
    """
    if draws.ids_GK is not None:
        return draws.ids_GK[first_group : first_group + num_groups].to(torch.int64)
    counter_4GK = torch.zeros(
        4, num_groups, draws.num_candidates, dtype=torch.int64, device=device
    )
    counter_4GK[0] = torch.arange(draws.num_candidates, device=device)
    counter_4GK[1] = torch.arange(first_group, first_group + num_groups, device=device)[:, None]
    seed: int | Tensor = draws.seed
    if draws.seed_offset is not None:
        # Signed, as the kernels have it: the sum wraps.
        seed = draws.seed_offset + (seed - (1 << 64) if seed >= 1 << 63 else seed)
    high_GK, low_GK, coin_GK, _ = philox(seed, counter_4GK)
    ids_GK: Tensor = (high_GK * num_items + (low_GK * num_items >> 32)) >> 32
    if draws.alias_V2 is None:
        return ids_GK
    threshold_GK, alias_GK = draws.alias_V2[ids_GK].to(torch.int64).unbind(-1)
    return torch.where(coin_GK < (threshold_GK & _MASK), ids_GK, alias_GK)


def philox(seed: int | Tensor, counter: Tensor) -> Tensor:
    """Philox 4x32-10: four random 32-bit words for each counter.

    Args:
        seed: The 64-bit key, a number or int64 [1].
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
    """Candidates drawn uniformly from the catalogue, with replacement: q(v) = 1/V.

    Attributes:
        num_candidates: K, the candidates of each group.
        seed: 64-bit key, unsigned; a new one for every training step.
        seed_offset: int64 [1] on the device of the targets, which the device adds to the seed: a
            captured CUDA graph draws anew in every replay if it is increased between them. It must
            not change between a call and its backward pass.

    Source: CCE- (arXiv 2509.09682).
    """

    num_candidates: int
    seed: int
    seed_offset: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_sampler(self.num_candidates, self.seed, self.seed_offset)

    def draws(
        self, targets_N: Tensor, num_items: int, group_size: int, ignore_index: int
    ) -> tuple[Draws, int]:
        """The candidates of one call, and the size of its groups."""
        _check_offset(self.seed_offset, targets_N.device)
        return Draws(self.num_candidates, self.seed, seed_offset=self.seed_offset), group_size


@dataclass(frozen=True, eq=False)
class Popularity:
    """Candidates drawn in proportion to a weight, with replacement: q(v) = weight_v / sum.

    Attributes:
        num_candidates: K, the candidates of each group.
        seed: 64-bit key, unsigned; a new one for every training step.
        table: `AliasTable.from_weights` of the weights, usually the items' counts in the training
            data or a power of them; built once, on the device of the targets.
        seed_offset: As that of `Uniform`.

    Source: word2vec (arXiv 1310.4546, section 2.2), counts to the power 3/4.
    """

    num_candidates: int
    seed: int
    table: AliasTable
    seed_offset: Tensor | None = None

    def __post_init__(self) -> None:
        _check_sampler(self.num_candidates, self.seed, self.seed_offset)

    def draws(
        self, targets_N: Tensor, num_items: int, group_size: int, ignore_index: int
    ) -> tuple[Draws, int]:
        """The candidates of one call, and the size of its groups."""
        alias_V2, log_q_V = self.table.alias_V2, self.table.log_q_V
        _check_items("table", log_q_V, num_items, targets_N.device)
        _check_offset(self.seed_offset, targets_N.device)
        draws = Draws(
            self.num_candidates,
            self.seed,
            alias_V2=alias_V2,
            log_q_V=log_q_V,
            seed_offset=self.seed_offset,
        )
        return draws, group_size


class LogUniform(Popularity):
    """Candidates drawn with replacement, q(v) = log((v + 2) / (v + 1)) / log(V + 1).

    An approximation of Zipf's law that needs no counts, only ids in order of falling popularity.
    `Popularity` with the table `AliasTable.log_uniform`.

    Source: TensorFlow's `log_uniform_candidate_sampler`.
    """


@dataclass(frozen=True, eq=False)
class InBatch:
    """The targets of the batch are its candidates; all rows are one group.

    An ignored row is no candidate.

    Attributes:
        probabilities_V: How often each item is a target, in any unit, for the logQ correction:
            q(v) = probability_v / sum. Finite and positive: what is in a batch has been drawn.

    Source: sampling-bias-corrected retrieval (Yi et al., RecSys 2019).
    """

    probabilities_V: Tensor | None = None
    _log_q_V: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.probabilities_V is not None:
            check_weights("probabilities_V", self.probabilities_V)
            if not (is_simulated() or self.probabilities_V.all()):
                raise ValueError("probabilities_V must be positive, but has a 0")
            weights_V = self.probabilities_V.double()
            log_q_V = (weights_V / weights_V.sum()).log().float()
            object.__setattr__(self, "_log_q_V", log_q_V)

    def draws(
        self, targets_N: Tensor, num_items: int, group_size: int, ignore_index: int
    ) -> tuple[Draws, int]:
        """The candidates of one call, and the size of its one group, whatever group_size is."""
        if self._log_q_V is not None:
            _check_items("probabilities_V", self._log_q_V, num_items, targets_N.device)
        ids_GK = targets_N.masked_fill(targets_N == ignore_index, -1)[None]
        return Draws(len(targets_N), ids_GK=ids_GK, log_q_V=self._log_q_V), max(len(targets_N), 1)


@dataclass(frozen=True, eq=False)
class Mixed:
    """The targets of the batch and uniform draws are its candidates; all rows are one group.

    With N rows, K draws and p the probability of a target, q(v) = (N p(v) + K / V) / (N + K).

    Attributes:
        num_candidates: K.
        seed: 64-bit key, unsigned; a new one for every training step.
        in_batch: The targets, with probabilities; built once.
        seed_offset: As that of `Uniform`.

    Source: mixed negative sampling (Yang et al., WWW 2020).
    """

    num_candidates: int
    seed: int
    in_batch: InBatch
    seed_offset: Tensor | None = None

    def __post_init__(self) -> None:
        _check_sampler(self.num_candidates, self.seed, self.seed_offset)
        if self.in_batch.probabilities_V is None:
            raise ValueError("in_batch must have probabilities: those of the mixture need them")

    def draws(
        self, targets_N: Tensor, num_items: int, group_size: int, ignore_index: int
    ) -> tuple[Draws, int]:
        """The candidates of one call, and the size of its one group, whatever group_size is."""
        uniform = Uniform(self.num_candidates, self.seed, self.seed_offset)
        drawn, _ = uniform.draws(targets_N, num_items, group_size, ignore_index)
        batch, num_rows = self.in_batch.draws(targets_N, num_items, group_size, ignore_index)
        assert batch.ids_GK is not None
        assert batch.log_q_V is not None
        drawn_1K = draw(drawn, 0, 1, num_items, targets_N.device)
        # No rows are no group.
        ids_GK = torch.cat([batch.ids_GK, drawn_1K], dim=1)[: len(targets_N)]
        share = self.num_candidates / ids_GK.shape[1]
        log_q_V = torch.log((1 - share) * batch.log_q_V.exp() + share / num_items)
        return Draws(ids_GK.shape[1], ids_GK=ids_GK, log_q_V=log_q_V), num_rows


@dataclass(frozen=True, eq=False)
class Explicit:
    """Candidates that are given: one list for each group, of whatever origin.

    Attributes:
        ids_GK: Item ids of every group, int64 or int32; -1 is a slot without candidate.
        log_weight_GK: float32 constants that are added to the logits of the candidates.
        met: Pairs that are left out.
        most_targets: Different targets that the rows have at most, if it is known to be fewer than
            rows: a gradient by touched rows has no room for more.
    """

    ids_GK: Tensor
    log_weight_GK: Tensor | None = None
    met: Met | None = None
    most_targets: int | None = None

    def __post_init__(self) -> None:
        ids_GK, log_weight_GK = self.ids_GK, self.log_weight_GK
        if ids_GK.ndim != 2 or ids_GK.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"ids_GK must be an int64 or int32 matrix, not {kind(ids_GK)}")
        if ids_GK.shape[1] < 1:
            raise ValueError("ids_GK must have at least one candidate for each group")
        if log_weight_GK is not None and (
            log_weight_GK.shape != ids_GK.shape or log_weight_GK.dtype != torch.float32
        ):
            raise ValueError(
                f"log_weight_GK must be float32 of shape {list(ids_GK.shape)}, "
                f"not {kind(log_weight_GK)}"
            )

    def draws(
        self, targets_N: Tensor, num_items: int, group_size: int, ignore_index: int
    ) -> tuple[Draws, int]:
        """The candidates of one call, and the size of its groups."""
        ids_GK, log_weight_GK = self.ids_GK, self.log_weight_GK
        _check_device("ids_GK", ids_GK, targets_N.device)
        if log_weight_GK is not None:
            _check_device("log_weight_GK", log_weight_GK, targets_N.device)
        num_groups = -(-len(targets_N) // group_size)
        if len(ids_GK) != num_groups:
            raise ValueError(
                f"ids_GK has {len(ids_GK)} groups, but {len(targets_N)} rows in groups of "
                f"{group_size} make {num_groups}"
            )
        if self.met is not None:
            _check_met(self.met, len(targets_N), num_items, targets_N.device)
        draws = Draws(ids_GK.shape[1], ids_GK=ids_GK, log_weight_GK=log_weight_GK, met=self.met)
        return draws._replace(most_targets=self.most_targets), group_size


Candidates = Uniform | LogUniform | Popularity | InBatch | Mixed | Explicit


def _check_sampler(num_candidates: int, seed: int, seed_offset: Tensor | None) -> None:
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1, not {num_candidates}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in [0, 2^64), not be {seed}")
    if seed_offset is not None and (seed_offset.shape != (1,) or seed_offset.dtype != torch.int64):
        raise ValueError(f"seed_offset must be int64 of shape [1], not {kind(seed_offset)}")


def _check_offset(seed_offset: Tensor | None, device: torch.device) -> None:
    if seed_offset is not None:
        _check_device("seed_offset", seed_offset, device)


def _check_met(met: Met, num_rows: int, num_items: int, device: torch.device) -> None:
    rounds = len(met.row_numbers_QN)
    for name, numbers, length in (
        ("row_numbers_QN", met.row_numbers_QN, num_rows),
        ("item_numbers_QV", met.item_numbers_QV, num_items),
    ):
        if numbers.shape != (rounds, length) or numbers.dtype != torch.int32:
            raise ValueError(
                f"met.{name} must be int32 of shape [{rounds}, {length}], not {kind(numbers)}"
            )
        _check_device(f"met.{name}", numbers, device)
    if met.reach < 0:
        raise ValueError(f"met.reach must not be negative, but is {met.reach}")


def _check_items(name: str, values_V: Tensor, num_items: int, device: torch.device) -> None:
    if len(values_V) != num_items:
        raise ValueError(f"{name} is for {len(values_V)} items, but the catalogue has {num_items}")
    _check_device(name, values_V, device)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but targets_N is on {device}")
