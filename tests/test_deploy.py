"""The compose file and the image: consistent, closed, and made of commands that run.

There is no container engine in the tests: what the services run is run on the host instead, in
their environment, with the addresses and folders of the host.
"""

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from ruamel.yaml import YAML

from study.spec import load_spec
from tests.postgres import BINARIES, Postgres

ROOT = Path(__file__).parents[1]
COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRETS = {"POSTGRES_PASSWORD": "hunter2@:/", "PARETOCUT_TOKEN": "hunter3"}
SMALL = {"WIDTH": "8", "MAX_LENGTH": "10", "NUM_BLOCKS": "1", "MAX_EPOCHS": "1"}


def variables() -> dict[str, str | None]:
    """Those that .env.example has, and their values; None where it is commented out."""
    lines = re.findall(r"^(# )?(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    return {name: None if comment else value for comment, name, value in lines}


def interpolated(value: Any, given: Mapping[str, str]) -> str:
    """A value of the compose file as compose reads it."""

    def fill(found: re.Match[str]) -> str:
        name, default = found[1], found[3] if found[2] == ":-" else None
        value = given.get(name) or default
        assert value is not None, f"{name} is missing"
        return value

    return re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", fill, str(value))


def test_the_compose_file_follows_the_schema() -> None:
    command = Path(sys.executable).parent / "check-jsonschema"
    file = ROOT / "docker-compose.yml"
    done = subprocess.run(
        [command, "--builtin-schema", "vendor.compose-spec", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_what_the_services_name_exists() -> None:
    used = set()
    for service in SERVICES.values():
        for name, needed in service.get("depends_on", {}).items():
            assert needed["condition"] == "service_healthy"
            assert "healthcheck" in SERVICES[name]
            assert not SERVICES[name].get("profiles"), "started whatever the profile"
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                ignored = (ROOT / ".gitignore").read_text().splitlines()
                assert (ROOT / source).is_file() or f"/{source.removeprefix('./')}/" in ignored
            else:
                used.add(source)
                is_ours = target in ("/runs", "/cache", "/artifacts")
                assert is_ours or service["image"].startswith("postgres:")
    assert used == set(COMPOSE["volumes"])
    profiles = {name for service in SERVICES.values() for name in service.get("profiles", [])}
    assert profiles == {"gpu", "cpu"}
    assert variables()["COMPOSE_PROFILES"] in profiles


def test_each_variable_is_documented_and_no_secret_has_a_value() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    known = variables()
    demanded = dict(re.findall(r"\$\{(\w+):\?([^}]+)\}", text))
    passed_on = {
        name
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    defaults = dict(re.findall(r"\$\{(\w+):-([^}]+)\}", text))
    assert set(re.findall(r"\$\{(\w+)", text)) == set(demanded) | set(defaults)
    assert set(known) == set(demanded) | set(defaults) | passed_on | {"COMPOSE_PROFILES"}
    assert {name for name in known if re.search("PASSWORD|TOKEN", name)} == set(demanded)
    assert [known[name] for name in demanded] == ["", ""]
    assert set(defaults.values()) == {"127.0.0.1"}


def test_the_study_of_the_variables_is_one_that_study_run_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = re.findall(r"^# (PARETOCUT_\w+)=(.+)$", (ROOT / ".env.example").read_text(), re.M)
    for name, value in lines:
        monkeypatch.setenv(name, value)
    spec = load_spec({})
    for name, _ in lines:
        field = name.removeprefix("PARETOCUT_").lower()
        assert getattr(spec, field) != type(spec).model_fields[field].default, name


@pytest.mark.parametrize("name", list(SERVICES))
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] in ("unless-stopped", "on-failure:3")
    assert not {"privileged", "network_mode", "pid", "cap_add"} & set(service)
    is_ours = service["image"] == "paretocut" and service["build"] == "."
    assert is_ours or re.fullmatch(r"[\w/]+:\d+\.\d+[\w.-]*", service["image"]), "not pinned"
    assert is_ours or service["user"] == "postgres"
    ports = [interpolated(port, {}) for port in service.get("ports", [])]
    assert ports == {"app": ["127.0.0.1:8050:8050"], "mlflow": ["127.0.0.1:5000:5000"]}.get(
        name, []
    )
    assert ("PARETOCUT_TOKEN" in service["environment"]) == (name == "app")


def test_the_image() -> None:
    text = (ROOT / "Dockerfile").read_text()
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert re.findall("^FROM (.*)$", text, re.M) == ["python:3.12.12-slim-bookworm"]
    assert re.findall("^USER (.*)$", text, re.M) == ["1000"]
    assert not re.search("^ARG|PASSWORD|TOKEN|--index-url|--extra-index-url", text, re.M)
    for module in re.findall(r'"-m", "([\w.]+)"', text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_the_image_has_all_that_is_built_and_no_more() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    assert sent == packages | files | {"pyproject.toml", "docker"}
    for service in SERVICES.values():
        for word in service.get("command", []):
            if word.startswith("/app/"):
                script = ROOT / word.removeprefix("/app/")
                assert os.access(script, os.X_OK)
                assert script.relative_to(ROOT).parts[0] in sent


def test_the_dependencies_of_the_image_are_those_of_the_package(tmp_path: Path) -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    (listing,) = re.findall("^RUN (python -c .* > requirements.txt)", text, re.M)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(["sh", "-c", listing], cwd=tmp_path, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == project["dependencies"]


def fake_cards(folder: Path, count: int) -> dict[str, str]:
    """An environment whose driver shows so many cards."""
    (folder / "bin").mkdir()
    shown = "".join(f"echo GPU-{number}\n" for number in range(count))
    (folder / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{shown}")
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PARETOCUT_OUTPUT_DIR": str(folder)}


def test_each_worker_of_a_host_has_a_card_of_its_own(tmp_path: Path) -> None:
    environment = fake_cards(tmp_path, 2)
    script = SERVICES["worker"]["command"][0].replace("/app", str(ROOT))

    def start() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [script, "sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES"; exec cat'],
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    with ExitStack() as stack:
        first, card = start()
        stack.enter_context(first)
        second, other = start()
        stack.enter_context(second)
        assert (card, other) == ("GPU-0", "GPU-1")
        third, said = start()
        stack.enter_context(third)
        assert said.startswith("one-card: each card of this host has a worker")
        assert third.wait() == 1
        first.kill()
        first.wait()
        fourth, freed = start()
        stack.enter_context(fourth)
        assert freed == "GPU-0"
        for process in (second, fourth):
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Host:
    """This machine in place of the containers."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self.folder = folder
        self.ports = {"5000": str(free_port()), "8050": str(free_port())}
        self._places = {
            "@postgres/": f"@127.0.0.1:{postgres.port}/",
            "mlflow:5000": f"127.0.0.1:{self.ports['5000']}",
            "127.0.0.1:5000": f"127.0.0.1:{self.ports['5000']}",
            "--port=5000": f"--port={self.ports['5000']}",
            "--dbname": f"--port={postgres.port}\0--dbname",
            '"127.0.0.1", 8050': f'"127.0.0.1", {self.ports["8050"]}',
            "dashboards.app": f"dashboards.app\0--port={self.ports['8050']}",
            "/artifacts": str(folder / "artifacts"),
        }
        paths = [str(Path(sys.executable).parent), str(BINARIES), os.environ["PATH"]]
        self._base = {
            "PATH": ":".join(paths),
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder / "cache"),
            "PARETOCUT_OUTPUT_DIR": str(folder / "runs"),
            "PARETOCUT_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def here(self, text: str) -> str:
        """A part of the compose file, as it has to be on this machine."""
        text = interpolated(text, SECRETS)
        for there, here in self._places.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str) -> dict[str, str]:
        values = SERVICES[service]["environment"]
        own = {name: self.here(value) for name, value in values.items() if value is not None}
        return {**self._base, **own}

    def command(self, words: Sequence[str]) -> list[str]:
        return [part for word in words for part in self.here(word).split("\0")]

    def run(self, service: str, words: Sequence[str], **more: str) -> str:
        """What a command says that ends well."""
        done = subprocess.run(
            self.command(words),
            env={**self.environment(service), **more},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def is_healthy(self, service: str) -> bool:
        kind, *words = SERVICES[service]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            self.command(words), env=self.environment(service), capture_output=True, check=False
        )
        return done.returncode == 0

    @contextmanager
    def serving(self, service: str) -> Iterator[None]:
        """A service from when it is healthy on."""
        with (self.folder / f"{service}.log").open("w") as log:
            process = subprocess.Popen(
                self.command(SERVICES[service]["command"]),
                env=self.environment(service),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            assert not self.is_healthy(service), "not before it serves"
            while not self.is_healthy(service):
                assert process.poll() is None, self.log(service)
                time.sleep(2)
            of_it = [psutil.Process(process.pid)]
            of_it += of_it[0].children(recursive=True)
            listed = " ".join(word for each in of_it for word in each.cmdline())
            assert "hunter" not in listed, "in ps"
            yield
            process.terminate()
            process.wait(60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text()


def status(port: str, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_services_run_and_the_quickstart_reaches_all_of_them(
    postgres: Postgres, tmp_path: Path
) -> None:
    host = Host(postgres, tmp_path)
    postgres.url("paretocut")  # The image makes it, and runs the file that makes the other.
    (statement,) = re.findall("^CREATE.*;$", (ROOT / "docker" / "mlflow.sql").read_text(), re.M)
    with psycopg.connect(
        f"postgresql://paretocut@127.0.0.1:{postgres.port}/paretocut", autocommit=True
    ) as connection:
        connection.execute(statement)
    assert host.is_healthy("postgres")
    rows = [f"u{u},i{(7 * u + t) % 30},{u + t}" for u in range(60) for t in range(12)]
    data = tmp_path / "tiny.csv"
    data.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    study = {"PARETOCUT_DATA": str(data), "PARETOCUT_N_TRIALS": "1"}
    study |= {f"PARETOCUT_SPACE_{name}": value for name, value in SMALL.items()}
    with host.serving("mlflow"):
        said = host.run("quickstart", SERVICES["quickstart"]["command"], **study)
        assert "study tiny: 1 trials" in said
        assert "MLflow was not told" not in said
        port, path = host.ports["5000"], "/api/2.0/mlflow/experiments/get-by-name"
        path += "?experiment_name=paretocut"
        assert status(port, path, Host="mlflow:5000")[0] == 200
        assert status(port, path, Host="localhost:5000")[0] == 200
        assert status(port, path, Host="evil.example")[0] == 403
    assert list((tmp_path / "artifacts").rglob("report.html"))
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    with host.serving("app"):
        token = SECRETS["PARETOCUT_TOKEN"]
        assert status(host.ports["8050"], "/csv/tiny")[0] == 403
        code, text = status(host.ports["8050"], "/csv/tiny", Cookie=f"paretocut-token={token}")
        assert (code, len(text.splitlines())) == (200, 2)
    logs = said + host.log("mlflow") + host.log("app")
    assert "hunter" not in logs
