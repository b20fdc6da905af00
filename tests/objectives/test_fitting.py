"""Training to a known epoch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from objectives import checkpoint
from objectives.config import TrialConfig
from objectives.data import PreparedData
from objectives.errors import UserError
from objectives.fitting import Fitted, fit
from objectives.trial import DivergedTrial, InfeasibleTrial

SMALL = {"width": 8, "num_blocks": 1, "max_length": 6, "batch_size": 8, "schedule": "cosine"}
SMALL |= {"negatives": 4, "max_epochs": 6}


class Stopped(Exception):
    pass


def trained(data: PreparedData, folder: Path, stop: int = 0, **more: Any) -> Fitted:
    """Four epochs of the schedule's six; stop: an epoch behind which the process ends."""
    given = {"epochs": 4, "budget": 1 << 30, "training": {"seed": 0}, **more}
    config = TrialConfig.from_flat({**SMALL, **given.pop("settings", {})})

    def report(epoch: int, loss: float) -> None:
        if epoch == stop:
            raise Stopped

    return fit(
        config,
        data.train,
        data.num_items,
        torch.device("cpu"),
        path=folder / "checkpoint.pt",
        report=report,
        **given,
    )


def equal(first: Fitted, second: Fitted) -> bool:
    return all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())


def test_a_training_that_was_stopped_goes_on(
    cycle: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(cycle, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert whole.peak_memory > 0
    # However long it took to write, the state of every epoch is kept.
    monkeypatch.setattr(checkpoint.Pace, "allows", lambda self: True)
    with pytest.raises(Stopped):
        trained(cycle, tmp_path, stop=3)
    assert equal(whole, trained(cycle, tmp_path))
    with pytest.raises(Stopped):
        trained(cycle, tmp_path, stop=2)
    with pytest.raises(UserError, match="of another training"):
        trained(cycle, tmp_path, training={"seed": 1})


def test_another_seed_and_other_weights_to_begin_with(cycle: PreparedData, tmp_path: Path) -> None:
    first = trained(cycle, tmp_path)
    assert not equal(first, trained(cycle, tmp_path, training={"seed": 1}))
    again = trained(cycle, tmp_path, weights=first.weights)
    assert not equal(first, again)
    stayed = trained(cycle, tmp_path, weights=first.weights, settings={"learning_rate": 1e-30})
    assert equal(first, stayed)


def test_what_does_not_fit_or_diverges(cycle: PreparedData, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleTrial):
        trained(cycle, tmp_path, budget=1 << 12)
    with pytest.raises(DivergedTrial):
        trained(cycle, tmp_path, settings={"learning_rate": 1e30})
