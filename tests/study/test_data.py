import json
import shlex
from pathlib import Path

import pytest

from tests.study.conftest import Command


def pairs(text: str) -> dict[str, str]:
    """The table, by its first column."""
    cut = (line.partition("  ") for line in text.splitlines() if "  " in line)
    return {name: value.strip() for name, _, value in cut}


def test_a_log_is_looked_at(command: Command) -> None:
    done = command("study.data", "tiny.csv")
    assert done.returncode == 0, done.stderr
    shown = pairs(done.stdout)
    assert (shown["interactions"], shown["users"], shown["items"]) == ("720", "60", "30")
    assert shown["interactions of a user"].startswith("mean 12.0; 12 (5%), ")
    assert shown["popularity of items"] == ("Gini 0.00; the top 1% have 3% of all; 0% occur once")
    assert shown["split"] == ("30 items, 60 training sequences, 60 validation and 60 test targets")
    assert shown["negatives"] == "--space.negatives 29 is a place to start"
    assert "leave-one-out: 30 items" in done.stderr


def test_the_command_that_is_advised_is_one(command: Command) -> None:
    done = command("study.data", "--data=tiny.csv", "--min-user-items=2")
    advised = pairs(done.stdout)["memory"].partition("python -m ")[2]
    module, *arguments = shlex.split(advised)
    assert arguments == [
        *("--data", "tiny.csv", "--min-user-items", "2"),
        *("--max-length", "10", "--negatives", "29"),
    ]
    done = command(module, *arguments, "--items=3", "--users=3", "--mean-length=3")
    assert "--data and --items: say which data in one of both ways" in done.stderr


def test_a_log_for_machines(command: Command) -> None:
    done = command("study.data", "tiny.csv", "--json", "--split=temporal")
    seen = json.loads(done.stdout)
    assert (seen["users"], seen["first"], seen["last"], seen["ties_share"]) == (60, 0, 70, 0)
    assert seen["lengths"]["1"] == 12
    assert seen["split"]["items"] == 30
    assert seen["refusal"] is None


def test_a_log_that_cannot_be_split_is_looked_at_all_the_same(
    command: Command, tiny_csv: Path
) -> None:
    (tiny_csv.parent / "short.csv").write_text("user,item\n1,2\n2,3\n,4\n")
    done = command("study.data", "short.csv")
    assert done.returncode == 0
    assert pairs(done.stdout)["split"].startswith("cannot be made: short.csv: no interaction is")
    assert "dropped 1 of 3 rows without a user, item or time" in done.stderr
    assert "to start with" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "name the data: a file, a folder, a URL or a named set"),
        (["a.csv", "--data=b.csv"], "a.csv and --data: name the data once"),
        (["no.csv"], "--data no.csv: neither a file or folder"),
        (["tiny.csv", "--columns.user=who"], "no column 'who'"),
        (["sqlite:///no/such.db", "--query=select 1"], "cannot answer it: unable to open"),
    ],
)
def test_what_cannot_be_looked_at(arguments: list[str], reason: str, command: Command) -> None:
    done = command("study.data", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
