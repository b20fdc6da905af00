"""The examples for clusters, and the commands of docs/many-gpus.md and docs/data.md."""

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SLURM = DOCS / "examples" / "slurm.sh"
KUBERNETES: list[dict[str, Any]] = list(
    YAML(typ="safe").load_all(DOCS / "examples" / "kubernetes.yaml")
)


def commands() -> list[str]:
    """Those of ours in the page, the examples and the compose file."""
    pages = [(DOCS / name).read_text() for name in ("many-gpus.md", "data.md")]
    text = "".join(pages) + SLURM.read_text().replace('"$@"', "")
    found = re.findall(r"^(?:srun )?(python -m .*)$", text, re.M)
    services = YAML(typ="safe").load(ROOT / "docker-compose.yml")["services"]
    lists = [service.get("command", []) for service in services.values()]
    container = KUBERNETES[1]["spec"]["template"]["spec"]["containers"][0]
    lists.append([*container["command"], *container["args"]])
    found += [shlex.join(words[words.index("python") :]) for words in lists if "python" in words]
    return [shlex.join(shlex.split(line, comments=True)) for line in found]


@pytest.mark.parametrize("command", commands())
def test_a_command_has_the_flags_that_it_is_given(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    python, minus_m, module, *arguments = shlex.split(command)
    assert (python, minus_m) == ("python", "-m")
    with pytest.raises(SystemExit):
        importlib.import_module(module).main([*arguments, "--nonsense"])
    assert "unrecognized arguments: --nonsense;" in capsys.readouterr().err


def test_the_commands_are_found() -> None:
    modules = {shlex.split(command)[2] for command in commands()}
    assert modules == {
        "study.run",
        "study.status",
        "study.stop",
        "study.retry",
        "study.data",
        "dashboards.app",
        "dashboards.data",
    }
    assert len(commands()) >= 10


@pytest.mark.parametrize(("code", "is_queued_again"), [(0, False), (2, False), (143, True)])
def test_the_array_queues_again_what_ran_out_of_time(
    tmp_path: Path, code: int, is_queued_again: bool
) -> None:
    for name, last in (("srun", f"exit {code}"), ("scontrol", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $* $OPTUNA_STORAGE"\n{last}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-u", SLURM, "--data", "my file.csv"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "SLURM_ARRAY_JOB_ID": "7",
            "SLURM_ARRAY_TASK_ID": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "srun python -m study.run" in done.stdout
    assert "--data my file.csv postgresql+psycopg://" in done.stdout
    assert ("scontrol requeue 7_3" in done.stdout) == is_queued_again


def test_the_array_asks_for_a_signal_and_to_be_queued_again() -> None:
    asked = re.findall("^#SBATCH --(.*)$", SLURM.read_text(), re.M)
    assert {"signal=TERM@60", "requeue", "gres=gpu:1", "open-mode=append"} <= set(asked)


def test_the_job() -> None:
    claim, job = KUBERNETES
    assert (claim["kind"], job["kind"], job["apiVersion"]) == (
        "PersistentVolumeClaim",
        "Job",
        "batch/v1",
    )
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "as podFailurePolicy demands"
    assert pod["terminationGracePeriodSeconds"] >= 60
    assert pod["securityContext"]["runAsUser"] == 1000, "that of the Dockerfile"
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["securityContext"]["readOnlyRootFilesystem"]
    (storage,) = [each for each in container["env"] if each["name"] == "OPTUNA_STORAGE"]
    assert set(storage) == {"name", "valueFrom"}, "not in the file"
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
    assert {"/runs", "/cache", "/tmp"} == set(mounted.values())
    claims = [each["persistentVolumeClaim"] for each in pod["volumes"] if each["name"] == "runs"]
    assert claims == [{"claimName": claim["metadata"]["name"]}]


def test_no_example_holds_a_password() -> None:
    for path in (DOCS / "many-gpus.md", *(DOCS / "examples").iterdir(), ROOT / ".env.example"):
        assert not re.search(r"://[^/\s]*:[^/\s]*@|password=\w", path.read_text()), path
