"""The predicted peaks as a user asks for them."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import study.estimate
from kernels.gpu import Gpu
from objectives.config import DataConfig, TrialConfig
from objectives.data import prepare
from objectives.memory_model import DataShape, MemoryModel
from study import cli
from study.estimate_table import PARTS

pytest.importorskip("triton")

H200 = Gpu(capability=9, num_sms=132)
SIZE = ["--items", "50000", "--users", "20000", "--mean-length", "60"]
SHAPE = DataShape.of_length(50_000, 20_000, 60)


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = study.estimate.main(list(arguments))
    except SystemExit as stopped:
        code = int(str(stopped.code))
    shown = capsys.readouterr()
    return code, shown.out, shown.err.strip()


def estimated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run_here(capsys, *arguments, "--json")
    assert code == cli.OK, err
    shown: dict[str, Any] = json.loads(out)
    return shown


def peak(budget: int, **settings: Any) -> int:
    return MemoryModel(SHAPE, H200).predict(TrialConfig.from_flat(settings), budget).peak


def test_a_grid_is_the_product_and_its_numbers_are_the_models(
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid = ["--batch-size", "256", "512", "--negatives", "511", "1023", "--width", "128"]
    shown = estimated(capsys, *SIZE, *grid, "--memory-budget", "600MiB")
    assert (shown["num_items"], shown["num_sequences"]) == (50_000, 20_000)
    rows = shown["configurations"]
    found = {(row["config"]["batch_size"], row["config"]["negatives"]): row for row in rows}
    assert set(found) == {(256, 511), (256, 1023), (512, 511), (512, 1023)}
    for (batch_size, negatives), row in found.items():
        expected = peak(600 << 20, batch_size=batch_size, negatives=negatives, width=128)
        assert row["peak_memory_bytes"] == expected == sum(row["parts_bytes"].values())
        assert row["fits_budget"] == (expected <= 600 << 20)
        assert row["fits_cards_gib"] == [8, 16, 24, 40, 80]
        assert row["config"]["table_updates"] == "dense", "what auto stands for"


def test_the_table_says_what_varies_and_which_card_it_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = ["--batch-size", "256", "20000", "--width", "512", "--num-heads", "8"]
    code, out, _ = run_here(capsys, *SIZE, *sizes, "--memory-budget", "A100-40GB")
    header, small, large, note = out.splitlines()
    assert code == cli.OK
    assert header.split()[:3] == ["batch_size", "peak", "fits"]
    assert all(part in header for part in PARTS)
    assert small.split()[0] == "256"
    assert "8 GiB" in small
    assert "yes" in small
    assert large.split()[0] == "20000"
    assert " no " in large
    assert "90% of which it fits" in note


@pytest.mark.parametrize(
    ("setting", "budget", "others"),
    [
        ("batch-size", 1 << 30, {"width": 128}),
        ("negatives", 400 << 20, {"width": 128, "group_size": 4}),
        ("max-length", 600 << 20, {"width": 128, "batch_size": 1024}),
    ],
)
def test_the_largest_value_fits_and_the_next_does_not(
    capsys: pytest.CaptureFixture[str], setting: str, budget: int, others: dict[str, int]
) -> None:
    name = setting.replace("-", "_")
    flags = [text for key, value in others.items() for text in (f"--{key}", str(value))]
    flags = [flag.replace("_", "-") for flag in flags]
    asked = [*flags, "--memory-budget", f"{budget}B", "--largest", setting]
    (row,) = estimated(capsys, *SIZE, *asked)["configurations"]
    largest = row["config"][name]
    assert row["fits_budget"]
    assert not row["is_most_of_data"]
    assert peak(budget, **others, **{name: largest}) == row["peak_memory_bytes"] <= budget
    assert peak(budget, **others, **{name: largest + 1}) > budget


def test_a_grid_of_losses_has_each_with_its_own_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses = ["--loss", "cce-", "cce", "bce", "bce+", "gbce", "sce", "rece"]
    own = ["--negatives", "64", "512", "--bucket-items", "64", "--rounds", "1", "4"]
    rows = estimated(capsys, *SIZE, *losses, *own, "--width", "32")["configurations"]
    found = [
        (row["config"]["loss"], *(row["config"].get(name) for name in ("negatives", "rounds")))
        for row in rows
    ]
    assert found == [
        ("cce-", 64, None),
        ("cce-", 512, None),
        ("cce", None, None),
        ("bce", None, None),
        ("bce+", 64, None),
        ("bce+", 512, None),
        ("gbce", 64, None),
        ("gbce", 512, None),
        ("sce", None, None),
        ("rece", None, 1),
        ("rece", None, 4),
    ]
    for row in rows:
        is_sce = row["config"]["loss"] == "sce"
        assert row["config"].get("bucket_items") == (64 if is_sce else None)
    few = ["--loss", "cce", "rece", "--rounds", "1", "4", "--width", "32"]
    code, out, _ = run_here(capsys, *SIZE, *few)
    assert code == cli.OK
    header, *lines, _ = out.splitlines()
    assert header.split()[:2] == ["loss", "rounds"]
    assert lines[0].split()[:2] == ["cce", "-"]
    assert lines[-1].split()[:2] == ["rece", "4"]


@pytest.mark.parametrize("candidates", ["popularity", "log-uniform", "mixed", "in-batch"])
def test_candidates_are_estimated(capsys: pytest.CaptureFixture[str], candidates: str) -> None:
    shown = estimated(capsys, *SIZE, "--candidates", candidates, "--width", "32")
    (row,) = shown["configurations"]
    assert row["config"]["candidates"] == candidates
    assert row["peak_memory_bytes"] == peak(int(0.9 * (8 << 30)), candidates=candidates, width=32)


def test_the_largest_value_of_every_other_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ["--memory-budget", "400MiB", "--largest", "batch-size", "--width", "32", "128", "512"]
    code, out, _ = run_here(capsys, *SIZE, *asked, "--num-heads", "4")
    assert code == cli.OK
    rows = [line.split()[:2] for line in out.splitlines()[1:4]]
    assert [width for width, _ in rows] == ["32", "128", "512"]
    assert int(rows[0][1]) > int(rows[1][1])
    assert rows[2][1] == "none,"
    whole = estimated(capsys, *SIZE, "--memory-budget", "80GiB", "--largest", "max-length")
    (row,) = whole["configurations"]
    assert (row["config"]["max_length"], row["is_most_of_data"]) == (60, True)


def test_of_data_the_true_lengths_count_and_defaults_fit_it(
    capsys: pytest.CaptureFixture[str], tiny_csv: Path
) -> None:
    shown = estimated(capsys, "--data", str(tiny_csv), "--width", "16")
    (row,) = shown["configurations"]
    data = prepare(DataConfig(data=str(tiny_csv)))
    config = TrialConfig.from_flat({"width": 16, "batch_size": 60, "negatives": 29})
    assert row["config"] == config.resolved(data.num_items).flat()
    expected = MemoryModel(DataShape.of(data), H200).predict(config, int(0.9 * (8 << 30)))
    assert row["peak_memory_bytes"] == expected.peak


def test_a_study_file_gives_what_it_fixes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "study.toml"
    file.write_text("[space]\nwidth = 32\nbatch_size = [8, 64]\n")
    code, _, err = run_here(capsys, *SIZE, "--config", str(file))
    assert code == cli.USAGE
    assert "open in the study; give --batch-size" in err
    assert "batch_size" in tomllib.loads(file.read_text())["space"]
    shown = estimated(capsys, *SIZE, "--config", str(file), "--batch-size", "16")
    (row,) = shown["configurations"]
    assert (row["config"]["width"], row["config"]["batch_size"]) == (32, 16)


def test_of_a_study_of_losses_one_is_estimated_with_what_it_has(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        '[space]\nloss = ["cce-", "sce"]\ncandidates = ["uniform", "mixed"]\n'
        "negatives = [64, 512]\nbucket_items = 77\nwidth = 32\n"
    )
    shown = estimated(capsys, *SIZE, "--config", str(file), "--loss", "sce")
    (row,) = shown["configurations"]
    assert (row["config"]["bucket_items"], row["config"]["width"]) == (77, 32)
    shown = estimated(
        capsys, *SIZE, "--config", str(file), "--candidates", "in-batch", "--loss=cce-"
    )
    (row,) = shown["configurations"]
    assert row["config"]["candidates"] == "in-batch"
    code, _, err = run_here(capsys, *SIZE, "--config", str(file), "--loss", "bce+")
    assert code == cli.USAGE
    assert "space.negatives 64 512: it is open in the study; give --negatives" in err
    file.write_text('[space]\nloss = "sce"\nnegatives = 64\n')
    code, _, err = run_here(capsys, *SIZE, "--config", str(file))
    assert code == cli.USAGE
    assert "space.negatives: loss sce has no such setting; cce-, bce+ and gbce have" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("--data", "--items")),
        (["--items", "10"], ("--users and --mean-length",)),
        ([*SIZE, "--data", "ml-100k"], ("--data and --items",)),
        ([*SIZE, "--columns.user", "u"], ("--columns.user and --items",)),
        ([*SIZE[2:], "--items", "many"], ("--items many", "not an integer")),
        ([*SIZE[2:], "--items", "1"], ("--items 1", "use 2 to")),
        ([*SIZE, "--loss", "bpr"], ("--loss bpr", "choose from cce-, cce, bce")),
        ([*SIZE, "--bucket-items", "64"], ("--bucket-items: loss cce- has no such", "; sce has")),
        (
            [*SIZE, "--negatives", "64", "--loss", "cce", "sce"],
            ("--negatives: losses cce and sce have no such setting",),
        ),
        (
            [*SIZE, "--loss", "sce", "--bucket-items", "50001"],
            ("--bucket-items 50001", "50,000 items", "at most 50000"),
        ),
        ([*SIZE, "--batch-size", "0"], ("--batch-size 0", "greater than")),
        ([*SIZE, "--batch-size", "30000"], ("--batch-size 30000", "at most 20000")),
        ([*SIZE, "--negatives", "50000"], ("--negatives 50000", "at most 49999")),
        ([*SIZE, "--width", "65", "--num-heads", "2"], ("65 is not a multiple of num_heads 2",)),
        ([*SIZE, "--width", "2048", "--num-heads", "8"], ("2048", "at most 1024")),
        ([*SIZE, "--patience", *map(str, range(1, 20_000))], ("19,999 configurations",)),
        ([*SIZE, "--memory-budget", "6 pears"], ("--memory-budget 6 pears", "6GiB")),
        ([*SIZE, "--memory-budget", "-1GiB"], ("--memory-budget",)),
        ([*SIZE, "--memory-budget", "90%"], ("--memory-budget 90%", "24GiB")),
        ([*SIZE, "--memory-budget", "RTX 4091"], ("RTX 4091", "RTX 4090")),
        ([*SIZE, "--largest", "width"], ("--largest", "batch-size")),
        ([*SIZE, "--largest", "negatives"], ("--memory-budget",)),
        (
            [*SIZE, "--memory-budget", "8GiB", "--largest", "negatives", "--negatives", "8"],
            ("--negatives", "sought"),
        ),
        (
            [*SIZE, "--memory-budget", "8GiB", "--largest", "negatives", "--loss", "bce+", "cce"],
            ("--largest negatives: loss cce has no such setting; cce-, bce+ and gbce have",),
        ),
        (
            [*SIZE, "--memory-budget=8GiB", "--largest=negatives", "--candidates=in-batch"],
            ("--largest negatives: loss cce- with candidates in-batch has no such setting",),
        ),
        (
            [*SIZE, "--memory-budget", "9MiB", "--largest", "batch-size"],
            ("batch_size 1 needs", "most of it for"),
        ),
        (["--data", "absent"], ("absent", "ml-100k")),
        ([*SIZE, "--config", "absent.toml"], ("absent.toml", "cannot be read")),
    ],
)
def test_bad_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: tuple[str, ...]
) -> None:
    code, out, err = run_here(capsys, *arguments)
    assert (code, out, err.count("\n")) == (cli.USAGE, "", 0)
    assert err.startswith("python -m study.estimate: ")
    for word in words:
        assert word in err


def test_without_triton_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run_here(capsys, *SIZE)
    assert code == cli.USAGE
    assert "needs Triton: use Linux" in err
    monkeypatch.undo()
    monkeypatch.setenv("PARETOCUT_KERNELS", "eager")
    code, _, err = run_here(capsys, *SIZE)
    assert code == cli.USAGE
    assert "PARETOCUT_KERNELS=eager" in err


def test_it_runs_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "study.estimate"]
    done = subprocess.run(
        [*command, *SIZE], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == cli.OK, done.stderr
    assert done.stdout.startswith("peak ")
    assert not list(tmp_path.iterdir())
    code = (
        "import sys\nfrom study.estimate import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'mlflow', 'optuna'} & set(sys.modules)))"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert asked.stdout.splitlines()[-1] == "[]", asked.stderr
