"""The documents: the site builds, no link is dead, and what is in them runs."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from study import Study
from study.spec import StudySpec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
QUIET = {"NO_MKDOCS_2_WARNING": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def commands_of(page: Path) -> list[str]:
    """Those of ours in its blocks of the shell, each in one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if "python -m " in line]
    return [
        shlex.join(words[words.index("-m") + 1 :])
        for words in found
        if words[0].endswith("python")
    ]


COMMANDS = sorted({command for page in PAGES for command in commands_of(page)})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_flags_that_it_is_given(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *arguments = shlex.split(command)
    with pytest.raises(SystemExit):
        importlib.import_module(module).main([*arguments, "--nonsense"])
    assert "unrecognized arguments: --nonsense;" in capsys.readouterr().err


def test_the_first_steps_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = [line for line in commands_of(DOCS / "index.md") if "--data" not in line]
    first, *steps = steps[: steps.index("study.run")]
    assert run(sys.executable, "-m", *shlex.split(first), folder=tmp_path).returncode == 0
    assert len(steps) == 4
    for step in steps:
        module, *arguments = shlex.split(step)
        assert importlib.import_module(module).main(arguments) == 0, capsys.readouterr().err
    assert (tmp_path / "runs" / "ml-1m" / "report.html").is_file()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = run(*command, folder=ROOT)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page_and_asks_no_other_host(site: Path) -> None:
    pages = {path.relative_to(site).parent.as_posix() for path in site.rglob("index.html")}
    written = {path.stem for path in DOCS.glob("*.md")} - {"index", "log"}
    notebooks = {f"notebooks/{path.stem}" for path in DOCS.glob("notebooks/*.ipynb")}
    assert written | notebooks | {"reference/commands", "reference/configuration"} <= pages
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?://[^\" >]+)", page.read_text()
        )
        assert not [url for url in loaded if "squidfunk" not in url], page


def test_the_reference_follows_from_the_code(site: Path) -> None:
    commands = (site / "reference" / "commands" / "index.html").read_text()
    keys = (site / "reference" / "configuration" / "index.html").read_text()
    for text in ("--memory-budget SIZE|SHARE|CARD", "--gpus-per-trial", "python -m study.data"):
        assert text in commands
    for text in ("memory_budget", "columns.session", "filter.min_rating", "table_updates"):
        assert f"<code>{text}</code>" in keys


@pytest.mark.parametrize("notebook", sorted(DOCS.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    shutil.copy(notebook, tmp_path)
    jupyter = str(Path(sys.executable).parent / "jupyter")
    done = run(jupyter, "execute", notebook.name, folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_python_of_a_document_imports_is_there(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        for statement in ast.walk(ast.parse(block)):
            if isinstance(statement, ast.ImportFrom):
                module = importlib.import_module(statement.module or "")
                assert all(hasattr(module, name.name) for name in statement.names)
            elif isinstance(statement, ast.Import):
                assert all(importlib.import_module(name.name) for name in statement.names)


def test_python_of_the_documents_asks_studies_for_what_they_have() -> None:
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    ]
    calls = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Study"
    ]
    assert len(calls) >= 3
    for call in calls:
        assert {keyword.arg for keyword in call.keywords} <= set(StudySpec.model_fields)
    asked = set(re.findall(r"\bstudy\.(\w+)", "".join(blocks)))
    assert {"best", "front", "report", "run", "trials"} <= asked
    assert all(hasattr(Study, name) for name in asked)


def test_links_of_the_readme_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), (page.name, link)
