"""Ranking metrics over the full catalogue, one target per user, seen items removed.

Shapes: B users, K longest list, D width, V items, R ranks.

With the target at rank r (1 is best) of a user's list, and users averaged:

- NDCG@k: 1 / log2(r + 1) if r <= k, else 0. HitRate@k: 1 if r <= k. MRR@k: 1 / r if r <= k.
- Coverage@k: distinct recommended items that occur in the log, over distinct items of the log.
- Surprisal@k: mean over the k slots of log2(U / u_j) / log2(U) for U users of the log, u_j of whom
  have item j; an item nobody has counts as had by one, an empty slot as 0.

The log is the histories that the lists were made from, as in the CCE- paper.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kernels import target_ranks, top_k
from kernels.gpu import on_gpu
from models.config import ModelConfig
from models.transformer import Transformer
from objectives.config import TrainingConfig
from objectives.data.prepared import PreparedData
from objectives.data.sequences import DeviceTargets, TargetBatch
from objectives.parallel import ALONE, Group

CUTOFFS = (1, 5, 10, 20, 100)
"""The k of every metric."""

_TILE_TOKENS = 1024
_LEAST_TOKENS = 8192
"""Of a batch on a GPU: beside small training batches fewer would spend an epoch on launches. With
sequences of ml-1m in batches of 13 an evaluation took 1.0 s in batches of 1,258 tokens, of 3 ms
each, after .27 s of training (H100); so many tokens take 12 MiB there, at width 64."""
_ITEMS_PER_TOKEN = 32
"""Items whose gradients in the table take more than a token takes in an evaluation, which is about
17 numbers of its width (counted with tracked memory, any architecture and feed-forward layer)."""


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """What a model computes in: bfloat16 on a GPU, else float32."""
    if on_gpu(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def encode(model: Transformer, batch: TargetBatch) -> Tensor:
    """The states [B, D] behind each history's last item, of a model in evaluation mode."""
    with torch.no_grad(), autocast(batch.ids_T.device):
        states_TD: Tensor = model(batch.ids_T, batch.packing)
        return states_TD[batch.packing.last_B]


def evaluate(
    encode: Callable[[TargetBatch], Tensor],
    table_VD: Tensor,
    targets: DeviceTargets,
    *,
    batch_tokens: int,
    max_length: int,
    masked: bool = False,
    lists: bool = False,
    group: Group = ALONE,
) -> dict[str, float]:
    """The metrics of a model on one split. Nothing waits for the device before the end.

    Args:
        encode: The states [B, D] of a batch of histories.
        table_VD: Item table.
        targets: The split, on the table's device.
        batch_tokens: Tokens that `encode` is given at a time.
        max_length: Most recent items that `encode` is given.
        masked: A mask stands behind them, as one of them.
        lists: Coverage and Surprisal too, which take lists beside the targets' ranks.
        group: The processes that share the batches out; each has all metrics.

    Returns:
        Metrics such as "ndcg_at_10".
    """
    longest = CUTOFFS[-1]
    # How often each rank occurs is all that the metrics depend on; behind the cutoffs, any is one.
    counts_R = torch.zeros(longest + 2, dtype=torch.int64, device=table_VD.device)
    recommended = None
    if lists:
        recommended = Recommended(targets.item_users(len(table_VD)), len(targets))
    mine = slice(group.rank, None, group.size)
    for batch in targets.batches(batch_tokens, max_length, masked=masked, mine=mine):
        states_BD = encode(batch)
        ranks_B = target_ranks(states_BD, table_VD, batch.targets_B, batch.seen)
        # A target without a place in the list has rank V + 1, however few items there are.
        ranks_B = ranks_B.where(ranks_B <= min(len(table_VD), longest), longest + 1)
        counts_R.index_add_(0, ranks_B, torch.ones_like(ranks_B))
        if recommended is not None:
            recommended.add(top_k(states_BD, table_VD, longest, batch.seen))
    group.reduce(counts_R)
    metrics = rank_metrics(counts_R)
    if recommended is not None:
        recommended.reduce(group)
        metrics |= recommended.metrics()
    return metrics


def batch_tokens(
    training: TrainingConfig,
    model: ModelConfig,
    mean_length: float,
    num_sequences: int,
    num_items: int,
    *,
    on_gpu: bool,
) -> int:
    """Tokens of an evaluation batch: so many that it does not set the peak of most trials.

    A training step keeps about 38 numbers of the width for each token and block until its
    backward pass, an evaluation 17 for a token of the block that it is in. So a batch has the
    tokens of the average part of a training batch once for each block, and then takes at most
    half of the memory and at most the launches of as many forward passes. While a step holds
    the gradient of the whole table, an evaluation holds more tokens in its place; that is what
    spares small training batches their launches.

    Args:
        training: How the model is trained, `resolved`.
        model: The model.
        mean_length: Of the training sequences, as far as they are used.
        num_sequences: How many they are.
        num_items: V.
        on_gpu: Whether small batches cost more time than their tokens.
    """
    part = min(training.batch_size, num_sequences) / training.accumulation
    tokens = int(part * mean_length) * model.num_blocks
    if training.table_updates == "dense":
        tokens += num_items // _ITEMS_PER_TOKEN
    return max(_LEAST_TOKENS if on_gpu else 1, tokens)


def rank_metrics(counts_R: Tensor) -> dict[str, float]:
    """NDCG, HitRate and MRR.

    Args:
        counts_R: Users whose target has rank r, from 0 (nobody's) to 101 (that or any behind it).
    """
    counts = counts_R.cpu().numpy()
    rank = np.arange(1, CUTOFFS[-1] + 1)
    metrics: dict[str, float] = {}
    for name, gain in (("ndcg", 1 / np.log2(rank + 1)), ("hit_rate", rank**0), ("mrr", 1 / rank)):
        sums = np.cumsum(counts[1:-1] * gain) / max(counts.sum(), 1)
        metrics |= {f"{name}_at_{k}": float(sums[k - 1]) for k in CUTOFFS}
    return metrics


class Recommended:
    """What lists recommend, taken together."""

    def __init__(self, item_users_V: Tensor, num_users: int) -> None:
        """Before the first list.

        Args:
            item_users_V: Users of the log that have each item.
            num_users: Users of the log.
        """
        num_users = max(num_users, 1)
        weights_V = torch.log2(num_users / item_users_V.clamp(min=1).double())
        weights_V /= max(np.log2(num_users), 1e-12)
        # The last entry stands for the id -1: the list has ended.
        self._weights_V1 = torch.cat([weights_V, weights_V.new_zeros(1)])
        self._in_log_V = item_users_V > 0
        self._places_K = torch.arange(CUTOFFS[-1], device=item_users_V.device, dtype=torch.int32)
        self._best_places_V1 = self._places_K.new_full((len(item_users_V) + 1,), CUTOFFS[-1])
        self._surprisal_K = weights_V.new_zeros(CUTOFFS[-1])
        self._count = 0

    def add(self, ids_BK: Tensor) -> None:
        """Takes in lists [B, 100]: item ids, best first, -1 where the list has ended."""
        self._count += len(ids_BK)
        self._surprisal_K += self._weights_V1[ids_BK].sum(0)
        ids_BK = ids_BK.where(ids_BK >= 0, len(self._in_log_V))
        places_BK = self._places_K.expand_as(ids_BK)
        self._best_places_V1.scatter_reduce_(0, ids_BK.flatten(), places_BK.flatten(), "amin")

    def reduce(self, group: Group) -> None:
        """Takes in what the other processes have taken in."""
        self._count = sum(group.agree(self._count))
        group.reduce(self._surprisal_K)
        group.reduce(self._best_places_V1, dist.ReduceOp.MIN)

    def metrics(self) -> dict[str, float]:
        """Coverage and Surprisal."""
        places_V = self._best_places_V1[:-1].where(self._in_log_V, CUTOFFS[-1])
        first_K = torch.bincount(places_V, minlength=CUTOFFS[-1] + 1)[:-1]
        coverage_K = first_K.cumsum(0).double() / self._in_log_V.sum().clamp(min=1)
        surprisal_K = self._surprisal_K.cumsum(0) / (self._places_K + 1)
        surprisal_K /= max(self._count, 1)
        coverage, surprisal = coverage_K.tolist(), surprisal_K.tolist()
        return {f"coverage_at_{k}": coverage[k - 1] for k in CUTOFFS} | {
            f"surprisal_at_{k}": surprisal[k - 1] for k in CUTOFFS
        }


def most_popular(data: PreparedData) -> dict[str, float]:
    """Test metrics of recommending the most frequent training items to everyone."""
    counts_V = np.bincount(data.train.items, minlength=data.num_items)
    return evaluate(
        lambda batch: torch.ones(len(batch.targets_B), 1),
        torch.from_numpy(counts_V).float()[:, None],
        DeviceTargets(data.test, torch.device("cpu")),
        batch_tokens=_TILE_TOKENS,
        max_length=1,
        lists=True,
    )
