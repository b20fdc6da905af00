"""The pages of the site that follow from the code: commands, configuration, notebooks.

MkDocs calls `on_files` as it builds; see `mkdocs.yml`.
"""

import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

COMMANDS = {
    "study.data": "Look at a log before it is searched",
    "study.estimate": "What will it take?",
    "study.run": "Run, join or go on with a study",
    "study.status": "How far is it?",
    "study.stop": "Stop its workers",
    "study.retry": "Try again what the machine failed",
    "study.best": "Choose, retrain, register",
    "dashboards.report": "Write the report",
    "dashboards.data": "Draw a log",
    "dashboards.app": "All studies in a browser",
}
"""The public commands, and what each is for."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    pages = {
        "reference/commands.md": commands(),
        "reference/configuration.md": configuration(),
    }
    for notebook in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{notebook.stem}.md"] = page_of(notebook)
        files.remove(files.src_uris[f"notebooks/{notebook.name}"])
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def commands() -> str:
    """Every command with its help."""
    parts = ["# Commands\n\nWhat each prints with `--help`.\n"]
    for module, purpose in COMMANDS.items():
        parts.append(f"## {purpose}\n\n```text\n{_help(module)}```\n")
    return "\n".join(parts)


def _help(module: str) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return text.getvalue()


def configuration() -> str:
    """Every key of a study's file, and every setting of a trial."""
    from objectives.config import SETTINGS, ColumnsConfig, FilterConfig
    from study.spec import StudySpec

    rows = [
        (f"`{name}`", _shown(field.default), field.description)
        for name, field in StudySpec.model_fields.items()
        if name not in ("space", "columns", "filter")
    ]
    for section, part in (("columns", ColumnsConfig), ("filter", FilterConfig)):
        rows += [
            (f"`{section}.{name}`", "", field.description)
            for name, field in part.model_fields.items()
        ]
    settings = [
        (
            f"`{name}`",
            _shown(setting.default),
            ", ".join(f"`{word}`" for word in setting.words),
            ", ".join(f"`{loss}`" for loss in setting.losses) or "all",
            setting.description,
        )
        for name, setting in SETTINGS.items()
    ]
    return "\n".join(
        [
            "# Configuration\n",
            "A key stands in a TOML file (`--config study.toml`), in the environment as",
            "`PARETOCUT_` and its name in capitals, or is a flag, with dashes: `--split-date`.",
            "Flags win over the environment, the environment over the file.\n",
            *_table(("key", "default", ""), rows),
            "\n## Settings of a trial\n",
            "As `--space.NAME`, or in `[space]` of the file: one value fixes a setting, two",
            "numbers open a range, more values or words are choices.\n",
            *_table(("setting", "default", "values", "losses", ""), settings),
            "",
        ]
    )


def _shown(default: Any) -> str:
    if default is None or default == "" or "Undefined" in repr(default):
        return ""
    if isinstance(default, (tuple, list)):
        default = " ".join(map(str, default))
    return f"`{default}`"


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "| --- " * len(header) + "|"
    for row in rows:
        cells = (str(cell or "").replace("%%", "%").replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


def page_of(notebook: Path) -> str:
    """A notebook's cells as a page: its text, and its code without outputs."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")

    return "\n\n".join(parts) + f"\n\nThe notebook is `docs/notebooks/{notebook.name}`.\n"
