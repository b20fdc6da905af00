"""Served lists against those of an evaluation."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch

from kernels import top_k
from models.config import ModelConfig
from models.transformer import Transformer
from objectives.config import TrialConfig
from objectives.data import Sequences, Targets
from objectives.data.sequences import DeviceTargets
from objectives.errors import UserError
from objectives.evaluation import encode, evaluate
from objectives.recommending import Recommender
from objectives.saved_model import SavedModel

CPU = torch.device("cpu")
NUM_ITEMS, K = 40, 10


def saved_model(architecture: str = "sasrec", *, ids: pa.Array | None = None) -> SavedModel:
    """A model of random weights, with ties: every second item has the vector of the one before."""
    torch.manual_seed(0)
    config = TrialConfig.from_flat(
        {"architecture": architecture, "width": 8, "num_blocks": 1, "max_length": 6}
    )
    model = config.build_model(NUM_ITEMS)
    table_VD = model.outputs.weight.detach()
    table_VD[1::2] = table_VD[::2]
    ids = pa.array([1000 - item for item in range(NUM_ITEMS)]) if ids is None else ids
    counts_V = np.arange(NUM_ITEMS) % 7
    return SavedModel(config, model.state_dict(), ids, counts_V, 64, {})


@pytest.fixture
def histories() -> list[list[int]]:
    """Of all lengths, some items repeated."""
    random = np.random.default_rng(0)
    return [random.integers(0, NUM_ITEMS, 1 + user % 9).tolist() for user in range(50)]


def targets(histories: list[list[int]]) -> Targets:
    items = np.concatenate(histories).astype(np.int32)
    offsets = np.cumsum([0, *map(len, histories)], dtype=np.int64)
    after = np.random.default_rng(1).integers(0, NUM_ITEMS, len(histories))
    return Targets(Sequences(items, offsets), after.astype(np.int32))


def evaluated(model: Transformer, histories: list[list[int]]) -> list[list[int]]:
    """The lists of an evaluation, in batches that serving does not have."""
    batches = DeviceTargets(targets(histories), CPU).batches(
        9, model.config.max_length, masked=not model.causal
    )
    lists = [top_k(encode(model, each), model.outputs.weight, K, each.seen) for each in batches]
    return torch.cat(lists).tolist()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("architecture", ["sasrec", "bert4rec"])
def test_lists_are_those_of_an_evaluation(
    architecture: str, int8: bool, histories: list[list[int]]
) -> None:
    saved = saved_model(architecture)
    model = saved.build(CPU)
    raw = [[1000 - item for item in history] for history in histories]
    found = Recommender(saved, CPU, int8=int8).recommend(raw, K)
    assert [[1000 - int(raw) for raw in items] for items in found.items] == evaluated(
        model, histories
    )
    assert all(scores == sorted(scores, reverse=True) for scores in found.scores)
    assert not any(found.popular)
    assert not any(found.unknown)

    test = targets(histories)
    metrics = evaluate(
        lambda batch: encode(model, batch),
        model.outputs.weight,
        DeviceTargets(test, CPU),
        batch_tokens=9,
        max_length=6,
        masked=not model.causal,
    )
    hits = [1000 - t in items for t, items in zip(test.items, found.items, strict=True)]
    assert metrics["hit_rate_at_10"] == pytest.approx(np.mean(hits))


def test_scores_are_inner_products(histories: list[list[int]]) -> None:
    saved = saved_model()
    model = saved.build(CPU)
    (batch,) = DeviceTargets(targets([[3, 4]]), CPU).batches(9, 6, masked=False)
    logits_V = (encode(model, batch) @ model.outputs.weight.T)[0]
    lists = Recommender(saved, CPU).recommend([[997, 996]], K)
    for raw, score in zip(lists.items[0], lists.scores[0], strict=True):
        assert score == pytest.approx(float(logits_V[1000 - int(raw)]), abs=1e-6)


def test_seen_items_stay_where_that_is_asked() -> None:
    recommender = Recommender(saved_model(), CPU)
    history = [1000, 999, 998]
    assert not set(history) & set(recommender.recommend([history], 40).items[0])
    assert set(history) <= set(recommender.recommend([history], 40, remove_seen=False).items[0])


@pytest.mark.parametrize("remove_seen", [True, False])
def test_a_list_of_candidates_is_what_the_whole_list_has_of_them(remove_seen: bool) -> None:
    recommender = Recommender(saved_model(), CPU)
    candidates = [970, 971, 1000, 5, 990, 991, 970]
    history = [1000, 999, 998]
    whole = recommender.recommend([history], 40, remove_seen=remove_seen).items[0]
    some = recommender.recommend([history], 40, remove_seen=remove_seen, candidates=candidates)
    assert some.items[0] == [item for item in whole if item in candidates]


def test_unknown_items_are_ignored_and_counted() -> None:
    recommender = Recommender(saved_model(), CPU)
    found = recommender.recommend([[1000, -1, 990, 7], [1000, 990]], K)
    assert found.unknown == [2, 0]
    assert found.items[0] == found.items[1]


def test_a_history_without_a_known_item_gets_the_most_popular_ones() -> None:
    recommender = Recommender(saved_model(), CPU)
    found = recommender.recommend([[5], [1000], []], 3)
    assert found.popular == [True, False, True]
    assert found.unknown == [1, 0, 0]
    assert found.items[0] == found.items[2] == [994, 987, 980]  # counted 6 times, lower id first
    assert found.scores[0] == [6.0, 6.0, 6.0]
    few = recommender.recommend([[]], 3, candidates=[999, 994])
    assert few.items == [[994, 999]]
    assert recommender.recommend([], 3).items == []


def test_ids_are_text_where_the_source_has_text() -> None:
    ids = pa.array([f"é{item}".encode() for item in range(NUM_ITEMS - 1)] + [b"\xff"])
    recommender = Recommender(saved_model(ids=ids.cast(pa.large_binary())), CPU)
    (items,) = recommender.recommend([["é3", "\\xff", "é99"]], 38).items
    assert set(items) == {f"é{item}" for item in range(NUM_ITEMS - 1)} - {"é3"}


@pytest.mark.parametrize(
    ("recommend", "sentence"),
    [
        (lambda model: model.recommend([[1000]], 0), "k must be 1 to 1,000, not 0"),
        (lambda model: model.recommend(["abc"]), "history 0 is no list of item ids"),
        (lambda model: model.recommend([[], None]), "history 1 is no list of item ids"),
        (lambda model: model.recommend([[[1]]]), "history 0 holds something that is no item id"),
        (
            lambda model: model.recommend([[1000]], candidates=[5]),
            "candidates holds no item of the catalogue",
        ),
    ],
)
def test_what_is_no_history_is_refused(
    recommend: Callable[[Recommender], object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        recommend(Recommender(saved_model(), CPU))


def test_a_model_of_separate_and_rounded_tables_is_built(histories: list[list[int]]) -> None:
    config = TrialConfig.from_flat(
        {
            "width": 8,
            "output_table": "separate",
            "table_dtype": "bfloat16",
            "table_updates": "adam",
        }
    )
    assert config.model == ModelConfig(width=8, output_table="separate")
    model = config.build_model(NUM_ITEMS)
    ids, counts_V = pa.array(range(NUM_ITEMS)), np.ones(NUM_ITEMS, np.int64)
    saved = SavedModel(config, model.state_dict(), ids, counts_V, 64, {})
    assert Recommender(saved, CPU).recommend(histories, K).items == evaluated(
        model.eval(), histories
    )
