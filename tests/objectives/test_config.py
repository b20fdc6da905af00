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
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        TrialConfig.from_flat({name: value})


def test_configurations_do_not_import_torch() -> None:
    code = "import sys, objectives.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
