from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from objectives.errors import UserError
from study.ledger import (
    PARENT,
    Ledger,
    Run,
    connect,
    default_storage,
    hide_password,
    sqlite_file,
)
from study.records import find, read


def test_epochs_are_kept_in_order_and_replaced_when_repeated(ledger: Ledger) -> None:
    for number, epoch, quality in ((1, 1, 0.1), (0, 2, 0.2), (0, 1, 0.3), (0, 2, 0.4)):
        ledger.record_epoch(number, epoch, {"val/ndcg_at_10": quality})
    kept = [(row.number, row.epoch, row.metrics["val/ndcg_at_10"]) for row in ledger.epochs()]
    assert kept == [(0, 1, 0.3), (0, 2, 0.4), (1, 1, 0.1)]
    assert [row.epoch for row in ledger.epochs(0, after=1)] == [2]


def test_curves_are_read_where_they_are_asked_for(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.study.ask()
    for epoch, quality in enumerate((0.1, 0.3), 1):
        ledger.record_epoch(1, epoch, {"val/ndcg_at_10": quality})
    assert [trial.curve for trial in read(ledger).trials] == [(), ()]
    assert [trial.curve for trial in read(ledger, curves=True).trials] == [(), (0.1, 0.3)]


def test_runs_are_kept(ledger: Ledger) -> None:
    ledger.set_run(Run(PARENT, "parent", 0, False))
    ledger.set_run(Run(3, "trial", 1, False))
    ledger.set_run(Run(3, "trial", 2, True))
    assert ledger.runs() == {PARENT: Run(PARENT, "parent", 0, False), 3: Run(3, "trial", 2, True)}
    assert read(ledger).mlflow_run == "parent"


def test_a_deleted_study_leaves_nothing_to_its_successor(tmp_path: Path) -> None:
    storage = connect(f"sqlite:///{tmp_path / 'study.db'}")
    first = Ledger.create(storage, "s", {})
    first.record_epoch(0, 1, {"loss": 1.0})
    optuna.delete_study(study_name="s", storage=storage)
    second = Ledger.create(storage, "s", {})
    assert second.study._study_id == first.study._study_id, "the trap: Optuna reuses the number"
    assert second.epochs() == []


def test_the_tables_stand_beside_optunas(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    connect(url)
    names = sa.inspect(sa.create_engine(url)).get_table_names()
    assert {"paretocut_epochs", "paretocut_runs", "trials", "studies"} <= set(names)
    connect(url)  # an existing database is taken as it is


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", ("not a database URL",)),
        ("sqlite:////proc/nowhere/study.db", ("/proc/nowhere", "unable to open")),
        ("postgresql://me:secret@127.0.0.1:1/x", ("postgresql+psycopg://me:***@", "refused")),
        ("oracle://x", ("oracle://x",)),
    ],
)
def test_a_storage_that_cannot_be_reached(url: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        connect(url)
    for word in words:
        assert word in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="not a database"):
        connect(f"sqlite:///{file}")


def test_urls() -> None:
    assert sqlite_file("sqlite:////a/b.db") == Path("/a/b.db")
    assert sqlite_file("postgresql://h/d") is None
    assert hide_password("postgresql://u:p@h/d") == "postgresql+psycopg://u:***@h/d"


def test_a_study_of_somebody_else_is_refused(tmp_path: Path) -> None:
    storage = connect(f"sqlite:///{tmp_path / 'study.db'}")
    optuna.create_study(storage=storage, study_name="theirs")
    assert Ledger.open(storage, "absent") is None
    with pytest.raises(UserError, match="did not make"):
        Ledger.open(storage, "theirs")


def test_find_takes_the_only_study_and_lists_several(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no study"):
        find(None, None, tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Ledger.create(connect(default_storage(tmp_path, name)), name, {})
        if name == "a":
            assert find(None, None, tmp_path).study.study_name == "a"
    with pytest.raises(UserError, match="--study from: a, b"):
        find(None, None, tmp_path)
    with pytest.raises(UserError, match=r"--study c: .* has: a, b"):
        find("c", None, tmp_path)
    assert find("b", default_storage(tmp_path, "b"), tmp_path).study.study_name == "b"
    with pytest.raises(UserError, match="no such file"):
        find("b", f"sqlite:///{tmp_path / 'absent.db'}", tmp_path)
    assert not (tmp_path / "absent.db").exists()
