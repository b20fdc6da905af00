"""Ranking metrics over the full catalogue, one target per user, seen items removed.

Shapes: B users, K longest list, D width, V items.

With the target at rank r (1 is best) of a user's list, and users averaged:

- NDCG@k: 1 / log2(r + 1) if r <= k, else 0. HitRate@k: 1 if r <= k. MRR@k: 1 / r if r <= k.
- Coverage@k: distinct recommended items that occur in the log, over distinct items of the log.
- Surprisal@k: mean over the k slots of log2(U / u_j) / log2(U) for U users of the log, u_j of whom
  have item j; an item nobody has counts as had by one, an empty slot as 0.

The log is the histories that the lists were made from, as in the CCE- paper.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from kernels import top_k
from objectives.data.prepare import PreparedData, Targets
from objectives.data.sequences import TargetBatch, target_batches

CUTOFFS = (1, 5, 10, 20, 100)
"""The k of every metric."""

_TILE_USERS = 1024


def ranking_metrics(
    lists: Iterable[tuple[Tensor, Tensor]], item_users_V: Tensor, num_users: int
) -> dict[str, float]:
    """All metrics of recommended lists.

    Args:
        lists: Pairs (ids_BK, targets_B): recommended items, best first, -1 where the list has
            ended, at least 100 wide; and the item to be found.
        item_users_V: Users of the log that have each item.
        num_users: Users of the log.

    Returns:
        Metrics such as "ndcg_at_10".
    """
    num_items = len(item_users_V)
    device = item_users_V.device
    weights_V = torch.log2(num_users / item_users_V.clamp(min=1).double())
    weights_V /= max(np.log2(num_users), 1e-12)
    weights_V = torch.cat([weights_V, weights_V.new_zeros(1)])  # id -1: the list has ended
    totals = {
        f"{name}_at_{k}": 0.0 for name in ("ndcg", "hit_rate", "mrr", "surprisal") for k in CUTOFFS
    }
    recommended = {k: torch.zeros(num_items + 1, dtype=torch.bool, device=device) for k in CUTOFFS}
    count = 0
    for ids_BK, targets_B in lists:
        count += len(targets_B)
        hit_BK = ids_BK == targets_B[:, None]
        # The rank of a miss is past every cutoff.
        rank_B = torch.where(hit_BK.any(1), hit_BK.int().argmax(1) + 1, CUTOFFS[-1] + 1).double()
        surprisal_BK = weights_V[ids_BK]
        for k in CUTOFFS:
            in_list_B = rank_B <= k
            totals[f"ndcg_at_{k}"] += float((in_list_B / torch.log2(rank_B + 1)).sum())
            totals[f"hit_rate_at_{k}"] += float(in_list_B.sum())
            totals[f"mrr_at_{k}"] += float((in_list_B / rank_B).sum())
            totals[f"surprisal_at_{k}"] += float(surprisal_BK[:, :k].sum()) / k
            recommended[k][ids_BK[:, :k].flatten()] = True
    metrics = {name: total / max(count, 1) for name, total in totals.items()}
    in_log_V = item_users_V > 0
    for k in CUTOFFS:
        covered = (recommended[k][:-1] & in_log_V).sum()
        metrics[f"coverage_at_{k}"] = float(covered) / max(int(in_log_V.sum()), 1)
    return metrics


def evaluate(
    encode: Callable[[TargetBatch], Tensor],
    table_VD: Tensor,
    targets: Targets,
    *,
    batch_size: int,
    max_length: int,
    masked: bool = False,
) -> dict[str, float]:
    """All metrics of a model on one split.

    Args:
        encode: The states [B, D] of a batch of histories.
        table_VD: Item table.
        targets: The split.
        batch_size: Users at a time.
        max_length: Most recent items that `encode` is given.
        masked: A mask stands behind them, as one of them.
    """
    device = table_VD.device

    def lists() -> Iterable[tuple[Tensor, Tensor]]:
        for batch in target_batches(targets, batch_size, max_length, device, masked=masked):
            yield top_k(encode(batch), table_VD, CUTOFFS[-1], batch.seen), batch.targets_B

    return ranking_metrics(
        lists(), item_users(targets, len(table_VD)).to(device), len(targets.items)
    )


def item_users(targets: Targets, num_items: int) -> Tensor:
    """Users of a split whose history has each item [V], int64."""
    users = np.repeat(np.arange(len(targets.inputs)), targets.inputs.lengths)
    pairs = np.unique(users * num_items + targets.inputs.items)
    return torch.from_numpy(np.bincount(pairs % num_items, minlength=num_items))


def most_popular(data: PreparedData) -> dict[str, float]:
    """Test metrics of recommending the most frequent training items to everyone."""
    counts_V = np.bincount(data.train.items, minlength=data.num_items)
    return evaluate(
        lambda batch: torch.ones(len(batch.targets_B), 1),
        torch.from_numpy(counts_V).float()[:, None],
        data.test,
        batch_size=_TILE_USERS,
        max_length=1,
    )
