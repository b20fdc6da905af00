"""The public commands as a user runs them."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import study.best
import study.run
import study.status
from kernels.gpu import Gpu
from objectives import memory_gate
from objectives.config import TrialConfig
from study import cli
from study.best import as_toml
from study.records import find, read
from study.space import build_space
from study.spec import load_spec

# One thread: the suite has two cores, and such small tensors gain nothing from a second.
QUIET = {"OMP_NUM_THREADS": "1"}
SMALL = ["--space.width=8", "--space.max_length=10", "--space.num_blocks=1"]
SMALL += ["--space.max_epochs=2"]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def finished(tiny_csv: Path, made_store: None, command: Command) -> Path:
    """The folder of a study of three trials."""
    done = command("study.run", "--data", "tiny.csv", "--n-trials", "3", *SMALL)
    assert done.returncode == 0, done.stderr
    return tiny_csv.parent


def test_a_study_from_start_to_report_and_on(tiny_csv: Path, command: Command) -> None:
    run, finished = ["--data", "tiny.csv", *SMALL], tiny_csv.parent
    start = subprocess.run(
        [sys.executable, "-m", "study.run", *run, "--n-trials", "3"],
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert start.returncode == 0, start.stderr
    assert "Warning" not in start.stderr
    assert {path.name for path in (finished / "runs").iterdir()} >= {"tiny", "mlflow.db"}
    report = (finished / "runs" / "tiny" / "report.html").read_text()
    assert "tiny" in report

    again = command("study.run", *run, "--n-trials", "3", "--json")
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout)
    assert (result["study"], result["trials"], result["feasible"]) == ("tiny", 3, 3)
    assert "3 of them done" in again.stderr
    assert "NDCG@10" not in again.stderr, "no further trial was run"
    memory = [trial["peak_memory_bytes"] for trial in result["front"]]
    quality = [trial["ndcg_at_10"] for trial in result["front"]]
    assert memory == sorted(memory)
    assert quality == sorted(quality)
    assert all(trial["mlflow_run"] for trial in result["front"])
    assert result["baseline"]["ndcg_at_10"] > 0

    more = command("study.run", *run, "--n-trials", "4", "--json")
    assert json.loads(more.stdout)["trials"] == 4

    other = command("study.run", *run, "--space.width", "16", "--n-trials", "5")
    assert other.returncode == 2
    assert "space.width was 8, is 16" in other.stderr
    assert "Traceback" not in other.stderr

    status = command("study.status", "--json")
    assert json.loads(status.stdout)["outcomes"] == {"complete": 4}
    assert "4 trials finished" in command("study.status").stdout

    page = command("dashboards.report", "--output", "again.html")
    assert page.returncode == 0, page.stderr
    assert "tiny" in (finished / "again.html").read_text()


def test_the_best_trial_runs_again_from_its_file(finished: Path, command: Command) -> None:
    best = command("study.best", "--json", "--toml", "best.toml")
    assert best.returncode == 0, best.stderr
    trial = json.loads(best.stdout)
    assert "NDCG@10, test" in command("study.best").stdout
    specification = tomllib.loads((finished / "best.toml").read_text())
    assert specification["space"] == trial["config"]
    done = command("study.run", "--config", "best.toml", "--json")
    assert done.returncode == 0, done.stderr
    (repeated,) = json.loads(done.stdout)["front"]
    assert repeated["config"] == trial["config"]
    assert repeated["ndcg_at_10"] == trial["ndcg_at_10"], "same seed, same result"

    assert command("study.best").returncode == 2  # two studies now: choose one
    nothing = command("study.best", "--study", "tiny", "--budget", "1KiB")
    assert nothing.returncode == 3
    assert "none is in 1.0 KiB" in nothing.stderr
    wrong = command("study.best", "--study", "tiny", "--budget", "small")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    unwritable = command("study.best", "--study", "tiny", "--toml", "/proc/x/y")
    assert (unwritable.returncode, unwritable.stderr.count("\n")) == (2, 1)


@pytest.mark.usefixtures("made_store")
def test_a_search_ends_by_patience_and_its_front_is_confirmed(
    tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    run = ["--data", "tiny.csv", *SMALL, "--n-trials", "40", "--patience", "2", "--confirm", "2"]
    assert study.run.main(run) == cli.OK
    out, err = capsys.readouterr()
    assert err.count("the last 2 trials did not add to the front: the search has ended") == 1
    assert " (2 trainings)" in out
    record = read(find(None, None, Path("runs")))
    assert len(record.finished) < 40
    assert {trial.trainings for trial in record.front()} == {2}

    assert study.run.main([*run, "--json"]) == cli.OK
    result = json.loads(capsys.readouterr().out)
    assert result["trials"] == len(record.finished), "nothing was left to do"
    assert result["repeats"] == len(record.repeats) > 0
    assert all(trial["trainings"] == 2 for trial in result["front"])

    assert study.status.main([]) == cli.OK
    assert f"{len(record.repeats)} more trials repeat configurations" in capsys.readouterr().out
    assert study.status.main(["--json"]) == cli.OK
    status = json.loads(capsys.readouterr().out)
    assert (status["finished"], status["repeats"]) == (result["trials"], result["repeats"])
    assert sum(status["outcomes"].values()) == result["trials"]
    assert study.best.main([]) == cli.OK
    assert " (2 trainings)" in capsys.readouterr().out
    assert study.best.main(["--json", "--toml", "best.toml"]) == cli.OK
    best = json.loads(capsys.readouterr().out)
    assert best["ndcg_at_10_std"] == result["front"][-1]["ndcg_at_10_std"] is not None
    specification = tomllib.loads(Path("best.toml").read_text())
    assert specification["seed"] == best["trial"], "that of its first training"


LOSSES = ["cce-", "sce", "rece", "bce+", "cce"]
OWN = {"cce-": "negatives", "bce+": "negatives", "sce": "bucket_items"}


@pytest.mark.usefixtures("made_store")
def test_a_study_of_losses(tiny_csv: Path, command: Command) -> None:
    run = ["--data", "tiny.csv", *SMALL, "--space.loss", *LOSSES, "--n-trials", "5"]
    run += ["--seed", "6"]  # whose first five trials are of the five losses
    run += ["--space.bucket_items", "4", "16"]
    done = command("study.run", *run)
    assert done.returncode == 0, done.stderr
    record = read(find(None, None, tiny_csv.parent / "runs"))
    assert {trial.outcome for trial in record.trials} == {"complete"}
    assert {trial.config["loss"] for trial in record.trials} == set(LOSSES)
    for trial in record.trials:
        loss = trial.config["loss"]
        own = {OWN[loss]} if loss in OWN else set()
        assert set(trial.params) == {"loss", "batch_size", "learning_rate"} | own
        # The file of a trial is that trial, and fits this version's checks.
        file = tiny_csv.parent / "trial.toml"
        file.write_text(as_toml(record, trial))
        space = build_space(load_spec({}, file).space, num_items=30, num_sequences=60)
        assert space.open == {}
        assert TrialConfig.from_flat(space.fixed).flat() == trial.config
    shown = {name for trial in record.front() for name in trial.params}
    assert shown <= set(done.stdout.splitlines()[1].split())
    report = (tiny_csv.parent / "runs" / "tiny" / "report.html").read_text()
    assert "bucket_items" in report


@pytest.mark.usefixtures("made_store")
def test_a_study_has_the_objectives_that_it_was_started_with(
    tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    run = ["--data", "tiny.csv", *SMALL, "--n-trials", "2"]
    timed = ["--objectives", "quality", "time"]
    assert run_here(capsys, *run, *timed)[0] == cli.OK
    record = read(find(None, None, Path("runs")))
    assert record.objectives == ["quality", "time"]
    for trial in record.complete:
        assert record.point(trial) == (trial.quality, trial.seconds)
    code, sentence = run_here(capsys, *run)
    assert code == cli.USAGE
    assert "objectives was ['quality', 'time'], is ['quality', 'memory']" in sentence
    assert run_here(capsys, *run, *timed)[0] == cli.OK
    assert study.best.main(["--seconds", "0.0001"]) == cli.NOTHING_FEASIBLE
    assert "none is in" in (sentence := capsys.readouterr().err)
    assert "and 0.0001 s" in sentence
    for wrong in ("soon", "-1", "nan"):
        assert study.best.main(["--seconds", wrong]) == cli.USAGE
        assert f"--seconds {wrong}: write a number of seconds" in capsys.readouterr().err


@pytest.mark.usefixtures("made_store")
@pytest.mark.parametrize("loss", ["cce-", "cce"])
def test_a_study_of_an_earlier_version_goes_on(
    loss: str,
    tiny_csv: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    run = ["--data", "tiny.csv", *SMALL, "--timeout", "0s", "--space.loss", loss]
    assert run_here(capsys, *run)[0] == cli.OK
    study = find(None, None, Path("runs")).study
    identity = study.user_attrs["paretocut"]
    # It knew three settings of losses, and kept all of them whatever the loss.
    space = identity["space"]
    for name in ("candidates", "correction"):
        space.pop(name, None)
    del identity["objectives"]
    space |= {"negatives": space.get("negatives", 256), "group_size": 128}
    study.set_user_attr("paretocut", identity)
    assert run_here(capsys, *run)[0] == cli.OK
    other = {"cce-": ["--space.correction", "none"], "cce": ["--space.width", "16"]}[loss]
    code, sentence = run_here(capsys, *run, *other)
    assert code == cli.USAGE
    assert {"cce-": "space.correction was logq, is none", "cce": "space.width was 8, is 16"}[
        loss
    ] in sentence
    code, sentence = run_here(capsys, *run[:-1], "sce")
    assert code == cli.USAGE
    assert f"space.loss was {loss}, is sce" in sentence


def trials(database: Path) -> Iterator[tuple[str, int]]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        yield from connection.execute("select state, count(*) from trials group by state")


def wait_for_epoch(database: Path, process: subprocess.Popen[str], after: int) -> None:
    """Until some trial with a higher number has reported an epoch."""
    for _ in range(1200):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
        try:
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
                (newest,) = connection.execute(
                    "select max(number) from paretocut_epochs"
                ).fetchone()
        except sqlite3.OperationalError:
            continue
        if newest is not None and newest > after:
            return
    pytest.fail("no epoch was reported within two minutes")


@pytest.mark.usefixtures("made_store")
@pytest.mark.timeout(600)
def test_a_stopped_study_goes_on_with_nothing_lost(tiny_csv: Path, command: Command) -> None:
    arguments = [sys.executable, "-m", "study.run", "--data", "tiny.csv", "--n-trials", "3"]
    arguments += ["--space.width", "8", "--space.max_length", "10"]
    arguments += ["--space.max_epochs", "12", "--space.patience", "12", "--pruning", "none"]
    database = tiny_csv.parent / "runs" / "tiny" / "study.db"
    # The trial that is killed is tried again, and again after it was handed back.
    for trial, (signals, code, left) in enumerate(
        (
            ([signal.SIGKILL], -9, {"COMPLETE": 1, "RUNNING": 1}),
            ([signal.SIGTERM], 143, {"COMPLETE": 1, "FAIL": 2, "WAITING": 1}),
            ([signal.SIGINT], 130, {"COMPLETE": 2, "FAIL": 2}),
        ),
        start=1,
    ):
        process = subprocess.Popen(
            arguments,
            cwd=tiny_csv.parent,
            env={**os.environ, **QUIET},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_epoch(database, process, after=trial - 1)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == code, errors
        assert "Traceback" not in errors
        assert dict(trials(database)) == left

    rest = command(*arguments[2:], "--json")
    assert rest.returncode == 0, rest.stderr
    assert json.loads(rest.stdout)["trials"] == 3
    assert dict(trials(database)) == {"COMPLETE": 3, "FAIL": 2}


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        code = study.run.main(list(arguments))
    except SystemExit as stopped:
        code = int(str(stopped.code))
    return code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "absent"], ("absent", "ml-100k")),
        (["--columns.user", "who"], ("no column 'who'", "user, item, time")),
        (["--memory-budget", "6 pears"], ("6 pears", "6GiB")),
        (["--memory-budget", "0"], ("--memory-budget 0", "greater than 0")),
        (["--memory-budget", "10KiB"], ("10.0 KiB", "smallest configuration", "needs")),
        (["--memory-budget", "9000TiB"], ("the machine has",)),
        (["--memory-budget", "0.00001%"], ("smallest configuration", "needs")),
        (["--memory-budget", "A100"], ("--memory-budget A100", "A100-40GB or A100-80GB")),
        (["--space.negatives", "30"], ("30 items", "at most 29")),
        (["--space.batch_size", "61"], ("60 training sequences",)),
        (["--space.loss", "bpr"], ("--space.loss bpr", "cce-, cce, bce, bce+, gbce, sce, rece")),
        (
            ["--space.bucket_items", "16"],
            ("--space.bucket_items: loss cce- has no such setting; sce has",),
        ),
        (
            ["--space.loss", "sce", "--space.bucket_items", "31"],
            ("--space.bucket_items 31", "30 items", "at most 30"),
        ),
        (
            ["--space.candidates", "in-batch", "--space.negatives", "8"],
            ("loss cce- with candidates in-batch has no such setting",),
        ),
        (["--space.batch_size", "20", "10"], ("inverted", "10 20")),
        (["--space.batch_size"], ("--space.batch_size", "--help")),
        (["--spend-budget", "width"], ("--spend-budget width", "'batch_size' or 'negatives'")),
        (["--spend-budget", "batch_size"], ("predicted for a GPU", "leave it out")),
        (
            ["--spend-budget", "negatives", "--space.loss", "sce"],
            ("--spend-budget negatives: loss sce has no such setting",),
        ),
        (
            ["--spend-budget", "batch_size", "--space.batch_size", "8"],
            ("has no range", "--space.batch_size"),
        ),
        (["--sampler", "best"], ("--sampler best", "'auto', 'front', 'tpe'", "'random'")),
        (["--sampler", "grid"], ("--sampler grid", "--space.negatives")),
        (["--sampler", "front"], ("--sampler front", "for a GPU", "use --sampler tpe")),
        (["--objectives", "memory"], ("--objectives: quality is missing",)),
        (["--objectives", "quality", "quality"], ("--objectives: quality is named more than",)),
        (["--objectives", "quality", "speed"], ("--objectives: speed", "quality, memory, time")),
        (
            ["--objectives", "quality", "memory", "time", "--sampler", "front"],
            ("--sampler front", "--objectives names both", "use --sampler tpe"),
        ),
        (["--device", "cuda:7"], ("--device cuda:7", "--device cpu")),
        (["--output-dir", "tiny.csv/runs"], ("tiny.csv/runs", "name another")),
        (["--storage", "sqlite:////proc/x/study.db"], ("/proc/x",)),
        (
            ["--storage", "postgresql://u:secret@127.0.0.1:1/x"],
            ("postgresql://127.0.0.1:1/x", "cannot be used"),
        ),
        (["--tracking-uri", "http://127.0.0.1:1"], ("MLflow server does not answer",)),
        (["--config", "absent.toml"], ("absent.toml", "cannot be read")),
        (["--nonsense"], ("--nonsense", "--help")),
        (["--min-item-users", "61"], ("no interaction is left", "--min-item-users")),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    tiny_csv: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    before = sorted(tiny_csv.parent.iterdir())
    code, sentence = run_here(capsys, "--data", "tiny.csv", *arguments)
    assert code == cli.USAGE
    assert sentence.startswith("python -m study.run: ")
    for word in words:
        assert word in sentence
    assert "secret" not in sentence
    assert sorted(tiny_csv.parent.iterdir()) == before


@pytest.fixture
def predicted_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are predicted as on a GPU, though trials run on the CPU."""
    pytest.importorskip("triton")
    monkeypatch.setattr(memory_gate, "gpu_of", lambda _: Gpu(9, 132))
    monkeypatch.setattr(memory_gate, "triton_is_default", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Tiny")


@pytest.mark.usefixtures("made_store", "predicted_peaks")
def test_front_goes_on_without_repeating_a_trial(
    tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    # By default, as peaks are predicted.
    run = ["--data", "tiny.csv", *SMALL]
    code, _ = run_here(capsys, *run, "--n-trials", "4")
    assert code == cli.OK
    code, _ = run_here(capsys, *run, "--n-trials", "6")
    assert code == cli.OK
    trials = read(find("tiny", None, Path("runs"))).trials
    assert len({tuple(trial.params.values()) for trial in trials}) == 6
    # TPE would draw it at random.
    assert trials[0].params["learning_rate"] == 1e-3


@pytest.mark.usefixtures("made_store")
def test_a_grid_ends_when_every_combination_has_run(
    tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    grid = ["--space.batch_size", "8", "--space.learning_rate", "1e-3", "--space.loss", "cce-"]
    grid += ["cce", "--space.negatives", "4", "8", "16", "--space.max_epochs", "1"]
    for n_trials in ("3", "50"):
        run = ["--data", "tiny.csv", "--sampler", "grid", *SMALL, *grid, "--n-trials", n_trials]
        code, _ = run_here(capsys, *run)
        assert code == cli.OK
    trials = read(find("tiny", None, Path("runs"))).trials
    assert sorted(tuple(trial.params.values()) for trial in trials) == [
        ("cce",),
        ("cce-", 4),
        ("cce-", 8),
        ("cce-", 16),
    ]


@pytest.mark.usefixtures("predicted_peaks")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--space.loss", "cce-", "sce"], "peaks of sce here are not predicted in milliseconds"),
        (["--spend-budget", "batch_size"], "with --spend-budget batch_size all trials take about"),
    ],
)
def test_front_refuses_what_it_cannot_tell_apart(
    tiny_csv: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    code, sentence = run_here(capsys, "--data", "tiny.csv", "--sampler", "front", *arguments)
    assert code == cli.USAGE
    assert words in sentence


@pytest.mark.usefixtures("made_store")
def test_a_share_of_the_memory_is_the_same_budget_after_a_reboot(
    tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_csv.parent)

    def run(budget: str, total: float) -> tuple[int, str]:
        machine = SimpleNamespace(total=int(total), available=int(total))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
        flags = ["--data", "tiny.csv", *SMALL, "--timeout", "0s", "--memory-budget", budget]
        return run_here(capsys, *flags)

    assert run("50%", 4e9)[0] == cli.OK
    assert run("50%", 4.001e9)[0] == cli.OK
    for budget, total, asked in (
        ("51%", 4e9, 2_040_000_000),
        ("50%", 8e9, 4_000_000_000),
        ("2000000001B", 4e9, 2_000_000_001),
    ):
        code, sentence = run(budget, total)
        assert code == cli.USAGE
        assert f"memory_budget was 2000000000, is {asked}" in sentence
    assert run("2GB", 4e9)[0] == cli.OK


def test_who_has_less_memory_than_the_study_allows_cannot_join_it(
    tiny_csv: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_csv.parent)
    run = ["--data", "tiny.csv", *SMALL, "--timeout", "0s"]
    assert run_here(capsys, *run, "--memory-budget", "3GiB")[0] == cli.OK
    machine = SimpleNamespace(total=2 << 30, available=2 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    code, sentence = run_here(capsys, *run)
    assert code == cli.USAGE
    assert "--memory-budget 3.00 GiB: the machine has 2.00 GiB" in sentence


@pytest.mark.usefixtures("made_store")
def test_a_study_without_a_trial_that_trained_exits_with_3(
    tiny_csv: Path, command: Command
) -> None:
    run = ["--data", "tiny.csv", *SMALL, "--n-trials", "2", "--space.learning_rate", "1e30"]
    done = command("study.run", *run)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("diverged") == 2
    assert "no trial of study tiny trained to its end within the budget" in done.stdout
    assert (
        "No trial has trained" in (tiny_csv.parent / "runs" / "tiny" / "report.html").read_text()
    )


@pytest.mark.usefixtures("made_store")
def test_a_study_without_time_has_no_trial_and_no_verdict(command: Command) -> None:
    done = command("study.run", "--data", "tiny.csv", *SMALL, "--timeout", "0s")
    assert done.returncode == 0, done.stderr
    assert "study tiny has no finished trial yet" in done.stdout
    assert "study tiny has no finished trial yet" in command("study.status").stdout


def test_dry_run_prints_and_writes_nothing(tiny_csv: Path, command: Command) -> None:
    done = command("study.run", "--data", "tiny.csv", "--dry-run")
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    assert shown["space"]["negatives"] == [16, 29]
    assert 16 <= shown["sampled_trial"]["negatives"] <= 29
    assert not (tiny_csv.parent / "runs").exists()


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
def test_users_without_a_target_are_counted_where_a_study_starts(
    split: str, tiny_csv: Path, command: Command
) -> None:
    with tiny_csv.open("a") as file:
        file.write("short,i1,1\nshort,i2,2\n")
    arguments = ["--data", "tiny.csv", "--split", split, "--min-user-items", "1", "--dry-run"]
    done = command("study.run", *arguments)
    assert done.returncode == 0, done.stderr
    if split == "temporal":
        assert "test users have no target and are skipped" in done.stderr
    else:
        assert "1 users of fewer than 3 interactions are neither validated nor" in done.stderr


def test_help_names_the_words_that_a_setting_takes(command: Command) -> None:
    done = command("study.run", "--help")
    shown = " ".join(done.stdout.split())
    assert "(kept, recomputed; default: kept)" in shown
    assert "(auto, dense, adam, adagrad; default: auto)" in shown
    assert "(cce-, cce, bce, bce+, gbce, sce, rece; default: cce-)" in shown
    assert "(loss cce-, bce+, gbce; default: 256)" in shown
    assert "(loss sce; mixed, random; default: mixed)" in shown


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("study.run", ["--help"]),
        ("study.status", []),
        ("study.best", []),
        ("dashboards.report", []),
    ],
)
def test_torch_and_mlflow_are_not_imported_for_it(
    tmp_path: Path, module: str, arguments: list[str]
) -> None:
    code = (
        f"import sys\nfrom {module} import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
