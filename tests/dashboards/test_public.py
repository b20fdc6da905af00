"""What somebody who has nothing but the app's token can reach."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from flask.testing import FlaskClient
from optuna.distributions import IntDistribution

from dashboards.live.server import build_app
from dashboards.live.studies import Studies
from study.ledger import Ledger, connect
from tests.postgres import Postgres

HIDDEN = Path("/srv/hidden")
IDENTITY = {
    "data": {"name": "tiny", "digest": "0", "split": "leave-one-out"},
    "space": {"batch_size": [8, 64]},
    "open": ["batch_size"],
    "objectives": ["quality", "memory"],
    "memory_budget": 1 << 30,
    "memory_source": "cuda",
    "seed": 0,
    "request": {"data": str(HIDDEN / "tiny.csv")},
}

# By what is asked for: output, input and state of the callbacks of dashboards.live.callbacks.
QUESTIONS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(
        ("page.children", {"url.pathname": path}, {"url.search": "?study=s"})
        for path in ("/", "/study/s", "/study/other", "/compare", "/nowhere")
    ),
    *(
        ("..version.data...problem.children..", {"tick.n_intervals": 1}, state)
        for state in (
            {"study.data": name, "version.data": "", "problem.children": None}
            for name in ("s", "other")
        )
    ),
    *(
        ("detail.children", {"trial.data": number, "version.data": ""}, {"study.data": "s"})
        for number in (0, 1, 9)
    ),
    ("..list.children...listed.data..", {"list-tick.n_intervals": 1}, {"listed.data": None}),
    (
        "..comparison.children...compare-problem.children...compare-version.data..",
        {"compared.value": ["s"], "compare-tick.n_intervals": 1},
        {"compare-version.data": None},
    ),
]


def client(studies: Studies, token: str | None = "token") -> FlaskClient:
    made: FlaskClient = build_app(studies, "token").server.test_client()
    if token is not None:
        made.set_cookie("paretocut-token", token)
    return made


def ask(client: FlaskClient, output: str, inputs: Any, state: Any) -> str:
    """What a callback answers."""

    def named(values: dict[str, Any]) -> list[dict[str, Any]]:
        parts = [(*key.split("."), value) for key, value in values.items()]
        return [{"id": id_, "property": of, "value": value} for id_, of, value in parts]

    outputs = [
        dict(zip(("id", "property"), each.split("."), strict=True))
        for each in output.strip(".").split("...")
    ]
    body = {
        "output": output,
        "outputs": outputs if output.startswith("..") else outputs[0],
        "inputs": named(inputs),
        "state": named(state),
        "changedPropIds": [next(iter(inputs))],
    }
    answer = client.post("/_dash-update-component", json=body)
    assert answer.status_code in (200, 204), answer.text
    return answer.text


def everything(client: FlaskClient) -> str:
    """All that the app answers."""
    paths = ("/", "/study/s", "/_dash-layout", "/_dash-dependencies", "/csv/s", "/csv/other")
    pages = [client.get(path).text for path in paths]
    return "\n".join([*pages, *(ask(client, *question) for question in QUESTIONS)])


@pytest.fixture(scope="module")
def storage(postgres: Postgres) -> str:
    """A database with a study of a trial that trained and one that failed."""
    url = postgres.url("public").replace("paretocut@", "paretocut:hunter2@")
    ledger = Ledger.create(connect(url), "s", IDENTITY)
    for outcome in ("complete", "failed"):
        trial = ledger.study.ask({"batch_size": IntDistribution(8, 64)})
        trial.set_user_attr("seed", 0)
        trial.set_user_attr(
            "result", {"outcome": outcome, "peak_memory": 1 << 29, "seconds": 1.0, "epochs": 1}
        )
        if outcome == "complete":
            ledger.study.tell(trial, [0.25, float(1 << 29)])
        else:
            ledger.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return url


def assert_nothing_is_told(text: str, url: str) -> None:
    port = re.findall(r":(\d+)/", url)[0]
    hidden = ("hunter2", "postgresql", "127.0.0.1", f":{port}/", f"port {port}", str(HIDDEN))
    for secret in hidden:
        assert secret not in text


def test_results_are_shown_but_not_where_they_are(storage: str, postgres: Postgres) -> None:
    studies = Studies(storage, HIDDEN, f"sqlite:///{HIDDEN}/mlflow.db", is_public=True)
    text = everything(client(studies))
    assert "0.2500" in text
    assert "python -m study.best --study s --budget" in text
    assert "--study other: not in this storage, which has: s" in text
    assert_nothing_is_told(text, storage)


def test_of_a_folder_its_path_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    Ledger.create(connect(f"sqlite:///{tmp_path}/s/study.db"), "s", IDENTITY)
    text = everything(client(Studies(None, tmp_path, "sqlite:///x.db", is_public=True)))
    assert "which has: s" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@127.0.0.1:1/x", "postgresql://me:hun@ter2@127.0.0.1:2/x"]
)
def test_why_a_storage_cannot_be_read_stands_in_the_log_alone(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = everything(client(Studies(url, HIDDEN, "sqlite:///x.db", is_public=True)))
    assert "this storage cannot be read, or holds no study yet" in text
    assert_nothing_is_told(text, url)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, "not with each of the many questions"
    assert said[0].startswith("--storage")
    assert "hunter2" not in said[0]


@pytest.mark.parametrize("token", [None, "", "guess"])
def test_without_the_token_nothing_is_answered(token: str | None) -> None:
    stranger = client(Studies(None, HIDDEN, "sqlite:///x.db", is_public=True), token)
    rules = list(stranger.application.url_map.iter_rules())
    assert len(rules) > 5
    for rule in rules:
        path = re.sub("<[^>]*>", "x", str(rule))
        for ask_ in (stranger.get, stranger.post, stranger.options, stranger.put):
            answer: Callable[..., Any] = ask_
            assert answer(path).status_code == 403, (path, ask_)


def test_the_token_lets_nobody_write(storage: str) -> None:
    """There is one address that takes anything but GET, and it knows these callbacks alone."""
    reader = client(Studies(storage, HIDDEN, "sqlite:///x.db", is_public=True))
    rules = list(reader.application.url_map.iter_rules())
    written = {str(rule) for rule in rules if (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}}
    assert written == {"/_dash-update-component"}
    outputs = {each["output"] for each in reader.get("/_dash-dependencies").get_json()
               if not each["clientside_function"]}  # fmt: skip
    assert len(outputs) == len({output for output, *_ in QUESTIONS}) + 1, "and that of the figures"
