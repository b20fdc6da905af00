import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from objectives.config import DataConfig, FilterConfig
from objectives.data import prepare, sources, synthetic
from objectives.data.synthetic import Synthetic
from objectives.errors import UserError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))


def made(text: str) -> pa.Table:
    return pa.Table.from_batches(Synthetic.parse(text).batches())


def test_a_log_is_as_it_was_asked_for() -> None:
    table = made("synthetic:users=2e3,items=500,length=20,exponent=1.2")
    users, items = table["user"].to_numpy(), table["item"].to_numpy()
    assert np.unique(users).tolist() == list(range(2000))
    assert abs(np.bincount(users).mean() - 20) < 1
    assert (items.min(), items.max() < 500) == (0, True)
    counts = np.sort(np.bincount(items, minlength=500))[::-1]
    # A Zipf law falls by this factor from the first ranks to later ones, more or less.
    assert counts[:10].sum() > 10 * counts[100:110].sum()
    flat = np.bincount(made("synthetic:users=2e3,items=500,length=20,exponent=0")["item"])
    assert flat.max() < 4 * flat.mean()


def test_times_of_a_user_do_not_fall() -> None:
    table = made("synthetic:users=500")
    users, times = table["user"].to_numpy(), table["time"].to_numpy()
    assert (np.diff(times)[np.diff(users) == 0] >= 0).all()


def test_the_same_words_make_the_same_log_whatever_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made("synthetic:users=300").equals(made("synthetic:users=300"))
    assert not made("synthetic:users=300").equals(made("synthetic:users=300,seed=1"))
    monkeypatch.setattr(synthetic, "_ROWS", 1000)
    batches = list(Synthetic.parse("synthetic:users=300").batches())
    assert len(batches) == 15
    assert max(batch.num_rows for batch in batches) < 4000


def test_ten_million_items_take_no_memory_of_their_own() -> None:
    table = made("synthetic:users=100,items=1e7,exponent=0.5")
    assert table["item"].to_numpy().max() > 5_000_000


def test_the_next_item_can_be_learnt() -> None:
    """What followed an item most often beats what is popular by far."""
    data = prepare(DataConfig(data="synthetic:users=4000,items=1000,length=30"))
    follows: dict[int, Counter[int]] = defaultdict(Counter)
    train = data.train
    for begin, end in zip(train.offsets[:-1], train.offsets[1:], strict=True):
        items = train.items[begin:end].tolist()
        for item, following in itertools.pairwise(items):
            follows[item][following] += 1
    popular = [item for item, _ in Counter(train.items.tolist()).most_common(10)]
    gains = {"popular": 0.0, "follows": 0.0}
    lasts = data.test.inputs.items[data.test.inputs.offsets[1:] - 1]
    for last, target in zip(lasts.tolist(), data.test.items.tolist(), strict=True):
        best = [item for item, _ in follows[last].most_common(10)]
        for name, ranked in (("popular", popular), ("follows", best)):
            if target in ranked:
                gains[name] += 1 / np.log2(2 + ranked.index(target))
    assert gains["follows"] > 2.5 * gains["popular"]


def test_it_is_read_like_a_file_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(data="synthetic:users=50,items=20,length=5")
    files, columns, _ = sources.locate(config)
    log = sources.read(files, columns, FilterConfig())
    assert log.num_users == 50
    assert sources.name_of(config) == "synthetic-50-users-20-items"
    monkeypatch.setattr(Synthetic, "batches", None)
    assert sources.locate(config)[0] == files


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("user=5", "user=5: there is no such setting; there are users, items, exponent"),
        ("users=0", "users=0: input should be greater than or equal to 1"),
        ("users=many", "users=many: input should be a valid integer"),
        ("items=1e99", "items=1e99: input should be less than or equal to"),
        ("items", "items=: input should be a valid integer"),
        ("users=1e", "users=1e: "),
        ("exponent=nan", "exponent=nan: "),
    ],
)
def test_words_that_make_no_log(words: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        sources.locate(DataConfig(data=f"synthetic:{words}"))
    assert str(caught.value).startswith(f"--data synthetic: {reason}")
