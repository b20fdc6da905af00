from typing import Any

import optuna
import pytest

from objectives.config import TrialConfig
from objectives.errors import UserError
from study.space import Choices, Range, build_space


def test_default_space() -> None:
    space = build_space({}, num_items=1_000_000, num_sequences=100_000)
    assert space.open == {
        "negatives": Range(16, 8192),
        "batch_size": Range(8, 4096),
        "learning_rate": Range(1e-4, 1e-2),
    }
    assert space.fixed == {}


def test_default_space_fits_small_data() -> None:
    space = build_space({}, num_items=11, num_sequences=30)
    assert space.open["batch_size"] == Range(8, 30)
    assert space.fixed == {"negatives": 10}


def test_the_full_softmax_has_no_negatives_to_search() -> None:
    space = build_space({"loss": "cce"}, num_items=1000, num_sequences=100)
    assert set(space.open) == {"batch_size", "learning_rate"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([64, 4096], Range(64, 4096)),
        (["64", "4096"], Range(64, 4096)),
        ([32, 64, 128], Choices((32, 64, 128))),
        ("256", 256),
        ([256], 256),
        (["1e3"], 1000),
    ],
)
def test_values_make_fixed_settings_ranges_or_choices(raw: Any, expected: Any) -> None:
    space = build_space({"max_length": raw}, num_items=9000, num_sequences=100)
    assert {**space.open, **space.fixed}["max_length"] == expected


def test_words_and_widths_are_choices_even_if_two() -> None:
    space = build_space({"loss": ["cce", "cce-"], "width": [32, 64]}, 1000, 100)
    assert space.open["loss"] == Choices(("cce", "cce-"))
    assert space.open["width"] == Choices((32, 64))
    assert [config.loss.loss for config in space.smallest()] == ["cce", "cce-"]
    assert {config.model.width for config in space.smallest()} == {32}


def test_what_is_spent_is_not_searched_and_takes_the_most_that_fits() -> None:
    space = build_space({"batch_size": [8, 900]}, 10_000, 1000, "batch_size")
    assert set(space.open) == {"negatives", "learning_rate"}
    assert space.as_dict()["batch_size"] == [8, 900]
    trial = optuna.create_study().ask()
    config = space.suggest(trial)
    assert set(trial.params) == set(space.open)
    assert config.training.batch_size == 8
    for most, expected in ((900, 900), (5000, 900), (123, 123), (8, 8), (1, 8)):

        def fits(tried: TrialConfig, most: int = most) -> bool:
            return tried.training.batch_size <= most

        spent = space.spend(config, fits)
        assert spent == {"batch_size": expected}
    assert space.with_spent(config, {"batch_size": 77}).flat() == {
        **config.flat(),
        "batch_size": 77,
    }
    (smallest,) = space.smallest()
    assert smallest.training.batch_size == 8


@pytest.mark.parametrize("asked", [{"batch_size": 8}, {"batch_size": [8, 16, 32]}])
def test_only_a_range_can_be_spent(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^--spend-budget batch_size: it has no range"):
        build_space(asked, 1000, 100, "batch_size")
    with pytest.raises(UserError, match=r"^--spend-budget negatives: it has no range"):
        build_space({"loss": "cce"}, 1000, 100, "negatives")


def test_the_smallest_configuration_has_the_least_of_everything() -> None:
    (smallest,) = build_space({"max_length": [64, 32, 128]}, 1000, 100).smallest()
    assert smallest.flat() == {
        **TrialConfig().flat(),
        "negatives": 16,
        "batch_size": 8,
        "learning_rate": 1e-4,
        "max_length": 32,
    }


def test_suggestions_are_inside_the_space_and_logarithmic() -> None:
    space = build_space({"dropout": [0.0, 0.5], "max_length": [10, 20, 40]}, 9000, 5000)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.suggest(study.ask()) for _ in range(200)]
    rates = [config.training.learning_rate for config in configs]
    assert min(rates) >= 1e-4
    assert max(rates) <= 1e-2
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 200 < 0.6
    dropouts = [config.model.dropout for config in configs]
    assert 0.4 < sum(dropout < 0.25 for dropout in dropouts) / 200 < 0.6
    assert {config.model.max_length for config in configs} == {10, 20, 40}


@pytest.mark.parametrize(
    ("asked", "num_items", "updates"),
    [
        ({}, 1000, {"dense"}),
        ({"width": [64, 128]}, 600_000, {"dense", "adam"}),
        ({}, 5_000_000, {"adam"}),
        ({"table_dtype": ["float32", "bfloat16"]}, 1000, {"dense", "adam"}),
    ],
)
def test_no_configuration_is_auto(
    asked: dict[str, Any], num_items: int, updates: set[str]
) -> None:
    space = build_space(asked, num_items, 5000)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.suggest(study.ask()) for _ in range(20)]
    assert {config.training.table_updates for config in configs} == updates
    assert space.as_dict()["table_updates"] == "auto"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"negative": 3}, ("negative", "no such setting")),
        ({"negatives": [64, 1000]}, ("1,000 items", "at most 999")),
        ({"negatives": 1000}, ("negatives", "at most 999")),
        ({"batch_size": [8, 16, 101]}, ("100 training sequences", "at most 100")),
        ({"negatives": [500, 20]}, ("inverted", "20 500")),
        ({"negatives": []}, ("at least one value",)),
        ({"negatives": [16, 16]}, ("twice",)),
        ({"negatives": 2.5}, ("2.5", "integer")),
        ({"negatives": "many"}, ("many", "integer")),
        ({"negatives": "inf"}, ("inf", "integer")),
        ({"negatives": True}, ("True", "integer")),
        ({"negatives": {"low": 3}}, ("integer",)),
        ({"negatives": 0}, ("negatives 0", "greater than or equal to 1")),
        ({"learning_rate": "nan"}, ("learning_rate nan", "number")),
        ({"learning_rate": 0}, ("learning_rate 0", "greater than 0")),
        ({"dropout": 1}, ("dropout 1", "less than 1")),
        ({"loss": "softmax"}, ("softmax", "cce-")),
        ({"table_updates": ["auto", "adam"]}, ("table_updates", "leave it out")),
        ({"table_updates": ["dense", "adam"], "loss": ["cce", "cce-"]}, ("adam", "cce-")),
        ({"table_dtype": "bfloat16", "loss": "cce"}, ("bfloat16", "cce-")),
        ({"width": 33, "num_heads": 2}, ("width 33", "num_heads 2")),
        ({"width": [32, 64], "num_heads": [2, 3]}, ("width 32", "num_heads 3")),
    ],
)
def test_impossible_settings_are_one_sentence(
    asked: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        build_space(asked, num_items=1000, num_sequences=100)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
