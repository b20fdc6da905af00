import argparse
from datetime import timedelta
from pathlib import Path

import pytest

from objectives.config import FilterConfig
from objectives.errors import UserError
from study.cards import card_memory
from study.flags import add_spec_flags
from study.spec import Share, StudySpec, load_spec, parse_budget


def test_defaults() -> None:
    spec = load_spec({})
    assert spec == StudySpec()
    assert (spec.data, spec.split, spec.n_trials) == ("ml-100k", "leave-one-out", 12)


def test_flags_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        'seed = 1\nn_trials = 2\nmemory_budget = "1GiB"\ntimeout = "90s"\nstorage = "sqlite:///a"\n'
        '[columns]\nuser = "who"\n[space]\nnegatives = [16, 32]\ndropout = 0.1\nwidth = 32\n'
    )
    monkeypatch.setenv("PARETOCUT_N_TRIALS", "3")
    monkeypatch.setenv("PARETOCUT_MEMORY_BUDGET", "2GiB")
    monkeypatch.setenv("PARETOCUT_SPACE_DROPOUT", "0.2 0.3")
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    spec = load_spec(
        {"memory_budget": "3GiB", "space.negatives": ["64"], "space.loss": None}, file
    )
    assert spec.seed == 1
    assert spec.n_trials == 3
    assert spec.memory_budget == 3 * 2**30
    assert spec.timeout == timedelta(seconds=90)
    assert spec.columns.user == "who"
    assert spec.storage == "sqlite:///b"
    assert spec.tracking_store == "http://localhost:5000"
    assert spec.space == {"negatives": ["64"], "dropout": ["0.2", "0.3"], "width": 32}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2d", 172800), ("45", 45)]
)
def test_durations(text: str, seconds: float) -> None:
    assert load_spec({"timeout": text}).timeout == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("6GiB", 6 * 2**30),
        ("24GB", 24 * 10**9),
        (" 800 mib ", 800 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("4096", 4096),
        ("90%", Share(0.9)),
        ("12.5 %", Share(0.125)),
        ("100%", Share(1.0)),
        ("T4", int(0.9 * card_memory("T4"))),
        ("rtx 4090", int(0.9 * card_memory("RTX 4090"))),
    ],
)
def test_budgets(
    text: str, budget: int | Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_budget(text) == budget
    assert load_spec({"memory_budget": text}).memory_budget == budget
    file = tmp_path / "study.toml"
    file.write_text(f'memory_budget = "{text}"')
    assert load_spec({}, file).memory_budget == budget
    monkeypatch.setenv("PARETOCUT_MEMORY_BUDGET", text)
    assert load_spec({}).memory_budget == budget


def test_objectives_have_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_spec({}).objectives == ("quality", "memory")
    assert load_spec({"objectives": ["time", "quality"]}).objectives == ("quality", "time")
    file = tmp_path / "study.toml"
    file.write_text('objectives = ["quality"]')
    assert load_spec({}, file).objectives == ("quality",)
    monkeypatch.setenv("PARETOCUT_OBJECTIVES", "time memory quality")
    assert load_spec({}).objectives == ("quality", "memory", "time")


def test_a_number_in_a_file_is_a_budget_in_bytes(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text("memory_budget = 6_000_000_000")
    assert load_spec({}, file).memory_budget == 6 * 10**9


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"n_trials": "0"}, ("--n-trials 0", "1")),
        ({"n_trials": "many"}, ("--n-trials many", "integer")),
        ({"patience": "0"}, ("--patience 0", "greater than or equal to 1")),
        ({"confirm": "1"}, ("--confirm 1", "greater than or equal to 2")),
        ({"confirm": "-3"}, ("--confirm -3", "greater than or equal to 2")),
        ({"timeout": "soon"}, ("--timeout soon", "30m")),
        ({"memory_budget": "6 pears"}, ("--memory-budget 6 pears", "6GiB")),
        ({"memory_budget": "6 pears"}, ("90%", "A100-40GB")),
        ({"memory_budget": "1" * 400 + "GiB"}, ("6GiB",)),
        ({"memory_budget": "-1GiB"}, ("--memory-budget -1GiB", "greater than 0", "6GiB")),
        ({"memory_budget": "0"}, ("--memory-budget 0", "greater than 0")),
        ({"memory_budget": "0.0GiB"}, ("--memory-budget 0.0GiB", "greater than 0")),
        ({"memory_budget": "0%"}, ("--memory-budget 0%", "greater than 0%")),
        ({"memory_budget": "-5%"}, ("--memory-budget -5%", "greater than 0%")),
        ({"memory_budget": "101%"}, ("--memory-budget 101%", "at most 100%")),
        ({"memory_budget": "A100"}, ("--memory-budget A100", "A100-40GB or A100-80GB")),
        ({"memory_budget": "RTX 4091"}, ("--memory-budget RTX 4091", "RTX 4090", "24GiB")),
        ({"memory_budget": "banana"}, ("--memory-budget banana", "24GiB", "90%")),
        ({"split": "random"}, ("--split random", "temporal")),
        ({"split": "none"}, ("--split none: a search needs targets", "choose leave-one-out")),
        ({"split": "temporal", "split_date": "soon"}, ("--split-date soon: write a date",)),
        ({"split": "temporal", "split_quantile": "1"}, ("--split-quantile 1", "less than 1")),
        (
            {"split": "temporal", "split_date": "2024-03-01", "split_quantile": "0.5"},
            ("split_quantile and split_date: name one of them",),
        ),
        ({"target": "all"}, ("target is for the temporal split, not for leave-one-out",)),
        ({"k_core": "5", "min_item_users": "7"}, ("k_core and min_item_users: name one",)),
        ({"study": "a/b"}, ("--study a/b",)),
        ({"device": "tpu"}, ("--device tpu",)),
        ({"seed": "-1"}, ("--seed -1",)),
        ({"objectives": ["quality", "speed"]}, ("--objectives: speed", "quality, memory, time")),
        ({"objectives": ["memory", "time"]}, ("--objectives: quality is missing",)),
        ({"objectives": ["quality", "time", "time"]}, ("--objectives: time", "more than once")),
    ],
)
def test_wrong_flags_are_one_sentence(flags: dict[str, str], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load_spec(flags)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("n_trails = 3", ("n_trails", "no such key", "n_trials")),
        ("[columns]\nuzer = 'a'", ("columns.uzer", "no such key")),
        ("n_trials = ", ("not TOML", "study.toml")),
        ("n_trials = 'x'", ("study.toml: n_trials x", "integer")),
        ("space = 3", ("study.toml: space 3",)),
        ("objectives = 3", ("study.toml: objectives 3: 3 is none of", "quality")),
        ("objectives = []", ("study.toml: objectives: quality is missing",)),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_spec({}, file)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_spec({}, tmp_path / "absent.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not TOML"):
        load_spec({}, binary)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOCUT_SEED", "x")
    with pytest.raises(UserError, match="PARETOCUT_SEED x"):
        load_spec({})


def test_filters_have_flags_variables_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_spec_flags(parser)
    flags = ["--filter.min-rating", "4", "--filter.events", "view,cart", "--columns.session", "s"]
    spec = load_spec(vars(parser.parse_args(flags)))
    assert spec.data_config.filter == FilterConfig(min_rating=4, events=("view", "cart"))
    assert spec.data_config.columns.session == "s"
    file = tmp_path / "study.toml"
    file.write_text('[filter]\nmin_rating = 3\nevents = ["buy"]\n')
    assert load_spec({}, file).filter == FilterConfig(min_rating=3, events=("buy",))
    monkeypatch.setenv("PARETOCUT_FILTER_MIN_RATING", "2")
    assert load_spec({}, file).filter.min_rating == 2
    with pytest.raises(UserError, match=r"^--filter\.min-rating high: "):
        load_spec({"filter.min_rating": "high"})
