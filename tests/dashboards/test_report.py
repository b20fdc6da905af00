import html
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from dashboards.page import render
from dashboards.queries import build_view
from dashboards.report import main, write_report
from objectives.config import TrialConfig
from objectives.errors import UserError
from study.ledger import Ledger, connect, default_storage
from study.records import StudyRecord, TrialRecord

STORE = "sqlite:////tmp/mlflow.db"

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


def render_page(record: StudyRecord, store: str = STORE) -> str:
    return render(build_view(record, store))


def without_plotly(page: str) -> str:
    scripts = re.findall(r"<script>.*?</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    return page.replace(max(scripts, key=len), "")


def test_page_is_one_small_file_without_network(mixed: StudyRecord) -> None:
    page = render_page(mixed)
    assert page.count("plotly.js v") == 1
    assert "Plotly, Inc.\n* All rights" in page
    assert '\n"use strict";var Plotly=(()=>{' in page, "read at once, not within a function"
    assert len(page.encode()) < 7_000_000
    own = without_plotly(page)
    assert "http://" not in own
    assert "https://" not in own
    assert not re.search(r"\ssrc=|<link|@import|url\(", own)
    assert "default-src 'none'" in own


def test_header_says_what_was_found(mixed: StudyRecord) -> None:
    page = without_plotly(render_page(mixed))
    assert (
        "Trial 1 is the best within 1.00 GiB: it reaches a validation NDCG@10 of 0.1200 with a "
        "peak memory of 512.0 MiB. The cheapest point of the front, trial 0, needs 256.0 MiB (50% "
        "of that) and reaches 0.1000 (83% of that). On the test split trial 1 reaches NDCG@10 "
        "0.1000, against 0.0400 for recommending the most popular items (2.5 times)."
    ) in page
    for text in ("ml-100k", "leave-one-out", "1.00 GiB", "CUDA allocator", STORE):
        assert text in page
    for text in ("2 on the front", "1 dominated", "2 over budget", "1 failed", "1 running"):
        assert text in page
    assert "Not drawn, as their memory is not known: 1 failed, 1 running." in page


def test_with_three_objectives_the_page_speaks_of_time(timed: StudyRecord) -> None:
    page = without_plotly(render_page(timed))
    assert (
        "The cheapest point of the front, trial 0, needs 256.0 MiB (50% of that) and reaches "
        "0.1000 (83% of that). The quickest point of the front, trial 2, takes 5.0 s, against "
        "20.0 s, and reaches 0.0800 (67% of that)."
    ) in page
    assert "quality against peak memory and time" in page
    assert 'id="figure-duration"' in page
    assert "the darker a trial, the longer it took" in page
    assert "from 0 to the budget and to the longest trial" in page


def test_with_quality_alone_the_page_speaks_of_no_front(mixed: StudyRecord) -> None:
    identity = {**mixed.identity, "objectives": ["quality"]}
    page = without_plotly(render_page(replace(mixed, identity=identity)))
    assert "The best trial" in page
    assert "1 best" in page
    for trials in (mixed.trials, (), mixed.trials[3:]):
        page = without_plotly(render_page(replace(mixed, identity=identity, trials=trials)))
        for word in ("front</", "the front", "Pareto front", "ypervolume"):
            assert word not in page.partition("<script>")[0]
    assert "there is no best one yet" in page


def test_memory_without_a_gpu_is_labelled_so(mixed: StudyRecord) -> None:
    record = replace(mixed, identity={**mixed.identity, "memory_source": "tracked"})
    assert "tracked tensor allocations on a machine without a GPU" in render_page(record)


def test_table_lists_the_front(mixed: StudyRecord) -> None:
    page = without_plotly(render_page(mixed))
    rows = re.findall(r"<tr.*?</tr>", page)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    assert cells[0] == [
        *("Trial", "Peak memory", "NDCG@10, validation", "NDCG@10, test", "HitRate@10, test"),
        *("Seconds", "batch_size", "learning_rate", "MLflow run"),
    ]
    assert cells[2] == [
        *("1", "512.0 MiB", "0.1200", "0.1000", "0.2000", "12.0", "16", "0.001"),
        f"<code>{'b' * 32}</code>",
    ]
    assert len(cells) == 3
    untested = [replace(trial, metrics={}) for trial in mixed.trials]
    assert ", test" not in without_plotly(render_page(replace(mixed, trials=tuple(untested))))


def test_a_row_of_the_table_copies_its_configuration(trained: StudyRecord) -> None:
    page = without_plotly(render_page(trained))
    cells = [re.findall(r"<td>(.*?)</td>", row)[:2] for row in re.findall(r"<tr.*?</tr>", page)]
    assert 'data-copies="toml-1"' in cells[2][1]
    assert cells[3] == ["2", "-"], "it has kept too little"
    (toml,) = re.findall(r'<pre id="toml-1"[^>]*>(.*?)</pre>', page, re.DOTALL)
    asked = tomllib.loads(html.unescape(toml))
    assert (asked["study"], asked["data"], asked["seed"]) == ("toy-trial-1", "ml-100k", 7)
    assert asked["space"] == TrialConfig().flat()
    assert "--config trial.toml</code>" in page
    identity = {**trained.identity, "memory_source": "recorded"}
    page = render_page(replace(trained, identity=identity))
    assert "--config trial.toml --data FILE</code>" in page
    assert "data-copies=" not in render_page(replace(trained, trials=trained.trials[2:]))


def test_repeats_and_what_more_trials_may_add_are_shown(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    trials = [make_trial(number) for number in range(10)]
    page = without_plotly(render_page(make_study(*trials)))
    assert "<dt>As many trials again</dt><dd>may add 0.0% to the hypervolume</dd>" in page
    assert "±" not in page
    page = without_plotly(render_page(make_study(*trials[:9], make_trial(9, repeat_of=0))))
    assert "As many trials again" not in page, "nine are too few, and a repeat is none"
    assert "<td>0.1000 ± 0.0000 (2 trainings)</td>" in page
    assert "Trials, 9 in all" in page
    assert "a validation NDCG@10 of 0.1000 ± 0.0000 (2 trainings) with" in page


def test_runs_of_a_server_are_linked_without_its_password(mixed: StudyRecord) -> None:
    page = without_plotly(render_page(mixed, "http://me:secret@mlflow.lan:5000/"))
    assert f'href="http://mlflow.lan:5000/#/runs/{"b" * 32}"' in page
    assert f'"1":"http://mlflow.lan:5000/#/runs/{"b" * 32}"' in page
    assert "secret" not in page
    assert "const runs = {};" in render_page(mixed)


def test_hostile_names_are_text(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>$name"
    page = render_page(
        make_study(
            make_trial(0, params={"loss": evil}, mlflow_run=evil),
            make_trial(1, "failed", reason=evil),
            name=evil,
            data={"name": evil, "split": evil},
            open=["loss", evil],
            space={"loss": [evil], evil: [evil]},
        ),
        f"http://host/{evil}",
    )
    own = without_plotly(page)
    assert "<script>alert" not in own
    assert "<img" not in own
    assert own.count("</script>") == 1
    assert "&lt;script&gt;alert(1)" in own


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([], ["No trial has ended yet.", "none yet", "No trial has a known peak memory yet."]),
        (["running"], ["No trial has ended yet.", "1 running"]),
        (
            ["infeasible", "infeasible"],
            ["there is no Pareto front yet", "No trial has trained to its end within the budget"],
        ),
        (["complete"], ["No other trial is on the front"]),
    ],
)
def test_what_there_is_not_is_said(
    outcomes: list[str], words: list[str], make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    page = render_page(make_study(*(make_trial(i, o) for i, o in enumerate(outcomes))))
    assert all(text in page for text in words)


def test_without_open_parameters_the_page_says_so(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    assert "The study has no open parameter" in render_page(make_study(make_trial(0), open=[]))


def test_a_thousand_trials_stay_small(make_trial: MakeTrial, make_study: MakeStudy) -> None:
    names = [f"setting_{i}" for i in range(8)]
    trials = [
        make_trial(
            i,
            quality=i**0.5 / 100,
            peak_memory=2**20 + 997 * i,
            params=dict.fromkeys(names, 0.0001 + i / 1234567),
            mlflow_run=f"{i:032x}",
        )
        for i in range(1000)
    ]
    space: dict[str, list[float]] = {name: [0, 1] for name in names}
    page = render_page(make_study(*trials, open=names, space=space), "https://mlflow.example.org")
    assert len(page.encode()) < 7_000_000


def test_report_is_replaced_whole(tmp_path: Path, mixed: StudyRecord) -> None:
    path = tmp_path / "new" / "report.html"
    assert write_report(mixed, path, STORE) == path
    write_report(replace(mixed, name="second"), path, STORE)
    assert "<h1>second</h1>" in path.read_text("utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_report_that_cannot_be_written_leaves_nothing(tmp_path: Path, mixed: StudyRecord) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(mixed, tmp_path / "report.html", STORE)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.fixture
def folder(tmp_path: Path, mixed: StudyRecord) -> Path:
    """A folder of studies with one study in which nothing has run."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (tmp_path / "toy").mkdir()
    Ledger.create(connect(default_storage(tmp_path, "toy")), "toy", mixed.identity)
    return tmp_path


def test_command_writes_into_the_folder_of_the_study(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.lan:5000")
    assert main(["--output-dir", str(folder)]) == 0
    path = folder / "toy" / "report.html"
    assert capsys.readouterr() == (f"{path}\n", "")
    assert "http://mlflow.lan:5000" in path.read_text("utf-8")


def test_command_writes_what_the_suffix_says(folder: Path) -> None:
    for suffix, begin in ((".csv", "trial,outcome,"), (".json", "{")):
        path = folder / f"trials{suffix}"
        assert main(["--output-dir", str(folder), "--output", str(path)]) == 0
        assert path.read_text("utf-8").startswith(begin)


def test_command_knows_the_local_store_and_the_storage_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", default_storage(folder, "toy"))
    path = folder / "elsewhere.html"
    assert main(["--output-dir", str(folder / "none"), "--output", str(path)]) == 0
    assert f"sqlite:///{folder / 'none' / 'mlflow.db'}" in path.read_text("utf-8")


def test_command_answers_bad_input_with_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (["--output-dir", str(folder / "empty")], "there is no study"),
        (["--output-dir", str(folder), "--study", "other"], "--study other"),
        (["--output-dir", str(folder), "--output", f"{folder}/toy.pdf"], "use one of .html, .csv"),
        (["--output-dir", str(folder), "--output", f"{folder}/toy/study.db/x.csv"], "be written"),
    ):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("python -m dashboards.report: ")
        assert words in err


def test_without_what_draws_images_one_sentence_says_so(folder: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['kaleido'] = None\n"
        "from dashboards.report import main\n"
        f"sys.exit(main(['--output-dir', {str(folder)!r}, '--output', 'front.png']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "--output with .png: images are drawn by kaleido" in done.stderr
    assert not (folder / "front.png").exists()


def test_neither_torch_nor_mlflow_is_imported() -> None:
    code = (
        "import sys, dashboards.report, dashboards.page\n"
        "assert not {'torch', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
