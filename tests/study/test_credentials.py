"""No password reaches what people, logs and other programs read."""

import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from objectives.errors import UserError
from study.credentials import hide_password
from study.ledger import Ledger, connect
from study.tracking import check_server
from tests.postgres import Postgres
from tests.study.conftest import Command
from tests.study.test_tracking import track

ROOT = Path(__file__).parents[2]
SMALL = ["--space.width=8", "--space.max_length=10", "--space.max_epochs=1"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://u:pw@h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://u:p/w?p:w@h/d", "postgresql://h/d"),
        ("postgresql://u:p@w@h/d", "postgresql://h/d"),
        ("postgresql://u:p%40w@h/d?sslmode=require", "postgresql://h/d?sslmode=require"),
        ("--storage=postgresql://u:p w@h/d", "--storage=postgresql://h/d"),
        ("postgresql://h/d?user=u&password=pw&port=1", "postgresql://h/d?user=u&password=&port=1"),
        ("postgresql://h/d?pass%77ord=pw&sslpassword=pw", "postgresql://h/d?pass%77ord=&sslpassword="),
        ("postgresql:///d?host=/run/pg&password=pw", "postgresql:///d?host=/run/pg&password="),
        ("https://token@h/x", "https://h/x"),
        ("API request to http://u:pw@h/api failed", "API request to http://h/api failed"),
        ("sqlite:////a@b/c.db", "sqlite:////a@b/c.db"),
        ("file:///a@b", "file:///a@b"),
        ("--seed", "--seed"),
    ],
)  # fmt: skip
def test_what_lets_in_is_hidden(text: str, shown: str) -> None:
    assert hide_password(text) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@127.0.0.1:1/d",
        "postgresql://u:@hunter2@127.0.0.1:1/d",
        "postgresql://u:x@y:hunter2@127.0.0.1:1/d",
        "postgresql://127.0.0.1:1/d?user=u&password=hunter2",
        "postgresql://127.0.0.1:1/d?pass%77ord=hunter2&nonsense=1",
        "mysql://u:hunter2@127.0.0.1:1/d",
    ],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_storage_that_cannot_be_used_is_said_without_its_password(
    url: str, read_only: bool
) -> None:
    with pytest.raises(UserError) as caught:
        connect(url, read_only=read_only)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("password", ["hunter2", "x@y:hunter2", "hunter2/?"])
def test_an_mlflow_that_does_not_answer_is_said_without_its_password(
    ledger: Ledger, tmp_path: Path, password: str
) -> None:
    uri = f"http://me:{password}@127.0.0.1:1"
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1: .*refused") as caught:
        check_server(uri)
    tracker, said = track(ledger, uri, tmp_path, lambda tracker: tracker.drain())
    assert "127.0.0.1" in tracker.untold
    assert "MLflow at http://127.0.0.1:1 does" in said[0]
    assert "hunter2" not in " ".join((str(caught.value), tracker.untold, *said))


def test_a_misspelt_flag_is_said_without_its_password(command: Command) -> None:
    done = command("study.run", "--storge", "postgresql://u:hunter2@h/d")
    assert done.returncode == 2
    assert "--storge postgresql://h/d" in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.usefixtures("made_store")
def test_the_password_of_a_storage_is_nowhere(
    postgres: Postgres, tiny_csv: Path, command: Command
) -> None:
    secret = "hunter2%40%25"
    url = postgres.url("secret").replace("paretocut@", f"paretocut:{secret}/x?y@")
    url += f"?password={secret}&sslmode=disable"
    where = ("--storage", url)
    rows = tiny_csv.read_text().splitlines()[1:]
    with connect(url).engine.begin() as connection:
        connection.execute(sa.text('create table log ("user" text, item text, time int)'))
        for row in rows:
            user, item, time = row.split(",")
            values = {"user": user, "item": item, "time": int(time)}
            connection.execute(sa.text("insert into log values (:user, :item, :time)"), values)
    data = (f"--data={url}", "--query=select * from log")
    run = command("study.run", *data, "--study=secret", "--n-trials=1", *SMALL, *where)
    assert run.returncode == 0, run.stderr
    said = [run.stdout, run.stderr]
    for module, *arguments in (
        ("study.status",),
        ("study.best",),
        ("study.best", "--study=other"),
        ("dashboards.report", "--output=runs/trials.json"),
        ("dashboards.report", "--study=other"),
    ):
        done = command(module, *arguments, *where)
        said += [done.stdout, done.stderr]
    assert "hunter2" not in "".join(said)

    files = [path for path in (tiny_csv.parent / "runs").rglob("*") if path.is_file()]
    told = b"".join(path.read_bytes() for path in files)
    shown = f"127.0.0.1:{postgres.port}/secret?password=&sslmode=disable"
    assert shown.encode() in told, "the command, in MLflow"
    assert b"hunter2" not in told

    engine = connect(url).engine
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        kept = [list(connection.execute(sa.select(table))) for table in tables.sorted_tables]
    assert "select * from log" in str(kept)
    assert "hunter2" not in str(kept)


def test_tls_settings_of_the_url_reach_the_database(postgres: Postgres) -> None:
    url = postgres.url("tls")
    connect(f"{url}?sslmode=disable")
    for setting in ("sslmode=require", "sslmode=verify-full&sslrootcert=system"):
        with pytest.raises(UserError, match="server does not support SSL, but SSL was required"):
            connect(f"{url}?{setting}")


def test_nothing_is_unpickled() -> None:
    """What is loaded from a storage, MLflow or a folder may have been put there by others."""
    sources = [
        path
        for package in ("kernels", "models", "objectives", "study", "dashboards")
        for path in (ROOT / package).rglob("*.py")
    ]
    code = "\n".join(path.read_text() for path in sources)
    unsafe = r"pickle\.loads?\b|Unpickler\(|joblib|allow_pickle=True|read_pickle|shelve|yaml\.load"
    assert re.findall(unsafe, code) == []
    loads = re.findall(r"torch\.load\((.*)\)", code)
    assert loads
    assert all("weights_only=True" in load for load in loads)
