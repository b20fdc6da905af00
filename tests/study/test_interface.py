"""The interface for Python."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import study
from objectives.errors import UserError
from study import Study

SMALL = {"width": 8, "max_length": 10, "num_blocks": 1, "max_epochs": 1, "batch_size": [16, 32]}


@pytest.mark.usefixtures("made_store")
def test_a_study_in_python(tiny_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    asked = Study(data="tiny.csv", n_trials=2, memory_budget="1GiB", space=SMALL, timeout=None)
    assert asked.spec.n_trials == 2
    with pytest.raises(UserError, match="there is no study"):
        asked.trials()
    ran = asked.run()
    assert ran.name == "tiny"
    assert [trial.outcome for trial in ran.trials()] == ["complete", "complete"]
    assert ran.record.budget == 1 << 30
    assert all(trial.config["batch_size"] in range(16, 33) for trial in ran.trials())
    assert all(len(trial.curve) == 1 for trial in ran.trials())
    best = ran.best()
    assert best is not None
    assert best == ran.front()[-1]
    assert ran.best("1KiB") is None
    report = ran.report()
    assert report is not None
    assert report.is_file()
    more = Study(data="tiny.csv", n_trials=3, memory_budget="1GiB", space=SMALL).run()
    assert len(more.trials()) == 3


def test_a_table_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path))
    table = pd.DataFrame({"user": ["a", "b"], "item": [1, 2]}, index=[7, 8])
    asked = Study(data=table, study="t")
    assert Path(asked.spec.data).parent == tmp_path / "raw"
    assert pq.read_table(asked.spec.data).to_pydict() == {"user": ["a", "b"], "item": [1, 2]}
    # The same one, in other hands: the study goes on with it.
    again = Study(data=pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata())
    assert pq.read_table(again.spec.data).equals(pq.read_table(asked.spec.data))
    assert Study(data=table).spec.data == asked.spec.data
    with pytest.raises(UserError, match="the table: "):
        Study(data=pd.DataFrame({"user": [1, "b"], "item": [1, 2]}))


@pytest.mark.usefixtures("made_store")
def test_sections_are_dictionaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    numbers = range(240)
    table = pa.table(
        {
            "who": [number // 12 for number in numbers],
            "item": [(7 * number) % 20 for number in numbers],
            "event": [("view", "buy", "cart")[number % 3] for number in numbers],
            "rating": [number % 2 for number in numbers],
        }
    )
    ran = Study(
        data=table,
        study="t",
        n_trials=1,
        columns={"user": "who", "time": "none"},
        filter={"events": ["view", "buy"], "min_rating": 0.5},
        space={**SMALL, "batch_size": 8},
        min_item_users=1,
    ).run()
    assert [trial.outcome for trial in ran.trials()] == ["complete"]
    assert ran.record.identity["request"]["filter"] == {
        "events": ["view", "buy"],
        "min_rating": 0.5,
    }


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UserError, match=r"trials: python -m study\.run has no such flag"):
        Study(trials=3)
    with pytest.raises(UserError, match="--n-trials"):
        Study(n_trials=0)
    with pytest.raises(UserError, match="no-such"):
        Study(data="no-such.csv").run()
    with pytest.raises(AttributeError, match="Trial"):
        study.Trial  # noqa: B018


def test_the_package_imports_little() -> None:
    code = "import study, study.best, sys; print({'torch', 'optuna', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
