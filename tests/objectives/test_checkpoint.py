from pathlib import Path

import pytest
import torch

from objectives import checkpoint
from objectives.errors import UserError

TRAINING = {"width": 8, "seed": 3, "data": "abc"}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "trial.pt"
    assert checkpoint.load(path, TRAINING) is None
    for number in (1, 2):
        checkpoint.save(path, TRAINING, {"step": number, "weights": torch.full((2,), number)})
    state = checkpoint.load(path, TRAINING)
    assert state is not None
    assert state["step"] == 2
    assert state["weights"].tolist() == [2, 2]
    assert [file.name for file in path.parent.iterdir()] == ["trial.pt"]


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trial.pt"
    checkpoint.save(path, TRAINING, {"step": 1})

    def fail(_: object, stream: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, TRAINING, {"step": 2})
    assert checkpoint.load(path, TRAINING) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint"])
def test_a_file_that_cannot_be_read_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    path.write_bytes(content)
    assert checkpoint.load(path, TRAINING) is None


def test_another_training_is_refused_with_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    checkpoint.save(path, TRAINING, {})
    with pytest.raises(UserError, match=r"\(depth, width differ\); move it away"):
        checkpoint.load(path, TRAINING | {"width": 9, "depth": 2})
