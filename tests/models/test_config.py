import pytest
from pydantic import ValidationError

from models import ModelConfig


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="width 64 is not a multiple of num_heads 3"):
        ModelConfig(width=64, num_heads=3)
    assert ModelConfig(width=66, num_heads=3).width == 66


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 0),
        ("width", 0),
        ("num_blocks", 0),
        ("num_heads", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        ModelConfig.model_validate({name: value})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValidationError, match="depth"):
        ModelConfig.model_validate({"depth": 2})


def test_a_configuration_cannot_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig().width = 8  # type: ignore[misc]
