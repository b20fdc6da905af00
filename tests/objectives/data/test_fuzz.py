"""Damaged and hostile files: each is read, or refused in one sentence; and no row is lost unsaid.

`python -m benchmarks.fuzz` does the same with more files.
"""

from pathlib import Path

import pytest

from tests.objectives.data.damage import FORMATS, check, files

NUM_FILES = 250


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    outcomes = [check(path, content) for content in files(name, NUM_FILES)]
    # Neither all of them are refused, nor none is.
    assert 0 < outcomes.count("read") < NUM_FILES
