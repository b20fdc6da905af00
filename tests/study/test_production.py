"""From a finished study to a model that answers, and on to the next one."""

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from objectives.config import DataConfig
from objectives.data import prepare
from objectives.recommending import Recommender, raw_ids
from objectives.saved_model import SavedModel, read_about
from study import cli
from study.registry import is_better
from study.tracking import build_client

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow's own types
    import mlflow.pyfunc

pytestmark = pytest.mark.filterwarnings("ignore:Operation with range is deprecated")  # MLflow's

LOG = [(user, 100 + (7 * user + t) % 30, user + t) for user in range(60) for t in range(12)]
STORE = "sqlite:///runs/mlflow.db"
SMALL = ["--space.width=8", "--space.max_length=10", "--space.num_blocks=1"]
SMALL += ["--space.max_epochs=3"]

Command = Callable[..., subprocess.CompletedProcess[str]]


def write_log(path: Path, rows: list[tuple[int, int, int]]) -> None:
    users, items, times = zip(*rows, strict=True)
    pq.write_table(pa.table({"user": users, "item": items, "time": times}), path)


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Path]:
    """The folder of a study of two trials, one of which is registered as champion."""
    folder = tmp_path_factory.mktemp("studied")
    write_log(folder / "log.parquet", LOG)
    (folder / "runs").mkdir()
    shutil.copy(empty_store, folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PARETOCUT_CACHE", str(folder / "cache"))
        patch.syspath_prepend(str(folder))  # MLflow's own entries go with it, afterwards
        run = ["--data", "log.parquet", "--study", "s", "--n-trials", "2", "--split", "temporal"]
        assert importlib.import_module("study.run").main([*run, *SMALL]) == cli.OK
        best = importlib.import_module("study.best")
        assert best.main(["--register", "shop", "--weight", "1", "--debug"]) == cli.OK
    yield folder
    mlflow.set_tracking_uri("")
    mlflow.set_registry_uri("")


@pytest.fixture
def best(
    studied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`study.best` beside the study."""
    monkeypatch.chdir(studied)
    monkeypatch.setenv("PARETOCUT_CACHE", str(studied / "cache"))
    monkeypatch.syspath_prepend(str(studied))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        try:
            code = importlib.import_module("study.best").main(list(arguments))
        except SystemExit as stopped:
            code = int(str(stopped.code))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


def champion() -> Any:
    return build_client(STORE).get_model_version_by_alias("shop", "champion")


def test_the_first_model_of_a_name_is_the_champion(best: Command, studied: Path) -> None:
    trial = json.loads(best("--json", "--weight", "1").stdout)
    tags = champion().tags
    assert tags["study"] == "s"
    assert tags["trial"] == str(trial["trial"])
    assert float(tags["test_ndcg_at_10"]) == trial["metrics"]["test/ndcg_at_10"]
    assert tags["split"] == "temporal"
    assert int(tags["memory_budget_bytes"]) > int(tags["peak_memory_bytes"]) > 0
    assert int(tags["epochs"]) in (1, 2, 3)


def test_the_registered_model_answers_as_the_saved_one(best: Command, studied: Path) -> None:
    mlflow.set_tracking_uri(STORE)
    served = mlflow.pyfunc.load_model("models:/shop@champion")
    (folder,) = (studied / "runs" / "s" / "models").glob("trial-*-seed-*[0-9]")
    saved = SavedModel.load(folder)
    ids = raw_ids(saved.item_ids)
    histories = [ids[: 1 + user % 12] for user in range(20)] + [[], [1], [ids[0], 1]]
    answer = served.predict(pd.DataFrame({"history": histories}), {"k": 5})
    expected = Recommender(saved, torch.device("cpu")).recommend(histories, 5)
    for name, values in vars(expected).items():
        assert answer[name].tolist() == values
    assert answer["unknown"].tolist()[-3:] == [0, 1, 1]
    assert answer["popular"].tolist()[-3:] == [True, True, False]
    params = {"k": 3, "remove_seen": False, "candidates": ids[:2]}
    few = served.predict(pd.DataFrame({"history": [ids[:1]]}), params)
    assert set(few["items"][0]) == set(ids[:2])
    run = build_client(STORE).get_run(champion().run_id)
    front = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/front.json")
    assert [each["trial"] for each in front]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`mlflow models serve` of the champion, which answers."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'runs' / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/shop@champion"]
    command += ["--env-manager", "local", "--port", str(port), "--workers", "1"]
    log = (folder / "serve.log").open("wb")
    with (
        log,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            while True:
                assert process.poll() is None, (folder / "serve.log").read_text()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                    break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{url}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_registered_model_is_served(studied: Path) -> None:
    with serving(studied) as url:
        split = {"columns": ["history"], "data": [[[105, 112]], [[]]]}
        status, answer = post(url, {"dataframe_split": split, "params": {"k": 3}})
        assert status == 200
        first, second = answer["predictions"]
        assert [len(first["items"]), len(second["items"])] == [3, 3]
        assert (first["popular"], second["popular"]) == (False, True)
        for params, data, sentence in (
            ({"k": 0}, [[[105]]], "k must be 1 to 1,000, not 0"),
            ({}, [["abc"]], "Expected data to be list or numpy array, got str"),
        ):
            split = {"columns": ["history"], "data": data}
            status, answer = post(url, {"dataframe_split": split, "params": params})
            assert status == 400
            assert sentence in answer["message"]


def test_seeds_are_trained_once_each(best: Command, studied: Path) -> None:
    done = best("--retrain", "--seeds", "2", "--weight", "1")
    assert done.returncode == 0, done.stderr
    first, second = (Path(line) for line in done.stdout.splitlines()[-2:])
    assert f"{first} is there already" in done.stderr
    about = read_about(second)
    assert about["training"]["seed"] == read_about(first)["training"]["seed"] + 1
    assert f"{about['training']['epochs']} epochs" in done.stderr
    weights = [SavedModel.load(each).weights["items.weight"] for each in (first, second)]
    assert not torch.equal(*weights)
    log = prepare(DataConfig(data="log.parquet", split="none"))
    assert SavedModel.load(first).counts_V.sum() == len(log.train.items) == 720
    again = best("--retrain", "--seeds", "2", "--weight", "1")
    assert again.stderr.count("is there already") == 2


def test_the_alias_moves_to_what_is_better_on_the_same_split(best: Command) -> None:
    before = champion()
    worse = best("--register", "shop", "--weight", "0", "--json", "--int8")
    assert worse.returncode == 0, worse.stderr
    registered = json.loads(worse.stdout)["registered"]
    assert not registered["champion"]
    assert f"version {before.version} stays the champion: test NDCG@10" in worse.stderr
    assert champion().version == before.version
    by_hand = best("--register", "shop", "--weight", "0", "--champion")
    assert "is the champion: as --champion asks" in by_hand.stderr
    assert int(champion().version) > int(registered["version"])
    better = best("--register", "shop", "--weight", "1")
    assert "is the champion: test NDCG@10" in better.stderr
    assert champion().tags["trial"] == before.tags["trial"]


def test_what_is_better() -> None:
    about = {
        "study": "s",
        "trial": 1,
        "training": {"seed": 1, "epochs": 2},
        "memory_budget": 9,
        "peak_memory": 8,
        "judged_on": {"name": "log", "digest": "d", "split": "temporal"},
        "metrics": {"val/ndcg_at_10": 0.1, "test/ndcg_at_10": 0.3},
    }
    known = {"data_digest": "d", "split": "temporal", "test_ndcg_at_10": "0.2"}
    for changed, expected, words in (
        ({}, True, "0.3000 against 0.2000 of version 4"),
        ({"test_ndcg_at_10": "0.3"}, False, "0.3000 against 0.3000"),
        ({"data_digest": "e"}, False, "version 4 was judged on another data (e, not d)"),
        ({"split": "leave-one-out"}, False, "was judged on another split"),
    ):
        version = argparse.Namespace(version="4", tags={**known, **changed})
        found, why = is_better(about, version)
        assert found == expected
        assert words in why
    assert is_better(about, None)[0]


def test_the_exported_encoder_and_table(best: Command, studied: Path) -> None:
    done = best("--export", "out", "--weight", "1", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["exported"] == ["out/encoder.pt2", "out/items.parquet"]
    saved = SavedModel.load(Path(made["models"][0]))
    items = pq.read_table("out/items.parquet")
    assert items["item"].to_pylist() == saved.item_ids.to_pylist()
    vectors_VD = np.stack(items["vector"].to_numpy())
    assert vectors_VD.dtype == np.float32
    program = torch.export.load("out/encoder.pt2").module()
    states_BD = program(torch.tensor([[3, 4, *[0] * 8], [5] * 10]), torch.tensor([2, 10]))
    scores_BV = states_BD.numpy() @ vectors_VD.T
    scores_BV[0, [3, 4]] = scores_BV[1, 5] = -np.inf
    ids = raw_ids(saved.item_ids)
    answer = Recommender(saved, torch.device("cpu")).recommend(
        [[ids[3], ids[4]], [ids[5]] * 10], 5
    )
    best_BK = (-scores_BV).argsort(1)[:, :5]
    assert [[ids[item] for item in items] for items in best_BK] == answer.items
    assert best("--export", "/proc/x").returncode == cli.USAGE


def test_the_champion_goes_on_with_what_has_come_since(best: Command, studied: Path) -> None:
    before = champion()
    new = [(user, 100 + (3 * user + t) % 36, 72 + t) for user in range(50, 80) for t in range(12)]
    write_log(studied / "log.parquet", LOG + new)
    try:
        changed = best("--retrain", "--weight", "1")
        assert changed.returncode == cli.USAGE
        assert "has changed since study s" in changed.stderr
        done = best("--register", "shop", "--since", "72", "--against-scratch", "--json")
        assert done.returncode == 0, done.stderr
    finally:
        write_log(studied / "log.parquet", LOG)
    made = json.loads(done.stdout)
    judged = made["refreshed"]
    assert set(judged["models"]) == {"champion", "refreshed", "scratch"}
    assert all(f"{name}: NDCG@10" in done.stderr for name in judged["models"])
    saved = SavedModel.load(Path(made["models"][0]))
    assert len(saved.item_ids) == 36
    assert saved.item_ids[:30] == prepare(DataConfig(data="log.parquet", split="none")).item_ids
    assert saved.about["training"]["champion"]["seed"] == int(before.tags["seed"])
    assert made["registered"]["champion"] == judged["is_better"]
    assert "NDCG@10" in judged["why"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--knee", "--budget", "1GiB"], "--knee and --budget: each chooses"),
        (["--knee", "--weight", "1"], "--knee and --weight: each chooses"),
        (["--weight", "2"], "--weight 2: write a number from 0"),
        (["--weight", "x"], "--weight x: write a number from 0"),
        (["--seeds", "2"], "--seeds: it goes with --retrain"),
        (["--retrain", "--seeds", "0"], "--seeds 0: write a number of models"),
        (["--champion"], "--champion: it goes with --register"),
        (["--retrain", "--int8"], "--int8: it goes with --register"),
        (["--retrain", "--since", "3"], "--since: it goes with --register"),
        (["--register", "x", "--since", "3", "--knee"], "--knee: --since goes on with"),
        (["--register", "x", "--since", "3"], "x has no champion to go on with"),
        (["--register", "a/b"], "--register a/b: MLflow at"),
        (["--retrain", "--device", "cuda:9"], "--device cuda:9: torch sees"),
    ],
)
def test_what_cannot_be_asked(best: Command, flags: list[str], sentence: str) -> None:
    done = best(*flags)
    assert done.returncode == cli.USAGE
    assert sentence in done.stderr.splitlines()[-1]
