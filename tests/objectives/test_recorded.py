from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    assert reports == [(5, {QUALITY: 0.25, "memory/peak_bytes": 3 * GIB})]


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
        (config(batch_size=128), 1),
        (config(max_length=99), 1),
        (config(batch_size=64, loss="cce"), 2),
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


def test_unknown_data_is_one_sentence(table: Path) -> None:
    with pytest.raises(UserError, match=r"runs\.csv: the table has no runs of the data set 'x'"):
        RecordedObjective(table, "x")


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("dataset,batch_size\n")
    with pytest.raises(UserError, match=r"runs\.csv: the table lacks the columns negatives, seq"):
        RecordedObjective(path, "music")
    path.write_text("")
    with pytest.raises(UserError, match="lacks the columns dataset"):
        RecordedObjective(path, "music")


def test_a_missing_table_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.csv"):
        RecordedObjective(tmp_path / "no.csv", "music")


def test_the_recorded_grid_holds_the_published_best_run(make_context: MakeContext) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not here")
    result = RecordedObjective(SHARED, "gowalla")(
        config(batch_size=512, negatives=512, max_length=256), make_context(budget=80 * GIB)
    )
    assert result.quality == pytest.approx(0.0278, abs=5e-5)
    assert result.peak_memory / GIB == pytest.approx(42.75, abs=0.01)
