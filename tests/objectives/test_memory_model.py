"""Predicted peaks: those of a structure's trace against a trace of each configuration."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from kernels.gpu import Gpu, on_gpu
from objectives.config import TrialConfig
from objectives.data.batch_sizes import Lengths
from objectives.memory_model import DataShape, MemoryModel

pytest.importorskip("triton")

H200 = Gpu(capability=9, num_sms=132)
BUDGET = 40 << 30


def data_of(num_items: int = 50_000, num_users: int = 20_000) -> DataShape:
    lengths = np.random.default_rng(0).lognormal(3.5, 1, num_users).astype(np.int64).clip(2)
    size = 4 * int(lengths.sum())
    return DataShape(num_items, Lengths(lengths), Lengths(lengths[:5000]), size, size // 4)


def config(**settings: Any) -> TrialConfig:
    usual = {"batch_size": 256, "max_length": 100, "num_heads": 2, "width": 128}
    return TrialConfig.from_flat(usual | settings)


@pytest.mark.parametrize(
    ("num_items", "settings"),
    [
        (50_000, {}),
        (3_000, {"negatives": 8192, "output_table": "separate", "clip_norm": 1.0}),
        (50_000, {"architecture": "bert4rec", "num_blocks": 1, "accumulation": 2}),
        (50_000, {"activations": "recomputed", "norm": "post", "positions": "rotary"}),
        (3_000_000, {"feed_forward": "swiglu", "group_size": 32}),
        (3_000_000, {"table_dtype": "bfloat16", "output_table": "separate"}),
        (3_000_000, {"table_updates": "adagrad", "accumulation": 3, "clip_norm": 1.0}),
        (50_000, {"loss": "cce", "batch_size": 2048}),
        (50_000, {"num_blocks": 6, "norm": "post", "table_updates": "adam"}),
        (50_000, {"num_blocks": 5, "feed_forward": "swiglu", "accumulation": 2}),
        (50_000, {"width": 36, "num_heads": 3}),  # heads that flash attention does not know
        (50_000, {"candidates": "popularity", "negatives": 1024}),
        (3_000_000, {"candidates": "log-uniform", "correction": "none"}),
        (50_000, {"loss": "bce+", "negatives": 1024, "table_updates": "adam"}),
        (3_000, {"loss": "bce+", "negatives": 2048, "group_size": 512, "accumulation": 2}),
        (3_000_000, {"loss": "gbce", "calibration": 0.3, "table_dtype": "bfloat16"}),
        (50_000, {"loss": "gbce", "group_size": 32, "batch_size": 2048}),
    ],
)
def test_the_trace_of_a_structure_holds_for_all_sizes(
    num_items: int, settings: dict[str, Any]
) -> None:
    model = MemoryModel(data_of(num_items), H200)
    found = model.predict(config(**settings), BUDGET)
    expected = model.traced(config(**settings), BUDGET)
    assert found.peak == pytest.approx(expected.peak, rel=1e-3)
    assert found.parts.keys() == expected.parts.keys()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("batch_size", [16, 60, 128, 512, 2048]),
        ("max_length", [10, 50, 120, 400]),
        ("negatives", [64, 500, 1024, 5000]),
        ("width", [32, 64, 128, 256]),
        ("num_blocks", [1, 2, 4]),
    ],
)
def test_more_of_anything_takes_no_less(name: str, values: list[int]) -> None:
    model = MemoryModel(data_of(), H200)
    peaks = [
        model.predict(config(table_updates="adam", **{name: value}), BUDGET).peak
        for value in values
    ]
    # Fillers are a few per cent of the tokens, by which more sequences may have fewer.
    assert all(more > 0.97 * less for less, more in itertools.pairwise(peaks))
    assert peaks[-1] > peaks[0]


def test_a_larger_catalogue_takes_more() -> None:
    peaks = [
        MemoryModel(data_of(num_items), H200).predict(config(), BUDGET).peak
        for num_items in (1_000, 300_000, 500_000)
    ]
    assert peaks == sorted(peaks)
    # A dense table: weights, two moments, and the gradients of the loss and of the lookups.
    assert peaks[2] - peaks[1] == pytest.approx(200_000 * 128 * 4 * 5, rel=0.02)


@pytest.mark.parametrize(
    ("catalogue", "settings", "measured"),
    [
        (
            (500_000, 100_000, 20),
            {"num_blocks": 3, "num_heads": 4, "width": 64, "max_length": 512, "batch_size": 2048}
            | {"negatives": 1023, "group_size": 32, "clip_norm": 1.0, "positions": "rotary"}
            | {"activations": "recomputed", "table_updates": "dense"},
            828_376_064,
        ),
        (
            (20_000, 60_000, 60),
            {"num_heads": 4, "width": 256, "max_length": 512, "batch_size": 2048}
            | {"negatives": 64, "group_size": 256, "norm": "post", "positions": "rotary"}
            | {"table_updates": "adagrad", "table_dtype": "bfloat16", "output_table": "separate"},
            2_876_368_384,
        ),
        (
            (20_000, 60_000, 60),
            {"architecture": "bert4rec", "num_heads": 4, "max_length": 200, "batch_size": 4096}
            | {"negatives": 64, "group_size": 32, "clip_norm": 1.0, "positions": "rotary"}
            | {"table_updates": "dense", "output_table": "separate"},
            2_765_803_520,
        ),
        (
            (5_000_000, 200_000, 40),
            {"architecture": "bert4rec", "num_blocks": 3, "num_heads": 1, "width": 64}
            | {"max_length": 200, "batch_size": 1024, "negatives": 1023, "group_size": 128}
            | {"positions": "rotary", "feed_forward": "swiglu", "table_dtype": "bfloat16"}
            | {"table_updates": "adam"},
            1_137_854_464,
        ),
    ],
)
def test_what_a_card_has_measured_is_predicted(
    catalogue: tuple[int, int, int], settings: dict[str, Any], measured: int
) -> None:
    # Numbers 7, 1, 5 and 10 of `benchmarks.memory`, on its made-up data: an H200, torch 2.11.
    num_items, num_users, mean = catalogue
    spread = np.random.default_rng(0).lognormal(np.log(mean) - 0.5, 1.0, num_users)
    lengths = spread.astype(np.int64).clip(2, 2000)
    few = lengths[:20_000]
    data = DataShape(
        num_items,
        Lengths(lengths),
        Lengths(few),
        4 * int(lengths.sum()) + 8 * num_users + 8,
        4 * int(few.sum()) + 4 * len(few),
    )
    found = MemoryModel(data, H200).predict(config(**settings), 60 << 30)
    assert found.peak == pytest.approx(measured, rel=0.005)


def test_data_that_stay_on_the_host_are_not_counted() -> None:
    model = MemoryModel(data_of(), H200)
    near = model.predict(config(), BUDGET)
    far = model.predict(config(), model.data.train_bytes)
    assert near.peak - far.peak == model.data.train_bytes + model.data.target_bytes


def test_a_prediction_leaves_nothing_behind() -> None:
    state = torch.get_rng_state()
    MemoryModel(data_of(), H200).predict(config(), BUDGET)
    assert torch.equal(torch.get_rng_state(), state)
    assert not on_gpu(torch.device("cpu"))
    assert torch.ones(2).sum() == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "sce"},
        {"loss": "sce", "centres": "random", "table_updates": "adam"},
        {"loss": "rece"},
        {"loss": "rece", "rounds": 3, "neighbours": 0, "accumulation": 2},
        {"loss": "bce"},
        {"candidates": "mixed"},
        {"candidates": "in-batch", "table_updates": "adam"},
    ],
    ids=str,
)
def test_losses_whose_sizes_follow_from_the_batch_are_traced_for_each(
    settings: dict[str, Any],
) -> None:
    model = MemoryModel(data_of(), H200)
    peaks = {}
    for batch_size in (128, 1024):
        asked = config(batch_size=batch_size, **settings)
        peaks[batch_size] = model.predict(asked, BUDGET).peak
        assert MemoryModel(data_of(), H200).traced(asked, BUDGET).peak == peaks[batch_size]
    assert peaks[1024] > 1.1 * peaks[128]


def test_sce_holds_the_states_of_its_pairs_and_their_gradient() -> None:
    model = MemoryModel(data_of(), H200)
    asked = config(loss="sce", batch_size=2048, table_updates="adam")
    num_rows = model._sizes(asked).shape.num_rows
    num_buckets, bucket_rows, _ = asked.loss.buckets(num_rows, 50_000)  # type: ignore[union-attr]
    pairs = 2 * 2 * 128 * num_buckets * bucket_rows
    found = model.predict(asked, BUDGET).parts["loss"]
    assert pairs <= found <= 1.2 * pairs
    more = config(loss="sce", batch_size=2048, table_updates="adam", bucket_scale=4.0)
    assert model.predict(more, BUDGET).peak - model.predict(asked, BUDGET).peak >= 2 * pairs


def test_candidates_by_how_often_items_occur_keep_a_distribution() -> None:
    model = MemoryModel(data_of(1_000_000), H200)

    def data(**settings: Any) -> int:
        return model.predict(config(**settings), BUDGET).parts["data"]

    uniform = data()
    # Alias table and log-probabilities; or probabilities and their logarithms.
    assert data(candidates="popularity") - uniform == pytest.approx(12_000_000, abs=1024)
    assert data(candidates="log-uniform") - uniform == pytest.approx(12_000_000, abs=1024)
    assert data(candidates="mixed") - uniform == pytest.approx(8_000_000, abs=1024)
    assert data(candidates="in-batch") - uniform == pytest.approx(8_000_000, abs=1024)


def test_a_trace_is_shared_by_what_differs_in_numbers_alone() -> None:
    model = MemoryModel(data_of(), H200)
    for calibration, negatives in ((0.1, 64), (0.9, 1024)):
        model.predict(config(loss="gbce", calibration=calibration, negatives=negatives), BUDGET)
    assert len(model._timelines) == 1
    model.predict(config(loss="bce+"), BUDGET)
    assert len(model._timelines) == 2


@pytest.mark.parametrize(("num_items", "by_rows"), [(50_000, False), (3_000_000, True)])
def test_of_two_processes_each_has_half_a_batch_and_the_rows_of_both(
    num_items: int, by_rows: bool
) -> None:
    data = data_of(num_items)
    half = MemoryModel(data, H200).predict(config(batch_size=256), BUDGET)
    model = MemoryModel(data, H200, 2)
    found = model.predict(config(batch_size=512), BUDGET)
    # A loss touches the targets, and 256 candidates of 128 rows.
    num_rows = model._sizes(config(batch_size=512)).shape.num_rows
    exchanged = 2 * 3 * num_rows * (4 * 128 + 8) if by_rows else 0
    assert found.peak - half.peak == pytest.approx(exchanged, abs=20_000)
