import subprocess
import sys

import pytest
from pydantic import ValidationError

from models.config import ModelConfig
from objectives.config import SETTINGS, TrainingConfig, TrialConfig, settings_of
from objectives.loss_config import LOSSES, RECE, SCE, BCEPlus


def test_a_configuration_survives_being_flat() -> None:
    flat = {"max_length": 7, "loss": "bce+", "negatives": 3, "batch_size": 2, "learning_rate": 0.5}
    config = TrialConfig.from_flat(flat)
    assert (config.model.max_length, config.training.batch_size) == (7, 2)
    assert config.loss == BCEPlus(negatives=3)
    assert {name: config.flat()[name] for name in flat} == flat
    assert TrialConfig.from_flat(config.flat()) == config
    assert TrialConfig.from_flat({}) == TrialConfig()


LOSS_SETTINGS = {
    "cce-": {"candidates", "negatives", "group_size", "correction"},
    "cce": set(),
    "bce": set(),
    "bce+": {"negatives", "group_size"},
    "gbce": {"negatives", "group_size", "calibration"},
    "sce": {"bucket_items", "bucket_scale", "bucket_ratio", "centres"},
    "rece": {"rounds", "neighbours", "buckets_per_chunk"},
}
EVERY_TRIAL = {*ModelConfig.model_fields, "loss", *TrainingConfig.model_fields}


@pytest.mark.parametrize("loss", LOSS_SETTINGS)
def test_a_trial_has_the_settings_of_its_loss_alone(loss: str) -> None:
    everything = {name: setting.default for name, setting in SETTINGS.items()} | {"loss": loss}
    config = TrialConfig.from_flat(everything)
    assert config.loss.loss == loss
    assert set(config.flat()) == EVERY_TRIAL | LOSS_SETTINGS[loss] == settings_of({"loss": loss})
    assert config.flat() == {name: everything[name] for name in config.flat()}
    assert TrialConfig.from_flat({"loss": loss}) == TrialConfig.from_flat(config.flat()) == config


@pytest.mark.parametrize(
    ("candidates", "settings"),
    [
        ("popularity", {"negatives", "group_size"}),
        ("log-uniform", {"negatives", "group_size"}),
        ("mixed", {"negatives"}),
        ("in-batch", set()),
    ],
)
def test_candidates_from_the_batch_have_no_number_or_groups(
    candidates: str, settings: set[str]
) -> None:
    config = TrialConfig.from_flat(
        {"candidates": candidates, "negatives": 7, "group_size": 9, "correction": "none"}
    )
    assert set(config.loss.model_dump()) == {"loss", "candidates", "correction"} | settings
    assert TrialConfig.from_flat(config.flat()) == config
    assert config.loss.needs_counts
    assert not TrialConfig().loss.needs_counts


def test_every_setting_stands_once() -> None:
    assert set(SETTINGS) == EVERY_TRIAL.union(*LOSS_SETTINGS.values())
    assert all(setting.description for setting in SETTINGS.values())
    assert SETTINGS["loss"].words == tuple(LOSS_SETTINGS)
    for name, setting in SETTINGS.items():
        having = [loss for loss, settings in LOSS_SETTINGS.items() if name in settings]
        assert list(setting.losses) == having
        fields = [loss.model_fields[name] for loss in LOSSES if name in loss.model_fields]
        if name in ("negatives", "group_size", "correction"):
            # One name means one thing.
            assert len({(str(f.annotation), str(f.metadata), f.default) for f in fields}) == 1


@pytest.mark.parametrize(
    ("settings", "rows", "expected"),
    [
        ({}, 10_000, (200, 200, 256)),
        ({"bucket_scale": 3.0}, 10_000, (300, 300, 256)),
        ({"bucket_ratio": 4.0}, 10_000, (100, 400, 256)),
        ({"bucket_items": 5000}, 10_000, (200, 200, 1000)),  # no more than there are
        ({"bucket_ratio": 100.0}, 25, (1, 25, 256)),
        ({"bucket_scale": 0.001}, 25, (1, 1, 256)),
    ],
)
def test_buckets_follow_from_the_rows(
    settings: dict[str, float], rows: int, expected: tuple[int, int, int]
) -> None:
    loss = TrialConfig.from_flat({"loss": "sce", **settings}).loss
    assert isinstance(loss, SCE)
    assert loss.buckets(rows, 1000) == expected


@pytest.mark.parametrize(
    ("settings", "num_rows", "num_items", "expected"),
    [
        ({}, 1200, 30_000, 120),  # sqrt(4 * 3 * 1200)
        ({}, 30_000, 1200, 120),
        ({"neighbours": 0}, 3600, 30_000, 120),
        ({"buckets_per_chunk": 4, "rounds": 8}, 1200, 30_000, 240),
        ({"buckets_per_chunk": 500}, 10, 30_000, 500),  # one chunk at least
        ({"neighbours": 50}, 100, 30, 30),  # no more chunks than items
        ({"neighbours": 0}, 1, 30_000, 2),
    ],
)
def test_hashes_follow_from_rows_and_items(
    settings: dict[str, int], num_rows: int, num_items: int, expected: int
) -> None:
    loss = TrialConfig.from_flat({"loss": "rece", **settings}).loss
    assert isinstance(loss, RECE)
    assert loss.num_buckets(num_rows, num_items) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("negatives", 0),
        ("group_size", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("weight_decay", -1.0),
        ("max_epochs", 0),
        ("patience", 0),
        ("loss", "bpr"),
        ("candidates", "frequency"),
        ("correction", "q"),
        ("table_updates", "rows"),
        ("table_dtype", "float16"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        TrialConfig.from_flat({name: value})


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        ("bce+", "negatives", 0),
        ("gbce", "group_size", 0),
        ("gbce", "calibration", 1.1),
        ("gbce", "calibration", -0.1),
        ("sce", "bucket_items", 0),
        ("sce", "bucket_scale", 0.0),
        ("sce", "bucket_ratio", 0.0),
        ("sce", "centres", "items"),
        ("rece", "rounds", 0),
        ("rece", "neighbours", -1),
        ("rece", "buckets_per_chunk", 0),
    ],
)
def test_values_out_of_a_losses_range_are_refused(loss: str, name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        TrialConfig.from_flat({"loss": loss, name: value})
    other = TrialConfig.from_flat({"loss": "cce", name: value})
    assert name not in other.flat()


WHOLE = ("cce", "rece")


@pytest.mark.parametrize("loss", LOSS_SETTINGS)
@pytest.mark.parametrize("updates", ["adam", "adagrad"])
def test_the_whole_catalogue_has_no_touched_rows(updates: str, loss: str) -> None:
    asked = {"loss": loss, "table_updates": updates}
    if loss not in WHOLE:
        assert TrialConfig.from_flat(asked).training.by_rows
        return
    with pytest.raises(
        ValidationError, match=f"table_updates {updates} needs a loss .* {loss} touches every one"
    ):
        TrialConfig.from_flat(asked)


@pytest.mark.parametrize("other", [{"loss": "cce"}, {"loss": "rece"}, {"table_updates": "dense"}])
def test_a_half_table_needs_updates_by_rows(other: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"table_dtype bfloat16 needs a loss .*adam or adag"):
        TrialConfig.from_flat({"table_dtype": "bfloat16"} | other)


@pytest.mark.parametrize(
    ("settings", "num_items", "updates"),
    [
        ({}, 54_542, "dense"),
        ({"width": 64}, (1 << 20) - 1, "dense"),
        ({"width": 64}, 1 << 20, "adam"),
        ({"width": 128}, 1 << 19, "adam"),
        ({"width": 128, "loss": "cce"}, 5_000_000, "dense"),
        ({"width": 128, "loss": "rece"}, 5_000_000, "dense"),
        ({"width": 128, "loss": "sce"}, 5_000_000, "adam"),
        ({"width": 128, "loss": "gbce"}, 5_000_000, "adam"),
        ({"width": 128, "candidates": "in-batch"}, 5_000_000, "adam"),
        ({"table_dtype": "bfloat16"}, 10, "adam"),
        ({"table_updates": "dense"}, 5_000_000, "dense"),
        ({"table_updates": "adagrad"}, 10, "adagrad"),
    ],
)
def test_auto_goes_by_the_size_of_the_table(
    settings: dict[str, object], num_items: int, updates: str
) -> None:
    config = TrialConfig.from_flat(settings)
    resolved = config.resolved(num_items)
    assert resolved.training.table_updates == updates
    assert resolved.resolved(num_items) == resolved
    assert resolved.training.by_rows == (updates != "dense")
    assert {**resolved.flat(), "table_updates": ""} == {**config.flat(), "table_updates": ""}


def test_configurations_do_not_import_torch() -> None:
    code = "import sys, objectives.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
