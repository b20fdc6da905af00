"""Studies whose trials are looked up, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import study.best
import study.run
from objectives.config import TrialConfig
from objectives.recorded import TABLES, RecordedObjective
from study import cli
from study.records import StudyRecord, find, read
from study.spec import load_spec
from study.subject import space_of

TABLE = """\
dataset,batch_size,negatives,sequence_length,ndcg_at_10,peak_memory_gib,epoch_seconds,epochs
music,32,64,16,0.125,1.5,2.5,4
music,32,128,16,0.25,3,2,5
music,32,inf,16,0.5,8,10,2
beer,32,64,16,0.75,1,1,1
beer,64,64,16,0.75,1,1,0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    return study.run.main(["--recorded", *arguments])


def record(name: str) -> StudyRecord:
    return read(find(name, None, Path("runs")))


@pytest.mark.usefixtures("made_store")
def test_a_table_that_comes_with_paretocut_is_searched_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study.run", "--recorded", "beauty", "--n-trials", "9"]
    done = subprocess.run(
        [*command, "--json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["study"], result["trials"]) == ("beauty", 9)
    assert "9 trials on recorded runs, memory budget 380.4 MiB (as recorded)" in done.stderr
    assert result["feasible"] < 9
    assert " with no more memory" in done.stderr, "what was stopped says why"
    page = (tmp_path / "runs" / "beauty" / "report.html").read_text()
    assert "a table of recorded runs" in page
    assert "pruned" in page

    best = ["--output-dir", str(tmp_path / "runs"), "--toml", str(tmp_path / "best.toml")]
    assert study.best.main(best) == cli.OK
    spec = load_spec({}, tmp_path / "best.toml")
    assert (spec.recorded, spec.space["num_heads"]) == (None, 4), "to be trained on other data"

    found = read(find("beauty", None, tmp_path / "runs"))
    cells = RecordedObjective(TABLES / "beauty.csv")
    for trial in found.trials:
        cell = cells.cells[cells.key(TrialConfig.from_flat(dict(trial.config)))]
        assert trial.peak_memory == cell.peak_bytes
        assert trial.seconds is not None
        if trial.outcome == "complete":
            assert (trial.quality, trial.seconds) == (cell.quality, cell.seconds)
            assert trial.metrics["test/ndcg_at_10"] == cell.test
        else:
            assert trial.outcome == "pruned"
            assert trial.epochs < cell.epochs
            assert trial.seconds == pytest.approx(cell.seconds * trial.epochs / cell.epochs, 0.2)


@pytest.mark.usefixtures("made_store")
def test_without_pruning_all_train_to_their_end(folder: Path) -> None:
    assert run("beauty", "--n-trials", "9", "--pruning", "none") == cli.OK
    assert len(record("beauty").complete) == 9


@pytest.mark.usefixtures("made_store")
def test_a_file_of_several_data_sets_and_what_is_over_the_budget(folder: Path) -> None:
    assert run("runs.csv:music", "--n-trials", "3", "--memory-budget", "4GiB") == cli.OK
    found = record("music")
    assert {trial.quality for trial in found.complete} <= {0.125, 0.25}
    assert all(trial.peak_memory == 8 << 30 for trial in found.refused)
    # The same runs, and only these, go on.
    assert run("runs.csv:music", "--n-trials", "4", "--memory-budget", "4GiB") == cli.OK
    assert len(record("music").finished) == 4
    (folder / "runs.csv").write_text(TABLE.replace("0.25", "0.26"))
    assert run("runs.csv:music", "--n-trials", "5", "--memory-budget", "4GiB") == cli.USAGE


@pytest.mark.usefixtures("made_store")
def test_the_space_is_that_of_the_table(folder: Path) -> None:
    space = space_of(RecordedObjective(folder / "runs.csv", "music"))
    assert list(space.open) == ["loss", "negatives"]
    assert space.fixed == {"batch_size": 32, "max_length": 16}
    assert run("runs.csv:beer", "--n-trials", "2", "--sampler", "grid") == cli.OK
    assert {trial.outcome for trial in record("beer").finished} <= {"complete", "diverged"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], ("--recorded nothing", "not a file, nor one of beauty, ml-1m")),
        (["runs.csv"], ("runs.csv", "several data sets; choose from music, beer")),
        (["runs.csv:wine"], ("runs.csv", "no runs of 'wine'; choose from music, beer")),
        (["ml-1m", "--data", "x.csv"], ("--data: --recorded ml-1m says", "leave one")),
        (["ml-1m", "--space.width", "8"], ("--space.width: --recorded ml-1m says",)),
        (["ml-1m", "--spend-budget", "negatives"], ("--spend-budget: --recorded",)),
        (
            ["runs.csv:music", "--memory-budget", "1GiB"],
            ("--memory-budget 1.00 GiB", "took 1.50 GiB", "raise the budget"),
        ),
        (["ml-1m", "--pruning", "all"], ("--pruning all", "'dominance' or 'none'")),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: tuple[str, ...]
) -> None:
    assert run(*arguments) == cli.USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert [path.name for path in folder.iterdir()] == ["runs.csv"]
