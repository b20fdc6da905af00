from typing import Any

import optuna
import pytest

from objectives.config import TrialConfig
from objectives.errors import UserError
from study.space import Choices, Range, build_space, largest_fitting


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


@pytest.mark.parametrize(
    ("asked", "own"),
    [
        ({"loss": "cce"}, set()),
        ({"loss": "bce"}, set()),
        ({"loss": "rece"}, set()),
        ({"loss": "bce+"}, {"negatives"}),
        ({"loss": "gbce"}, {"negatives"}),
        ({"loss": "sce"}, {"bucket_items"}),
        ({"loss": ["sce", "gbce"]}, {"loss", "negatives", "bucket_items"}),
        ({"candidates": "popularity"}, {"negatives"}),
        ({"candidates": "mixed"}, {"negatives"}),
        ({"candidates": "in-batch"}, set()),
    ],
)
def test_what_is_open_by_default_goes_by_the_losses(asked: dict[str, Any], own: set[str]) -> None:
    space = build_space(asked, num_items=1000, num_sequences=100)
    assert set(space.open) == {"batch_size", "learning_rate"} | own


def test_buckets_range_to_the_catalogue() -> None:
    sizes = {30: 30, 64: 64, 1000: Range(64, 1000), 1_000_000: Range(64, 4096)}
    for num_items, expected in sizes.items():
        space = build_space({"loss": "sce"}, num_items, 100)
        assert {**space.open, **space.fixed}["bucket_items"] == expected


ALL = ["cce-", "sce", "rece", "bce+", "cce"]
OWN = {
    "cce-": {"negatives", "candidates"},
    "sce": {"bucket_items"},
    "rece": set(),
    "bce+": {"negatives"},
    "cce": set(),
}


def sampled(
    asked: dict[str, Any], number: int = 60, **sizes: Any
) -> list[tuple[Any, TrialConfig]]:
    """Trials of a space, with their configurations."""
    space = build_space(asked, **{"num_items": 9000, "num_sequences": 5000} | sizes)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(number)]
    return [(trial, space.suggest(trial)) for trial in trials]


def test_a_trial_chooses_its_loss_and_then_what_that_has() -> None:
    asked = {"loss": ALL, "candidates": ["uniform", "in-batch"], "rounds": [1, 4], "width": 32}
    seen = set()
    for trial, config in sampled(asked):
        loss = config.loss
        expected = {"loss", "batch_size", "learning_rate"} | OWN[loss.loss]
        if loss.loss == "rece":
            expected |= {"rounds"}
        if getattr(loss, "candidates", "") == "in-batch":
            expected -= {"negatives"}
        assert set(trial.params) == expected
        assert next(iter(trial.params)) == "loss"
        assert {name: config.flat()[name] for name in expected} == trial.params
        assert config.model.width == 32
        seen.add((loss.loss, getattr(loss, "candidates", "")))
    assert len(seen) == 6


def test_a_fixed_setting_is_that_of_the_losses_that_have_it() -> None:
    asked = {"loss": ["sce", "bce+"], "bucket_items": 77, "negatives": 88}
    for trial, config in sampled(asked):
        assert set(trial.params) == {"loss", "batch_size", "learning_rate"}
        name, value = ("bucket_items", 77) if config.loss.loss == "sce" else ("negatives", 88)
        assert config.flat()[name] == value
    assert len(build_space(asked, 9000, 5000).smallest()) == 2


def test_the_space_of_several_losses_shows_what_each_has() -> None:
    shown = build_space({"loss": ["sce", "cce"]}, 9000, 5000).as_dict()
    assert shown["loss"] == ["sce", "cce"]
    assert shown["bucket_items"] == [64, 4096]
    assert shown["centres"] == "mixed"
    assert not {"negatives", "group_size", "candidates", "rounds"} & set(shown)
    flat = TrialConfig.from_flat({"loss": "sce"}).flat()
    assert set(shown) == set(flat)
    assert set(build_space({}, 9000, 5000).as_dict()) == set(TrialConfig().flat())


def test_the_smallest_configurations_are_one_for_each_loss() -> None:
    space = build_space({"loss": ALL, "candidates": ["uniform", "in-batch"]}, 9000, 5000)
    smallest = [config.loss for config in space.smallest()]
    assert [loss.loss for loss in smallest] == ["cce-", "cce-", "sce", "rece", "bce+", "cce"]
    assert smallest[0].model_dump()["negatives"] == smallest[4].model_dump()["negatives"] == 16
    assert smallest[2].model_dump()["bucket_items"] == 64


def test_only_a_trial_that_has_it_spends_it() -> None:
    space = build_space({"loss": ALL}, 9000, 5000, "negatives")
    assert "negatives" not in space.open
    assert space.as_dict()["negatives"] == [16, 8192]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(40):
        config = space.suggest(study.ask())
        spent = space.spend(config, lambda tried: tried.flat()["negatives"] <= 500)
        has_negatives = config.loss.loss in ("cce-", "bce+")
        assert spent == ({"negatives": 500} if has_negatives else {})
        assert space.with_spent(config, spent).flat() == {**config.flat(), **spent}
    everywhere = build_space({"loss": ALL}, 9000, 5000, "batch_size")
    for config in everywhere.smallest():
        assert everywhere.spend(config, lambda tried: True) == {"batch_size": 4096}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"bucket_items": 64},
            "--space.bucket_items: loss cce- has no such setting; sce has",
        ),
        (
            {"negatives": 64, "loss": ["cce", "sce"]},
            "--space.negatives: losses cce and sce have no such setting; cce-, bce+ and gbce have",
        ),
        (
            {"candidates": "popularity", "loss": "gbce"},
            "--space.candidates: loss gbce has no such setting; cce- has",
        ),
        (
            {"negatives": 64, "candidates": "in-batch"},
            "--space.negatives: loss cce- with candidates in-batch has no such setting; cce- with "
            "candidates uniform, popularity, log-uniform or mixed, bce+ and gbce have",
        ),
        (
            {"group_size": 64, "candidates": ["mixed", "in-batch"]},
            "--space.group_size: loss cce- with candidates mixed or in-batch has no such setting; "
            "cce- with candidates uniform, popularity or log-uniform, bce+ and gbce have",
        ),
        (
            {"calibration": 0.5, "loss": ["bce", "bce+"]},
            "--space.calibration: losses bce and bce+ have no such setting; gbce has",
        ),
    ],
)
def test_a_setting_that_no_loss_has_is_one_sentence(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        build_space(asked, num_items=1000, num_sequences=100)
    assert str(caught.value) == sentence


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


@pytest.mark.parametrize("most", [1, 2, 3, 700, 1000, 1001])
def test_the_largest_that_fits_is_found_from_below(most: int) -> None:
    tried = []

    def fits(value: int) -> bool:
        tried.append(value)
        return value <= most

    assert largest_fitting(1, 1000, fits) == min(most, 1000)
    assert largest_fitting(5, 5, fits) == 5
    # What is far too large may take long to judge.
    assert max(tried, default=0) <= 2 * most


@pytest.mark.parametrize("asked", [{"batch_size": 8}, {"batch_size": [8, 16, 32]}])
def test_only_a_range_can_be_spent(asked: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^--spend-budget batch_size: it has no range"):
        build_space(asked, 1000, 100, "batch_size")
    with pytest.raises(UserError, match=r"^--spend-budget negatives: loss cce has no such setti"):
        build_space({"loss": "cce"}, 1000, 100, "negatives")
    with pytest.raises(UserError, match=r"^--spend-budget negatives: .* in-batch has no such"):
        build_space({"candidates": "in-batch"}, 1000, 100, "negatives")


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
        ({"loss": "softmax"}, ("--space.loss softmax", "choose from cce-, cce, bce")),
        ({"candidates": "frequent"}, ("candidates frequent", "uniform, popularity")),
        ({"centres": "fixed", "loss": "sce"}, ("centres fixed", "mixed, random")),
        ({"loss": "sce", "bucket_items": 1001}, ("bucket_items", "1,000 items", "at most 1000")),
        ({"loss": ["bce+", "cce"], "negatives": [64, 1000]}, ("1,000 items", "at most 999")),
        ({"candidates": "mixed", "negatives": 1000}, ("1,000 items", "at most 999")),
        ({"loss": "gbce", "calibration": 2}, ("calibration 2", "less than or equal to 1")),
        ({"loss": "rece", "rounds": 0}, ("rounds 0", "greater than or equal to 1")),
        ({"loss": "rece", "neighbours": -1}, ("neighbours -1", "greater than or equal to 0")),
        ({"loss": "sce", "bucket_scale": 0}, ("bucket_scale 0", "greater than 0")),
        ({"table_updates": ["auto", "adam"]}, ("table_updates", "leave it out")),
        ({"table_updates": ["dense", "adam"], "loss": ["cce", "cce-"]}, ("adam", "cce touches")),
        ({"table_updates": "adam", "loss": ["sce", "rece"]}, ("adam", "rece touches every one")),
        ({"table_dtype": "bfloat16", "loss": "cce"}, ("bfloat16", "not cce or rece")),
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


@pytest.mark.parametrize(
    ("part", "share", "value"),
    [
        (Range(16, 4096), 0.5, 256),
        (Range(16, 4096), -1, 16),
        (Range(1e-4, 1e-2), 0.5, 1e-3),
        (Range(1e-4, 1e-2), 2, 1e-2),
        (Range(0.0, 0.5), 0.5, 0.25),
    ],
)
def test_a_range_has_a_value_at_every_share(part: Range, share: float, value: float) -> None:
    found = part.at(share)
    assert found == pytest.approx(value)
    assert type(found) is type(part.low)
