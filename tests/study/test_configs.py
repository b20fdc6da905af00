"""The configurations that users are given."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from objectives.config import TrialConfig
from study.space import build_space
from study.spec import load_spec

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_there_is_one_for_each_data_set_of_the_readme() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert {path.name for path in CONFIGS} == {"beauty.toml", "globo-news.toml", "ml-1m.toml"}
    for path in CONFIGS:
        assert f"--config configs/{path.name}" in readme


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_fixes_every_setting_that_a_study_would_search(path: Path) -> None:
    spec = load_spec({}, path)
    space = build_space(spec.space, num_items=50_000, num_sequences=5_000)
    assert space.open == {}
    assert spec.n_trials == 3
    config = TrialConfig.from_flat(space.fixed)
    assert config.loss.loss == "cce-"
    assert config.training.schedule == "cosine"


@pytest.mark.usefixtures("made_store")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains(path: Path, tmp_path: Path, command: Command) -> None:
    random = np.random.default_rng(0)
    log = [
        f"{user},{(user + step) % 30},{1000 * step + user + random.integers(500)}"
        for user in range(150)
        for step in range(8)
    ]
    data = tmp_path / "log.csv"
    data.write_text("\n".join(["user,item,time", *log, ""]))
    small = {"max_epochs": 1, "width": 8, "num_blocks": 1, "num_heads": 1, "negatives": 20}
    flags = [f"--space.{name}={value}" for name, value in {**small, "batch_size": 64}.items()]
    flags += ["--n-trials=2", "--json", "--device=cpu", f"--output-dir={tmp_path / 'runs'}"]
    if "validation_users" in path.read_text():
        flags.append("--validation-users=20")
    run = command("study.run", "--config", str(path), "--data", str(data), *flags)
    assert run.returncode == 0, run.stderr
    front = json.loads(run.stdout)
    assert front
