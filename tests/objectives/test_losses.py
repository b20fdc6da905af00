from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from kernels import (
    AliasTable,
    InBatch,
    Mixed,
    Popularity,
    RowSink,
    Uniform,
    full_cross_entropy,
    reduced_cross_entropy,
    sampled_cross_entropy,
    scalable_cross_entropy,
)
from kernels.candidates import Candidates, Draws, draw
from objectives.config import TrialConfig
from objectives.data.batches import NO_TARGET
from objectives.losses import Loss, build_loss

LOSSES = ("cce-", "cce", "bce", "bce+", "gbce", "sce", "rece")
COUNTS_V = torch.arange(50).flip(0) // 2
"""Falling, with ties and items that nobody has."""


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states_ND = torch.randn(10, 4, generator=generator)
    table_VD = torch.randn(50, 4, generator=generator)
    return states_ND, table_VD, torch.randint(0, 50, (10,), generator=generator)


def at(step: int) -> Tensor:
    return torch.tensor([step])


def built(seed: int = 0, sink: RowSink | None = None, **settings: Any) -> Loss:
    config = TrialConfig.from_flat(settings).loss
    return build_loss(config, seed, sink, COUNTS_V if config.needs_counts else None)


def test_cce_is_the_full_softmax() -> None:
    loss = built(loss="cce")
    assert torch.equal(loss(*inputs(), at(0)), full_cross_entropy(*inputs(), reduction="sum"))


def test_cce_minus_draws_the_negatives_of_seed_and_step_in_groups() -> None:
    loss = built(5, negatives=7, group_size=3)
    for step in (0, 1, 1000):
        expected = sampled_cross_entropy(
            *inputs(), Uniform(7, 5 << 32 | step), group_size=3, reduction="sum"
        )
        assert torch.equal(loss(*inputs(), at(step)), expected)


@pytest.mark.parametrize("correction", ["logq", "corrected-logq", "none"])
@pytest.mark.parametrize("source", ["popularity", "log-uniform", "mixed", "in-batch"])
def test_candidates_by_how_often_items_occur(source: str, correction: str) -> None:
    loss = built(5, candidates=source, negatives=7, group_size=3, correction=correction)
    probable = InBatch(COUNTS_V.clamp(min=1).float())
    # The counts fall with the item's number, so that it is the rank.
    by_rank = AliasTable.from_weights(torch.log1p(1 / torch.arange(1, 51).double()))
    values = []
    for step in (0, 1, 1000):
        seed = 5 << 32 | step
        candidates: dict[str, Candidates] = {
            "popularity": Popularity(7, seed, AliasTable.from_weights(COUNTS_V)),
            "log-uniform": Popularity(7, seed, by_rank),
            "mixed": Mixed(7, seed, probable),
            "in-batch": probable,
        }
        expected = sampled_cross_entropy(
            *inputs(),
            candidates[source],
            group_size=3,
            correction=correction,
            reduction="sum",
        )
        values.append(float(loss(*inputs(), at(step))))
        assert values[-1] == pytest.approx(float(expected))
    assert len(set(values)) == (1 if source == "in-batch" else 3)


def test_log_uniform_goes_by_rank_not_by_number() -> None:
    counts_V = torch.zeros(50, dtype=torch.int64)
    counts_V[[31, 7, 8]] = torch.tensor([900, 20, 1])
    rank_V = torch.arange(1, 51).double()  # items that nobody has follow by their numbers
    ranked = [31, 7, 8, *(item for item in range(50) if item not in (31, 7, 8))]
    weights_V = torch.zeros(50).double()
    weights_V[ranked] = torch.log1p(1 / rank_V)
    config = TrialConfig.from_flat({"candidates": "log-uniform", "negatives": 7}).loss
    expected = sampled_cross_entropy(
        *inputs(),
        Popularity(7, 5 << 32, AliasTable.from_weights(weights_V)),
        group_size=128,
        reduction="sum",
    )
    assert torch.equal(build_loss(config, 5, None, counts_V)(*inputs(), at(0)), expected)


@pytest.mark.parametrize("source", ["popularity", "log-uniform", "mixed", "in-batch"])
def test_counts_are_asked_for_where_they_are_needed(source: str) -> None:
    config = TrialConfig.from_flat({"candidates": source}).loss
    with pytest.raises(ValueError, match=f"candidates {source} need counts_V"):
        build_loss(config, 0)


def by_formula(num_negatives: int, group_size: int, weight: float, step: int) -> float:
    """Binary cross-entropy, summed over rows and negatives."""
    states_ND, table_VD, targets_N = (tensor.tolist() for tensor in inputs())
    num_groups = -(-len(targets_N) // group_size)
    ids_GK = draw(Draws(num_negatives, 5 << 32 | step), 0, num_groups, 50, "cpu").tolist()
    total = 0.0
    for row, target in enumerate(targets_N):
        state_D = torch.tensor(states_ND[row])
        scores_V = torch.tensor(table_VD) @ state_D
        total += weight * float(F.softplus(-scores_V[target]))
        for item in ids_GK[row // group_size]:
            total += float(F.softplus(scores_V[item])) if item != target else 0.0
    return total


def test_binary_losses_sum_over_their_negatives() -> None:
    for step in (0, 7):
        one = built(5, loss="bce")(*inputs(), at(step))
        assert float(one) == pytest.approx(by_formula(1, 1, 1.0, step), rel=1e-5)
        several = built(5, loss="bce+", negatives=60, group_size=3)(*inputs(), at(step))
        assert float(several) == pytest.approx(by_formula(60, 3, 1.0, step), rel=1e-5)


@pytest.mark.parametrize("calibration", [0.0, 0.75, 1.0])
def test_gbce_weighs_the_target(calibration: float) -> None:
    loss = built(5, loss="gbce", negatives=7, group_size=3, calibration=calibration)
    weight = 1 - calibration * (1 - 7 / 49)
    expected = by_formula(7, 3, weight, 2)
    assert float(loss(*inputs(), at(2))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("centres", ["mixed", "random"])
def test_sce_is_the_mean_of_the_rows_in_buckets_times_those_with_a_target(centres: str) -> None:
    # Three buckets of three rows: some of ten are in none.
    loss = built(loss="sce", bucket_items=5, bucket_scale=1.0, centres=centres)
    states_ND, table_VD, targets_N = inputs()
    targets_N[8:] = NO_TARGET
    torch.manual_seed(3)
    found = loss(states_ND, table_VD, targets_N, at(0))
    torch.manual_seed(3)
    rows_N = scalable_cross_entropy(
        states_ND,
        table_VD,
        targets_N,
        num_buckets=3,
        bucket_rows=3,
        bucket_items=5,
        mix=centres == "mixed",
        ignore_index=NO_TARGET,
        reduction="none",
    )
    covered_N = rows_N[rows_N > 0]
    assert 0 < len(covered_N) < 8
    torch.testing.assert_close(found, 8 * covered_N.mean())


def test_rece_is_the_sum_of_its_rows() -> None:
    loss = built(loss="rece", rounds=2, neighbours=0, buckets_per_chunk=2)
    torch.manual_seed(3)
    found = loss(*inputs(), at(0))
    torch.manual_seed(3)
    rows_N = reduced_cross_entropy(
        *inputs(), num_buckets=8, buckets_per_chunk=2, neighbours=0, rounds=2, reduction="none"
    )
    torch.testing.assert_close(found, rows_N.sum())


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "sce", "bucket_items": 60, "bucket_scale": 9.0},
        {"loss": "rece", "neighbours": 99},
        {"candidates": "in-batch", "correction": "none"},
    ],
)
def test_a_row_that_meets_everything_has_the_full_softmax(settings: dict[str, Any]) -> None:
    states_ND, table_VD, _ = inputs()
    targets_N = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    states_ND = states_ND.repeat(5, 1)
    expected = full_cross_entropy(states_ND, table_VD, targets_N, reduction="sum")
    torch.testing.assert_close(built(**settings)(states_ND, table_VD, targets_N, at(0)), expected)


@pytest.mark.parametrize(
    "settings",
    [
        *({"loss": loss} for loss in LOSSES if loss not in ("sce", "rece")),
        *({"candidates": source} for source in ("popularity", "log-uniform")),
        {"loss": "sce", "bucket_items": 50, "bucket_scale": 9.0},
        {"loss": "rece", "neighbours": 99},
        {"candidates": "in-batch"},
    ],
)
def test_a_row_without_a_target_adds_nothing(settings: dict[str, Any]) -> None:
    loss = built(5, **{"negatives": 7, "group_size": 10} | settings)
    states_ND, table_VD, targets_N = inputs()
    targets_N[7:] = NO_TARGET
    expected = loss(states_ND[:7], table_VD, targets_N[:7], at(0))
    states_ND[7:] *= 100
    torch.testing.assert_close(loss(states_ND, table_VD, targets_N, at(0)), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_targets_has_no_loss(loss: str) -> None:
    states_ND, table_VD, targets_N = inputs()
    states_ND.requires_grad_()
    value = built(loss=loss)(states_ND, table_VD, targets_N.fill_(NO_TARGET), at(0))
    value.backward()  # type: ignore[no-untyped-call]
    assert value == 0
    assert states_ND.grad is not None
    assert not states_ND.grad.any()


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 1},
        {"candidates": "popularity"},
        {"candidates": "log-uniform"},
        {"candidates": "mixed"},
        {"loss": "bce"},
        {"loss": "bce+"},
        {"loss": "gbce"},
    ],
)
def test_every_step_and_every_seed_has_other_negatives(settings: dict[str, Any]) -> None:
    values = {
        float(built(seed, **{"negatives": 5} | settings)(*inputs(), at(step)))
        for seed in (0, 1, -1)
        for step in range(3)
    }
    assert len(values) == 9


@pytest.mark.parametrize("loss", ["cce-", "bce", "bce+", "gbce", "sce"])
def test_the_rows_of_the_tables_gradient_go_into_the_sink(loss: str) -> None:
    settings = {"loss": loss, "negatives": 3, "bucket_items": 3, "bucket_scale": 1.0}
    gradients = []
    for sink in (None, RowSink(50)):
        states_ND, table_VD, targets_N = inputs()
        table_VD.requires_grad_()
        torch.manual_seed(1)
        value = built(5, sink, **settings)(states_ND, table_VD, targets_N, at(0))
        value.backward()  # type: ignore[no-untyped-call]
        if sink is None:
            assert table_VD.grad is not None
            gradients.append(table_VD.grad)
            continue
        assert table_VD.grad is None
        rows = sink.take()
        assert rows is not None
        gradients.append(torch.zeros(50, 4).index_add(0, rows.items_U, rows.rows_UD))
    assert gradients[0].any(1).sum() < 50
    torch.testing.assert_close(*gradients)
