"""The whole tree: style, types, the direction of imports, and what the documents promise."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "arguments",
    [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["mypy"],
    ],
)
def test_style_and_types(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_go_one_way() -> None:
    command = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def readme_commands() -> list[str]:
    return re.findall(r"^(python3 -m venv .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_readme_has_its_two_commands_and_ci_runs_the_second() -> None:
    assert readme_commands() == [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python -m study.run",
        'python3 -m venv .venv && .venv/bin/pip install -e ".[test]" && .venv/bin/pytest -n 2',
    ]
    assert readme_commands()[1] in (ROOT / ".ci" / "run").read_text()


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"python -m ([\w.]+)", (ROOT / "README.md").read_text()))
    assert {
        "study.run",
        "study.status",
        "study.best",
        "dashboards.report",
        "dashboards.app",
    } <= named
    for module in named:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module


def test_the_packages_that_are_built_are_those_of_the_tree() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for name in ("kernels", "models", "objectives", "study", "dashboards")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert set(built) == found


def test_the_shared_data_is_not_in_the_tree() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert not [name for name in listed.stdout.split() if name.endswith((".parquet", ".inter"))]
