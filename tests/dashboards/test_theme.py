"""Colours that can be seen, and told apart, by everyone and on both pages."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import dashboards
from dashboards.theme import LOSS_COLORS, MARKS
from objectives.loss_config import LOSSES, loss_name

# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def linear(color: str) -> np.ndarray:
    """Linear RGB of "#rrggbb"."""
    values = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(linear(color) @ [0.2126, 0.7152, 0.0722])


def oklab(rgb: np.ndarray) -> np.ndarray:
    """The place in Oklab, where equal distances look equally different."""
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponents = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    lab: np.ndarray = opponents @ np.cbrt(cones @ np.clip(rgb, 0, 1))
    return lab


def test_every_loss_has_a_color() -> None:
    assert set(LOSS_COLORS) == {loss_name(loss) for loss in LOSSES}


@pytest.mark.parametrize("vision", VISIONS)
def test_losses_can_be_told_apart(vision: str) -> None:
    seen = {loss: oklab(VISIONS[vision] @ linear(color)) for loss, color in LOSS_COLORS.items()}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 0.09, (one, other)


def test_marks_stand_out_on_light_and_dark() -> None:
    """By as much as WCAG asks of graphics."""
    frame = Path(dashboards.__file__).with_name("frame.html").read_text("utf-8")
    pages = re.findall(r"--page: (#\w{6})", frame)
    assert len(pages) == 2
    for color in (*LOSS_COLORS.values(), *(mark.color for mark in MARKS.values())):
        for page in pages:
            high, low = sorted((luminance(color), luminance(page)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 3, (color, page)
