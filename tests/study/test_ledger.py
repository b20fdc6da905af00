import math
import sqlite3
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError

from objectives.errors import UserError
from study.ledger import (
    PARENT,
    Ledger,
    Run,
    connect,
    default_storage,
    sqlite_file,
)
from study.records import find, read


def test_epochs_are_kept_in_order_and_replaced_when_repeated(ledger: Ledger) -> None:
    for number, epoch, quality in ((1, 1, 0.1), (0, 2, 0.2), (0, 1, 0.3), (0, 2, 0.4)):
        ledger.record_epoch(number, epoch, {"val/ndcg_at_10": quality})
    kept = [(row.number, row.epoch, row.metrics["val/ndcg_at_10"]) for row in ledger.epochs()]
    assert kept == [(0, 1, 0.3), (0, 2, 0.4), (1, 1, 0.1)]
    assert [row.number for row in ledger.epochs([1, 2])] == [
        number for number, *_ in kept if number
    ]
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
        ("postgresql://me:secret@127.0.0.1:1/x", ("postgresql://127.0.0.1:1/x", "refused")),
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


def test_a_study_of_somebody_else_is_refused(tmp_path: Path) -> None:
    storage = connect(f"sqlite:///{tmp_path / 'study.db'}")
    optuna.create_study(storage=storage, study_name="theirs")
    assert Ledger.open(storage, "absent") is None
    with pytest.raises(UserError, match="did not make"):
        Ledger.open(storage, "theirs")


def test_a_study_whose_making_was_cut_short_is_made_whole(tmp_path: Path) -> None:
    storage = connect(f"sqlite:///{tmp_path / 'study.db'}")
    optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])
    assert Ledger.open(storage, "s") is None
    made = Ledger.create(storage, "s", {"seed": 1})
    again = Ledger.create(storage, "s", {"seed": 2})
    assert made.identity == again.identity, "who comes second joins the first"
    assert made.identity["seed"] == 1


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


def test_through_a_connection_for_reading_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "all of it, 100%.db"
    made = Ledger.create(connect(f"sqlite:///{file}"), "s", {"memory_budget": 1})
    made.study.ask()
    before = file.read_bytes()
    ledger = Ledger.open(connect(f"sqlite:///{file}", read_only=True), "s")
    assert ledger is not None
    assert read(ledger) == read(made)
    with pytest.raises(sa.exc.OperationalError, match="readonly"):
        ledger.set_run(Run(0, "r", 0, False))
    with pytest.raises(StorageInternalError):
        ledger.study.ask()
    assert file.read_bytes() == before


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    def refused(url: str, match: str) -> None:
        with pytest.raises(UserError, match=match):
            connect(url, read_only=True)

    refused(f"sqlite:///{tmp_path / 'none.db'}", "unable to open database file")
    (tmp_path / "empty.db").touch()
    refused(f"sqlite:///{tmp_path / 'empty.db'}", "there is no study in it yet")
    refused("mysql+pymysql://u:secret@host/n", r"mysql\+pymysql://host/n: only SQLite and")
    assert not (tmp_path / "none.db").exists()
    assert (tmp_path / "empty.db").read_bytes() == b""
    url = f"sqlite:///{tmp_path / 'newer.db'}"
    with connect(url).engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = 'v9'"))
    refused(url, "no longer compatible with the table schema")
    with sqlite3.connect(tmp_path / "newer.db") as writer:
        writer.execute("begin exclusive")
        refused(url, "database is locked")


def test_what_is_read_is_what_optuna_reads(ledger: Ledger) -> None:
    study = ledger.study
    for number in range(6):
        trial = study.ask()
        trial.suggest_categorical("loss", ["cce-", None])
        trial.suggest_int("batch_size", 8, 64, log=True)
        trial.set_user_attr("result", {"outcome": "complete", "peak_memory": 7})
        if number % 2:
            study.tell(trial, [math.inf if number == 1 else 0.1 * number, 1.0])
    study.enqueue_trial({"batch_size": 8})
    expected = [
        (t.number, t.params, t.datetime_start, t.datetime_complete, (t.values or [None])[0])
        for t in study.trials
    ]
    record = read(ledger)
    found = [(t.number, t.params, t.started, t.finished, t.quality) for t in record.trials]
    assert found == expected
    outcomes = [trial.outcome for trial in record.trials]
    assert outcomes == ["running", "complete"] * 3 + ["waiting"]


def test_only_trials_that_had_not_ended_are_read_again(ledger: Ledger) -> None:
    trials = [ledger.study.ask() for _ in range(4)]
    for trial in trials[1:3]:
        ledger.study.tell(trial, [0.1, 1.0])
    before = read(ledger)
    ledger.set_run(Run(2, "late", 0, False))
    ledger.study.tell(trials[0], [0.2, 1.0])
    ledger.study.ask()
    after = read(ledger, known=before)
    assert after == read(ledger)
    assert after.trials[1] is before.trials[1]
    assert after.trials[2].mlflow_run == "late"
    assert [trial.outcome for trial in after.trials] == ["pruned"] * 3 + ["running"] * 2


@pytest.mark.parametrize("trials", [1, 50])
def test_a_study_is_read_by_as_many_queries_however_many_trials_it_has(
    ledger: Ledger, trials: int
) -> None:
    for number in range(trials):
        ledger.record_epoch(number, 1, {"val/ndcg_at_10": 0.1})
        ledger.study.tell(ledger.study.ask({"x": FloatDistribution(0, 1)}), [0.1, 1.0])
    asked: list[str] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    read(ledger, curves=True)
    assert len(asked) == 8
