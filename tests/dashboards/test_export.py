import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dashboards.export import as_csv, as_json
from dashboards.queries import build_view
from dashboards.report import write_report
from study.records import StudyRecord, TrialRecord

MakeTrial = Callable[..., TrialRecord]
MakeStudy = Callable[..., StudyRecord]


def rows_of(record: StudyRecord) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(as_csv(build_view(record, "x")))))


def json_of(record: StudyRecord) -> Any:
    return json.loads(as_json(build_view(record, "x")))


def test_a_row_of_the_csv_is_a_trial(mixed: StudyRecord) -> None:
    rows = rows_of(mixed)
    assert [row["trial"] for row in rows] == list("012345678")
    assert rows[1] == {
        "trial": "1",
        "outcome": "front",
        "ndcg_at_10": "0.12",
        "ndcg_at_10_std": "",
        "trainings": "1",
        "peak_memory_bytes": str(512 * 2**20),
        "peak_is_lower_bound": "False",
        "seconds": "12.0",
        "reason": "",
        "started": "",
        "finished": "",
        "worker": "",
        "mlflow_run": "b" * 32,
        "batch_size": "16",
        "learning_rate": "0.001",
        "test/ndcg_at_10": "0.1",
        "test/hit_rate_at_10": "0.2",
    }
    assert (rows[4]["peak_is_lower_bound"], rows[4]["ndcg_at_10"]) == ("True", "")
    assert (rows[8]["outcome"], rows[8]["peak_memory_bytes"]) == ("running", "")


def test_settings_of_one_loss_alone_are_empty_for_others(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    rows = rows_of(
        make_study(
            make_trial(0, params={"loss": "cce-"}, config={"loss": "cce-", "negatives": 16}),
            make_trial(1, "failed", params={"loss": "a,b\n"}, reason='"quoted", and more'),
        )
    )
    assert [row["negatives"] for row in rows] == ["16", ""]
    assert [row["loss"] for row in rows] == ["cce-", "a,b\n"]
    assert rows[1]["reason"] == '"quoted", and more'


def test_what_is_not_a_number_is_empty_and_null(
    make_trial: MakeTrial, make_study: MakeStudy
) -> None:
    record = make_study(
        make_trial(0, quality=math.nan, seconds=math.inf, metrics={"val/loss": math.nan}),
        make_trial(1, curve=(0.1, math.nan), started=datetime(2026, 1, 2, 3, 4, 5)),
    )
    assert [(row["ndcg_at_10"], row["seconds"]) for row in rows_of(record)] == [
        ("", ""),
        ("0.1", "12.0"),
    ]
    trials = json_of(record)["trials"]
    assert (trials[0]["ndcg_at_10"], trials[0]["seconds"]) == (None, None)
    assert trials[1]["ndcg_at_10_by_epoch"] == [0.1, None]
    assert trials[1]["started"] == "2026-01-02T03:04:05"


def test_json_has_the_study_and_its_front(mixed: StudyRecord, timed: StudyRecord) -> None:
    study = json_of(mixed)
    assert (study["study"], study["front"], study["best"]) == ("toy", [0, 1], 1)
    assert study["memory_budget_bytes"] == 2**30
    assert study["trials"][1]["settings"] == {"batch_size": 16, "learning_rate": 1e-3}
    assert json_of(timed)["objectives"] == ["quality", "memory", "time"]
    empty = json_of(replace(mixed, trials=()))
    assert (empty["trials"], empty["front"], empty["best"]) == ([], [], None)
    assert rows_of(replace(mixed, trials=())) == []


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium on this machine")
def test_the_front_is_drawn_as_an_image(tmp_path: Path, mixed: StudyRecord) -> None:
    pytest.importorskip("kaleido")
    drawing = write_report(mixed, tmp_path / "front.svg", "x").read_text("utf-8")
    assert drawing.startswith("<svg")
    assert "budget 1.00 GiB" in drawing
    assert "rgb(255, 255, 255)" in drawing
    image = write_report(mixed, tmp_path / "front.png", "x").read_bytes()
    assert image.startswith(b"\x89PNG")
