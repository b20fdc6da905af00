from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from objectives.config import TrialConfig
from objectives.errors import UserError
from objectives.recorded import RecordedObjective
from objectives.trial import QUALITY, DivergedTrial, InfeasibleTrial, TrialContext

MakeContext = Callable[..., TrialContext]
GIB = 1 << 30
HEADER = (
    "dataset,batch_size,negatives,sequence_length,ndcg_at_10,peak_memory_gib,epoch_seconds,epochs"
)
ROWS = """\
music,32,64,16,0.125,1.5,2.5,4
music,32,128,16,0.25,3,2,5
music,32,inf,16,0.5,8,10,2
music,64,64,16,0.375,2,1,0
beer,32,64,16,0.75,1,1,1
"""
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "recorded-grid.csv"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(f"{HEADER}\n{ROWS}")
    return path


def config(batch_size: int = 32, negatives: int = 64, **settings: Any) -> TrialConfig:
    return TrialConfig.from_flat(
        {"batch_size": batch_size, "negatives": negatives, "max_length": 16} | settings
    )


def test_a_run_is_looked_up(table: Path, make_context: MakeContext) -> None:
    reports: list[tuple[int, dict[str, float]]] = []
    result = RecordedObjective(table, "music")(
        config(negatives=128),
        make_context(lambda e, m: reports.append((e, dict(m))), budget=3 * GIB),
    )
    assert (result.quality, result.peak_memory, result.seconds) == (0.25, 3 * GIB, 10)
    assert (result.epochs, result.metrics) == (5, {QUALITY: 0.25})
    whole = {QUALITY: 0.25, "memory/peak_bytes": 3 * GIB, "train/epoch_seconds": 10}
    assert reports == [(5, whole)]


def test_a_setting_that_only_other_data_sets_have_is_none(
    table: Path, make_context: MakeContext
) -> None:
    rows = "".join(
        f"{row},{width}\n" for row, width in zip(ROWS.split(), ["", "", "", "", 32], strict=True)
    )
    table.write_text(f"{HEADER},width\n{rows}")
    assert RecordedObjective(table, "music").settings == ("batch_size", "negatives", "max_length")
    assert RecordedObjective(table, "beer").settings[-1] == "width"
    objective = RecordedObjective(table, "music")
    assert objective(config(), make_context(budget=8 * GIB)).quality == 0.125


def test_the_full_softmax_has_infinitely_many_negatives(
    table: Path, make_context: MakeContext
) -> None:
    objective = RecordedObjective(table, "music")
    assert objective(config(loss="cce"), make_context(budget=8 * GIB)).quality == 0.5
    assert objective(config(loss="cce-"), make_context(budget=8 * GIB)).quality == 0.125


def test_other_losses_are_not_in_the_table(table: Path, make_context: MakeContext) -> None:
    with pytest.raises(UserError, match=r"loss sce: the table has runs of cce and cce- alone"):
        RecordedObjective(table, "music")(config(loss="sce"), make_context())


def test_runs_of_other_data_are_left_out(table: Path, make_context: MakeContext) -> None:
    assert RecordedObjective(table, "beer")(config(), make_context(budget=GIB)).quality == 0.75


def infeasible(table: Path, chosen: TrialConfig, context: TrialContext) -> tuple[int, str]:
    with pytest.raises(InfeasibleTrial) as caught:
        RecordedObjective(table, "music")(chosen, context)
    return caught.value.peak_bytes, caught.value.source


def test_a_run_over_the_budget_is_infeasible_at_its_peak(
    table: Path, make_context: MakeContext
) -> None:
    context = make_context(budget=3 * GIB - 1)
    assert infeasible(table, config(negatives=128), context) == (3 * GIB, "probed")


@pytest.mark.parametrize(
    ("chosen", "bound"),
    [
        (config(negatives=1000), 3),  # more than 128 negatives need 3 GiB or more
        (config(negatives=100), 1.5),
        (config(negatives=32), 1),  # nothing smaller is known: the budget
        (config(batch_size=16), 1),
        (config(max_length=15), 1),
        (config(batch_size=128), 2),  # as much as of 64 sequences
        (config(max_length=99), 1.5),
        (config(batch_size=64, loss="cce"), 8),
    ],
)
def test_a_run_that_is_not_there_ran_out_of_memory(
    chosen: TrialConfig, bound: float, table: Path, make_context: MakeContext
) -> None:
    context = make_context(budget=GIB)
    assert infeasible(table, chosen, context) == (bound * GIB, "out-of-memory")


def test_a_bound_is_at_least_the_budget(table: Path, make_context: MakeContext) -> None:
    context = make_context(budget=50 * GIB)
    assert infeasible(table, config(negatives=1000), context) == (50 * GIB, "out-of-memory")


def test_a_run_without_epochs_diverged(table: Path, make_context: MakeContext) -> None:
    with pytest.raises(DivergedTrial) as caught:
        RecordedObjective(table, "music")(config(batch_size=64), make_context(budget=8 * GIB))
    assert (caught.value.epoch, caught.value.peak_bytes) == (1, 2 * GIB)


def curves(tmp_path: Path, name: str = "curves.csv") -> Path:
    """Two runs with their curves, of a rate and a schedule."""
    rows = {
        "dataset": ["music", "music"],
        "learning_rate": [0.001, 0.003],
        "schedule": ["cosine", "constant"],
        "ndcg_at_10": [0.5, 0.25],
        "test_ndcg_at_10": [0.375, 0.125],
        "peak_memory_gib": [1.0, 2.0],
        "epoch_seconds": [2.0, 3.0],
        "epochs": [3, 2],
        "card": ["none", "none"],
    }
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table({**rows, "curve": [[0.25, 0.5, 0.375], [0.125, 0.25]]}), path)
    else:
        shown = {**rows, "curve": ["0.25 0.5 0.375", "0.125 0.25"]}
        lines = [",".join(map(str, row)) for row in zip(*shown.values(), strict=True)]
        path.write_text("\n".join([",".join(shown), *lines]))
    return path


@pytest.mark.parametrize("name", ["curves.csv", "curves.parquet"])
def test_a_curve_is_told_epoch_by_epoch(
    name: str, tmp_path: Path, make_context: MakeContext
) -> None:
    objective = RecordedObjective(curves(tmp_path, name))
    assert objective.axes == {
        "learning_rate": [0.001, 0.003],
        "schedule": ["constant", "cosine"],
    }
    reports: list[tuple[int, float, float]] = []
    result = objective(
        TrialConfig.from_flat({"learning_rate": 0.001, "schedule": "cosine"}),
        make_context(
            lambda e, m: reports.append((e, m[QUALITY], m["train/epoch_seconds"])), budget=GIB
        ),
    )
    assert reports == [(1, 0.25, 2), (2, 0.5, 2), (3, 0.375, 2)]
    assert (result.quality, result.seconds, result.epochs, result.best_epoch) == (0.5, 6, 3, 2)
    assert result.memory_source == "recorded"
    assert result.metrics == {QUALITY: 0.5, "test/ndcg_at_10": 0.375}


def test_the_axes_have_the_full_softmax_as_a_loss(table: Path) -> None:
    assert RecordedObjective(table, "music").axes == {
        "batch_size": [32, 64],
        "negatives": [64, 128],
        "max_length": [16],
        "loss": ["cce-", "cce"],
    }
    assert "loss" not in RecordedObjective(table, "beer").axes


def test_what_is_over_the_budget_is_refused_before_it_runs(table: Path) -> None:
    objective = RecordedObjective(table, "music")
    assert objective.check(config(negatives=128), 3 * GIB) is False
    for chosen, budget, peak in (
        (config(negatives=128), 3 * GIB - 1, 3 * GIB),
        (config(negatives=1000), 9 * GIB, 9 * GIB + 1),
        (config(negatives=1000), GIB, 3 * GIB),
    ):
        with pytest.raises(InfeasibleTrial) as caught:
            objective.check(chosen, budget)
        assert (caught.value.peak_bytes, caught.value.source) == (peak, "predicted")


def test_other_runs_have_another_digest(table: Path, tmp_path: Path) -> None:
    digest = RecordedObjective(table, "music").digest
    assert digest == RecordedObjective(table, "music").digest
    assert digest != RecordedObjective(table, "beer").digest
    other = tmp_path / "other.csv"
    other.write_text(f"{HEADER}\n{ROWS.replace('0.125', '0.126')}")
    assert digest != RecordedObjective(other, "music").digest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "lacks the columns dataset, ndcg_at_10"),
        (f"{HEADER.replace('epochs', 'rounds')}\n{ROWS}", "lacks the columns epochs"),
        ("dataset,ndcg_at_10,peak_memory_gib,epoch_seconds,epochs\n", "no column is a setting"),
        (f"{HEADER}\nmusic,32,many,16,0.125,1.5,2.5,4\n", "row 1: .*many"),
        (f"{HEADER}\nmusic,32,64,16,0.1,1,1\n", "row 1"),
        (f"{HEADER}\n{ROWS}", "runs of several data sets; choose from music, beer"),
        (f"{HEADER}\n", "choose from none"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(
    text: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"runs\.csv: .*{problem}"):
        RecordedObjective(path)


def test_unknown_data_is_one_sentence(table: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.csv: .* no runs of 'x'; choose from music, beer"):
        RecordedObjective(table, "x")


@pytest.mark.parametrize("name", ["no.csv", "no.parquet", "bad.parquet", "bad.csv"])
def test_a_file_that_is_no_table_is_one_sentence(name: str, tmp_path: Path) -> None:
    if name.startswith("bad"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        RecordedObjective(tmp_path / name, "music")


def test_the_recorded_grid_holds_the_published_best_run(make_context: MakeContext) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    result = RecordedObjective(SHARED, "gowalla")(
        config(batch_size=512, negatives=512, max_length=256), make_context(budget=80 * GIB)
    )
    assert result.quality == pytest.approx(0.0278, abs=5e-5)
    assert result.peak_memory / GIB == pytest.approx(42.75, abs=0.01)
