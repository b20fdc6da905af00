import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from objectives.errors import UserError
from study import environment


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, expected in ((0, "cpu"), (2, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert environment.choose_device("auto") == torch.device(expected)
    assert environment.choose_device("cpu") == torch.device("cpu")
    assert environment.choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="torch sees 2 CUDA devices"):
        environment.choose_device("cuda:2")


def test_a_trial_says_what_it_ran_on() -> None:
    tags = environment.describe(torch.device("cpu"))
    assert tags["torch"] == torch.__version__
    assert tags["device"] == "cpu"
    assert {"paretocut", "python", "optuna"} <= set(tags)


def test_a_source_tree_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "paretocut":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(environment, "version", version)
    assert environment.describe(torch.device("cpu"))["paretocut"] == "not installed"


def test_the_commit_is_that_of_the_checkout_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment._commit() == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert environment._commit() == "", "a checkout without a commit"
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "c"], check=True)
    assert len(environment._commit()) == 40
