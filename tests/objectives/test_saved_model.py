"""A model on disk and back."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from objectives.config import TrialConfig
from objectives.errors import UserError
from objectives.saved_model import SavedModel, read_about


@pytest.fixture
def saved() -> SavedModel:
    config = TrialConfig.from_flat({"width": 8, "num_blocks": 1, "max_length": 6, "dropout": 0.5})
    weights = config.build_model(12).state_dict()
    ids = pa.array([b"a%d" % item for item in range(12)], pa.large_binary())
    return SavedModel(config, weights, ids, np.arange(12), 99, {"study": "s", "trial": 3})


def test_a_model_is_read_as_it_was_written(saved: SavedModel, tmp_path: Path) -> None:
    saved.save(tmp_path / "model")
    found = SavedModel.load(tmp_path / "model")
    assert found.config == saved.config
    assert found.item_ids == saved.item_ids
    assert (found.counts_V == saved.counts_V).all()
    assert (found.batch_tokens, found.about) == (99, {"study": "s", "trial": 3})
    model = found.build(torch.device("cpu"))
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved.weights[name])
    assert read_about(tmp_path / "model") == found.about


@pytest.mark.parametrize("file", ["weights.pt", "items.parquet", "model.json"])
def test_a_damaged_model_is_refused(file: str, saved: SavedModel, tmp_path: Path) -> None:
    saved.save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:20])
    with pytest.raises(UserError, match=r"the model is damaged|holds no model"):
        SavedModel.load(tmp_path)


def test_a_folder_without_a_model_is_refused(saved: SavedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model of python -m study.best --retrain"):
        read_about(tmp_path)
    saved.save(tmp_path)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(UserError, match="of another version of ParetoCut"):
        SavedModel.load(tmp_path)


def test_a_model_that_cannot_be_written_is_refused(saved: SavedModel) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        saved.save(Path("/proc/x"))
