import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from objectives import evaluation
from objectives.data import PreparedData, Sequences, Targets, sequences
from objectives.data.sequences import DeviceTargets, TargetBatch
from objectives.evaluation import (
    CUTOFFS,
    Recommended,
    evaluate,
    most_popular,
    rank_metrics,
)

Lists = list[list[int]]
TargetsOf = Callable[[Lists], Targets]
CPU = torch.device("cpu")


def random_users(num_users: int, num_items: int, seed: int = 0) -> Lists:
    """Histories, some with repeats, and targets, some of them seen."""
    generator = np.random.default_rng(seed)
    return [
        generator.integers(0, num_items, generator.integers(2, 30)).tolist()
        for _ in range(num_users)
    ]


def random_scores(num_users: int, num_items: int, seed: int = 0) -> Tensor:
    """Scores with many ties."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 20, (num_users, num_items), generator=generator).float()


def metrics_of(
    scores_UV: Tensor, targets: Targets, batch_tokens: int = 20, *, lists: bool = True
) -> dict[str, float]:
    """The metrics of a model that gives these scores: states are rows of one-hot weights."""
    done = 0

    def encode(batch: TargetBatch) -> Tensor:
        nonlocal done
        rows = slice(done, done + len(batch.targets_B))
        done = rows.stop
        return scores_UV[rows]

    table_VD = torch.eye(scores_UV.shape[1])
    return evaluate(
        encode,
        table_VD,
        DeviceTargets(targets, CPU),
        batch_tokens=batch_tokens,
        max_length=3,
        lists=lists,
    )


def ranked(scores_UV: Tensor, users: Lists) -> Lists:
    """All unseen items of each user, best first, ties by the lower id."""
    return [
        sorted(
            set(range(len(scores))) - set(user[:-1]),
            key=lambda item, scores=scores: (-scores[item], item),  # type: ignore[misc]
        )
        for scores, user in zip(scores_UV.tolist(), users, strict=True)
    ]


def test_accuracy_equals_torchmetrics(targets_of: TargetsOf) -> None:
    num_items = 150
    users, scores_UV = random_users(40, num_items), random_scores(40, num_items)
    for row in range(0, 40, 2):
        scores_UV[row, users[row][-1]] += 10  # or few would be hit
    users[3][-1] = users[3][0]  # a target that was seen
    # torchmetrics sees the order alone: of 150 items at most 30 are seen, far behind rank 100.
    preds, hits, indexes = [], [], []
    for row, (ids, user) in enumerate(zip(ranked(scores_UV, users), users, strict=True)):
        order = ids + sorted(set(user[:-1]))
        preds += [1 - place / num_items for place in range(num_items)]
        hits += [item == user[-1] for item in order]
        indexes += [row] * num_items
    arguments = torch.tensor(preds), torch.tensor(hits)
    ours = metrics_of(scores_UV, targets_of(users))
    for k in CUTOFFS:
        for name, theirs in (
            ("ndcg", RetrievalNormalizedDCG(top_k=k)),
            ("hit_rate", RetrievalHitRate(top_k=k)),
            ("mrr", RetrievalMRR(top_k=k)),
        ):
            expected = float(theirs(*arguments, indexes=torch.tensor(indexes)))
            assert ours[f"{name}_at_{k}"] == pytest.approx(expected, abs=1e-6)
    assert 0 < ours["ndcg_at_1"] < ours["ndcg_at_100"] < 1


def coverage(lists: Lists, users: Lists, k: int) -> float:
    log = {item for user in users for item in user[:-1]}
    return len({item for ids in lists for item in ids[:k]} & log) / len(log)


def surprisal(lists: Lists, users: Lists, k: int) -> float:
    histories = [set(user[:-1]) for user in users]

    def weight(item: int) -> float:
        holders = sum(item in history for history in histories)
        return math.log2(len(users) / holders) / math.log2(len(users)) if holders else 1.0

    return sum(sum(map(weight, ids[:k])) / k for ids in lists) / len(users)


@pytest.mark.parametrize("num_items", [12, 60, 150])
def test_coverage_and_surprisal_equal_their_definitions(
    num_items: int, targets_of: TargetsOf
) -> None:
    users, scores_UV = random_users(9, num_items), random_scores(9, num_items)
    lists = ranked(scores_UV, users)
    ours = metrics_of(scores_UV, targets_of(users))
    for k in CUTOFFS:
        assert ours[f"coverage_at_{k}"] == pytest.approx(coverage(lists, users, k))
        assert ours[f"surprisal_at_{k}"] == pytest.approx(surprisal(lists, users, k))
    assert 0 < ours["coverage_at_1"] < 1


def test_the_size_of_the_batches_changes_nothing(targets_of: TargetsOf) -> None:
    users, scores_UV = random_users(10, 40), random_scores(10, 40)
    targets = targets_of(users)
    whole = metrics_of(scores_UV, targets, batch_tokens=1000)
    for batch_tokens in (1, 9):
        assert metrics_of(scores_UV, targets, batch_tokens) == pytest.approx(whole)


def test_lists_shorter_than_the_cutoffs(targets_of: TargetsOf) -> None:
    scores_UV = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    metrics = metrics_of(scores_UV, targets_of([[0, 1, 3], [0, 1, 2, 3, 0]]))
    # User 0 is shown [2, 3] and looks for 3; user 1 has seen everything.
    assert metrics["hit_rate_at_1"] == 0
    assert metrics["hit_rate_at_100"] == 0.5
    assert metrics["ndcg_at_100"] == pytest.approx(0.5 / math.log2(3))
    assert metrics["mrr_at_5"] == 0.25
    assert metrics["coverage_at_1"] == 0.25
    assert metrics["coverage_at_5"] == 0.5
    # Items 2 and 3 are known to one of two users: surprisal 1 each; the other slots are empty.
    assert metrics["surprisal_at_1"] == 0.5
    assert metrics["surprisal_at_5"] == pytest.approx(2 / 5 / 2)


def test_a_target_that_was_seen_is_never_hit(targets_of: TargetsOf) -> None:
    metrics = metrics_of(torch.tensor([[1.0, 9.0, 2.0]]), targets_of([[1, 0, 1]]))
    for name in ("ndcg", "hit_rate", "mrr"):
        assert metrics[f"{name}_at_100"] == 0


def test_one_user(targets_of: TargetsOf) -> None:
    metrics = metrics_of(torch.tensor([[1.0, 9.0, 2.0]]), targets_of([[0, 2]]))
    assert metrics["hit_rate_at_1"] == 0
    assert metrics["mrr_at_5"] == 0.5
    # log2 of one user is nothing to divide by: no item surprises.
    assert metrics["surprisal_at_5"] == 0


def test_no_user(targets_of: TargetsOf) -> None:
    metrics = metrics_of(torch.zeros(0, 3), targets_of([]))
    assert set(metrics.values()) == {0.0}


def test_every_metric_at_every_cutoff(targets_of: TargetsOf) -> None:
    assert CUTOFFS == (1, 5, 10, 20, 100)
    users, scores_UV = random_users(9, 40), random_scores(9, 40)
    with_lists = metrics_of(scores_UV, targets_of(users))
    of_ranks = metrics_of(scores_UV, targets_of(users), lists=False)
    assert set(of_ranks) == {f"{n}_at_{k}" for n in ("ndcg", "hit_rate", "mrr") for k in CUTOFFS}
    assert set(with_lists) - set(of_ranks) == {
        f"{name}_at_{k}" for name in ("coverage", "surprisal") for k in CUTOFFS
    }
    assert of_ranks.items() <= with_lists.items()


def test_without_lists_none_are_made(
    targets_of: TargetsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(evaluation, "top_k")
    found = metrics_of(torch.ones(1, 2), targets_of([[0, 1]]), lists=False)
    assert found["hit_rate_at_1"] == 1


@pytest.mark.parametrize("num_items", [12, 150])
def test_ranks_are_places_in_the_lists(num_items: int, targets_of: TargetsOf) -> None:
    users, scores_UV = random_users(30, num_items), random_scores(30, num_items)
    lists = ranked(scores_UV, users)
    found = [
        ids.index(user[-1]) + 1 if user[-1] in ids else math.inf
        for ids, user in zip(lists, users, strict=True)
    ]
    ours = metrics_of(scores_UV, targets_of(users))
    for k in CUTOFFS:
        ranks = [rank for rank in found if rank <= k]
        assert ours[f"hit_rate_at_{k}"] == pytest.approx(len(ranks) / 30, rel=1e-12)
        assert ours[f"mrr_at_{k}"] == pytest.approx(sum(1 / r for r in ranks) / 30, rel=1e-12)
        gains = [1 / math.log2(rank + 1) for rank in ranks]
        assert ours[f"ndcg_at_{k}"] == pytest.approx(sum(gains) / 30, rel=1e-12)


def test_best_and_worst_ranks() -> None:
    def of(*ranks: int) -> dict[str, float]:
        return rank_metrics(torch.bincount(torch.tensor(ranks), minlength=102))

    best, last, missed = of(1, 1), of(100, 100), of(101, 101)
    assert best["ndcg_at_1"] == best["mrr_at_100"] == best["hit_rate_at_5"] == 1
    assert last["hit_rate_at_20"] == 0
    assert last["mrr_at_100"] == pytest.approx(0.01)
    assert last["ndcg_at_100"] == pytest.approx(1 / math.log2(101))
    assert missed["hit_rate_at_100"] == missed["ndcg_at_100"] == missed["mrr_at_100"] == 0


@pytest.mark.parametrize("together", [1, 4, 100])
def test_a_user_counts_once_for_an_item(
    together: int, targets_of: TargetsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "_COUNTED_TOGETHER", together)
    targets = DeviceTargets(targets_of([[0, 0, 2, 9], [2, 0, 2, 2, 9], [3, 9]]), CPU)
    assert targets.item_users(5).tolist() == [2, 0, 2, 1, 0]


def test_items_are_counted_once_a_split(
    targets_of: TargetsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = DeviceTargets(targets_of([[0, 2, 9], [2, 9]]), CPU)
    counted = targets.item_users(5)
    monkeypatch.delattr(DeviceTargets, "_histories")
    assert targets.item_users(5) is counted


def test_the_encoder_is_given_the_recent_items_only(targets_of: TargetsOf) -> None:
    widths = []

    def encode(batch: TargetBatch) -> Tensor:
        widths.append(batch.packing.longest)
        return torch.ones(len(batch.packing), 1)

    targets = DeviceTargets(targets_of([[1, 2, 3, 4], [5, 6]]), CPU)
    evaluate(encode, torch.ones(9, 1), targets, batch_tokens=1, max_length=2)
    assert widths == [2, 1]


def test_most_popular_equals_a_count_by_hand(
    cycle: PreparedData, sequences_of: Callable[[Lists], Sequences], targets_of: TargetsOf
) -> None:
    data = replace(
        cycle,
        num_items=6,
        train=sequences_of([[3, 3, 3], [1, 4], [1, 4, 0]]),  # 3: three; 1, 4: two; 0: one
        test=targets_of([[3, 1], [1, 4], [0, 5], [5, 2, 0]]),
    )
    metrics = most_popular(data)
    # Order 3, 1, 4, 0, 2, 5 without what was seen: ranks 1, 2, 5 and 4.
    ranks = (1, 2, 5, 4)
    assert metrics["hit_rate_at_1"] == 0.25
    assert metrics["mrr_at_5"] == pytest.approx(sum(1 / rank for rank in ranks) / 4)
    assert metrics["ndcg_at_5"] == pytest.approx(sum(1 / math.log2(r + 1) for r in ranks) / 4)


def test_coverage_and_surprisal_are_those_of_replay() -> None:
    """Figures of `replay.metrics` 0.22.0 (Coverage, Surprisal) on the same lists and log."""
    draw = np.random.default_rng(0)
    users, items = 40, 150
    lists = [draw.permutation(items)[:100].tolist() for _ in range(users)]
    log = [draw.choice(items // 2, 8, replace=False) for _ in range(users)]
    item_users = torch.from_numpy(np.bincount(np.concatenate(log), minlength=items))
    recommended = Recommended(item_users, users)
    for part in torch.split(torch.tensor(lists), 7):
        recommended.add(part)
    ours = recommended.metrics()
    replay = {
        "coverage_at_1": 0.25333333333333335,
        "coverage_at_5": 0.76,
        "coverage_at_10": 0.9066666666666666,
        "coverage_at_20": 1.0,
        "surprisal_at_1": 0.8219439945048549,
        "surprisal_at_5": 0.7999080991715154,
        "surprisal_at_10": 0.7882043627570967,
        "surprisal_at_20": 0.8102103211686307,
        "surprisal_at_100": 0.8204532821943842,
    }
    assert {name: ours[name] for name in replay} == pytest.approx(replay, rel=1e-12)
