import subprocess
import sys

import pytest
from pydantic import ValidationError

from objectives.config import SETTINGS, TrialConfig


def test_a_configuration_survives_being_flat() -> None:
    flat = {"max_length": 7, "loss": "cce", "negatives": 3, "batch_size": 2, "learning_rate": 0.5}
    config = TrialConfig.from_flat(flat)
    assert (config.model.max_length, config.loss.loss, config.training.batch_size) == (7, "cce", 2)
    assert {name: config.flat()[name] for name in flat} == flat
    assert TrialConfig.from_flat(config.flat()) == config
    assert TrialConfig.from_flat({}) == TrialConfig()


def test_every_setting_stands_once() -> None:
    assert set(SETTINGS) == set(TrialConfig().flat())
    parts = TrialConfig().model_dump().values()
    assert len(SETTINGS) == sum(map(len, parts))
    assert all(field.description for field in SETTINGS.values())


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
        ("loss", "bce"),
        ("table_updates", "rows"),
        ("table_dtype", "float16"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        TrialConfig.from_flat({name: value})


@pytest.mark.parametrize("updates", ["adam", "adagrad"])
def test_the_whole_catalogue_has_no_touched_rows(updates: str) -> None:
    with pytest.raises(ValidationError, match=f"table_updates {updates} needs loss cce-"):
        TrialConfig.from_flat({"loss": "cce", "table_updates": updates})


@pytest.mark.parametrize("other", [{"loss": "cce"}, {"table_updates": "dense"}])
def test_a_half_table_needs_updates_by_rows(other: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="table_dtype bfloat16 needs loss cce- and"):
        TrialConfig.from_flat({"table_dtype": "bfloat16"} | other)


@pytest.mark.parametrize(
    ("settings", "num_items", "updates"),
    [
        ({}, 54_542, "dense"),
        ({"width": 64}, (1 << 20) - 1, "dense"),
        ({"width": 64}, 1 << 20, "adam"),
        ({"width": 128}, 1 << 19, "adam"),
        ({"width": 128, "loss": "cce"}, 5_000_000, "dense"),
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
