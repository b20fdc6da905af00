"""Files of prepared data that processes share, and what a kill leaves of them."""

import fcntl
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from objectives.config import DataConfig
from objectives.data import PreparedData, prepare
from objectives.data import prepared as prepared_module

_PREPARE = """
import sys
from objectives.config import DataConfig
from objectives.data import prepare, sources
read = sources.read
def noted(*arguments):
    print("reads", flush=True)
    return read(*arguments)
sources.read = noted
print(len(prepare(DataConfig(data=sys.argv[1], min_item_users=1)).train))
"""

_PREPARE_AND_DIE = """
import os, signal, sys
import pandas  # as pyarrow would in each child
from objectives.config import DataConfig
from objectives.data import prepare
config = DataConfig(data=sys.argv[1], min_item_users=1)
cache, moment = os.environ["PARETOCUT_CACHE"], 0
died = True
while died:
    os.environ["PARETOCUT_CACHE"] = f"{cache}/{moment}"
    child = os.fork()
    if not child:
        left = moment
        def die_in_time(event, arguments):
            global left
            if event == "fcntl.flock" or (arguments and str(arguments[0]).startswith(cache)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(die_in_time)
        prepare(config)
        os._exit(0)
    died = os.waitpid(child, 0)[1] == signal.SIGKILL
    moment += 1
print(moment)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    rows = [f"{user},{item},{user + item}" for user in range(20) for item in range(user % 5, 8)]
    path.write_text("\n".join(["user,item,time", *rows, ""]))
    return path


def prepared(path: Path) -> PreparedData:
    return prepare(DataConfig(data=str(path), min_item_users=1))


def start(script: str, path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, str(path)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_arrays_are_mapped_and_torch_takes_them(log: Path) -> None:
    data = prepared(log)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for array in (data.train.items, data.test.items, data.validation.inputs.offsets):
            assert isinstance(array.base, np.memmap)
            assert type(array) is np.ndarray
            assert torch.from_numpy(array).tolist() == array.tolist()
    # What one process writes there is not what another reads.
    data.train.items[:] = 0
    assert prepared(log).train.items.any()


def test_data_without_targets_can_be_mapped(log: Path) -> None:
    data = prepare(DataConfig(data=str(log), split="none", min_item_users=1))
    assert data.test.inputs.items.shape == data.test.items.shape == (0,)
    assert data.test.inputs.offsets.tolist() == [0]


def test_it_does_not_matter_how_much_is_written_at_a_time(
    log: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for most in (1, 7, 1 << 22):
        monkeypatch.setenv("PARETOCUT_CACHE", str(cache / str(most)))
        monkeypatch.setattr(prepared_module, "_WRITTEN_TOGETHER", most)
        digest = prepared(log).digest
        contents.append(content(cache / str(most) / "prepared" / digest))
    assert contents[0] == contents[1] == contents[2]


def test_one_process_prepares_while_others_wait_and_say_so(log: Path, cache: Path) -> None:
    entry = cache / "prepared" / prepared(log).digest
    expected = content(entry)
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()
    with entry.with_name(f"{entry.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        processes = [start(_PREPARE, log) for _ in range(2)]
        for process in processes:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert said == f"waiting for another process that makes {entry}\n"
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(outputs) == [["20"], ["reads", "20"]]
    assert content(entry) == expected


def test_a_kill_at_any_moment_leaves_nothing_that_counts(log: Path, cache: Path) -> None:
    with start(_PREPARE_AND_DIE, log) as process:
        output, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    moments = int(output)
    assert moments > 15
    expected = None
    for moment in range(moments):
        folder = cache / str(moment)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PARETOCUT_CACHE", str(folder))
            data = prepared(log)
        entry = folder / "prepared" / data.digest
        expected = expected or content(entry)
        assert content(entry) == expected
        # Of what was begun no file remains, either.
        files = {path for path in entry.parent.rglob("*") if path.is_file()}
        assert files == {*entry.iterdir(), entry.with_name(f"{entry.name}.lock")}
