"""`python -m study.data`: a look at a log of interactions, before a study of it."""

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.config import TrialConfig
from objectives.errors import UserError
from study import cli
from study.credentials import hide_password
from study.flags import add_data_flags
from study.spec import data_names, flag_of, load_spec

if TYPE_CHECKING:
    from objectives.data.facts import LogFacts, SplitFacts


@dataclass(frozen=True)
class Look:
    """What there is to know of a log.

    Attributes:
        name: For people.
        log: As it was read.
        split: As trials have it, or None where it cannot be split.
        refusal: Why it cannot.
        notes: What was dropped or is odd.
        flags: What names the data for another command.
    """

    name: str
    log: "LogFacts"
    split: "SplitFacts | None"
    refusal: str
    notes: tuple[str, ...]
    flags: str


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = build_parser(
        "study.data", "Look at a log of interactions before it is searched: what it holds, what a "
        "split makes of it, and where to start. python -m dashboards.data draws it."
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    return cli.main(parser, _data, argv)


def build_parser(command: str, description: str) -> cli.Parser:
    """A parser with the flags that say which data."""
    parser = cli.build_parser(command, "NAME|PATH|URL [options]", description)
    parser.add_argument("place", metavar="NAME|PATH|URL", nargs="?", help="the same as --data")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML file of a study")
    add_data_flags(parser.add_argument_group("data"), is_default=False)
    return parser


def look(arguments: argparse.Namespace) -> Look:
    """Reads, filters and splits the data that the flags name.

    Raises:
        UserError: It cannot be read.
    """
    given = {name: vars(arguments)[name] for name in data_names()}
    if arguments.place is not None:
        if given["data"] is not None:
            raise UserError(f"{arguments.place} and --data: name the data once")
        given["data"] = arguments.place
    spec = load_spec(given, arguments.config)
    if "data" not in spec.model_fields_set:
        raise UserError("name the data: a file, a folder, a URL or a named set; --help says more")
    config = spec.data_config

    from objectives.data import prepare, sources
    from objectives.data.facts import facts_of_log, facts_of_split

    files, columns, notes = sources.locate(config)
    log = sources.read(files, columns, config.filter)
    split, refusal = None, ""
    try:
        data = prepare(config)
        split, notes = facts_of_split(data), notes + data.notes
    except UserError as error:
        notes, refusal = notes + log.notes, str(error)
    flags = shlex.join(
        word
        for name, value in given.items()
        if value is not None
        for word in (flag_of(name), hide_password(value))
    )
    name = sources.name_of(config)
    return Look(name, facts_of_log(log), split, refusal, tuple(dict.fromkeys(notes)), flags)


def rows(seen: Look) -> list[tuple[str, str]]:
    """What is seen, as pairs of words for people."""
    from objectives.data.facts import QUANTILES

    log, split = seen.log, seen.split
    lengths = ", ".join(
        f"{value:,} ({'longest' if share == 1 else f'{share:.0%}'})"
        for share, value in zip(QUANTILES, log.quantiles, strict=True)
    )
    shown = [
        ("interactions", f"{log.num_interactions:,}"),
        ("users", f"{len(log.lengths):,}"),
        ("items", f"{len(log.counts):,}"),
        ("time", log.span),
        ("interactions of a user", f"mean {log.lengths.mean():,.1f}; {lengths}"),
        (
            "popularity of items",
            f"Gini {log.gini:.2f}; the top 1% have {log.head:.0%} of all; {log.once:.0%} occur "
            "once",
        ),
        ("repeats", f"{log.repeats:.1%} are of an item that the user has had before"),
        ("ties in time", f"{log.ties:.1%} are at the time of the user's previous one"),
        ("copies", f"{log.copies:,} users have a history of five items or more that another has"),
    ]
    if log.future is not None:
        shown.append(
            (
                "future in training",
                f"{log.future:.0%}, under leave-one-out, are later than half of its test targets; "
                "none under --split temporal",
            )
        )
    if log.new is not None:
        shown.append(
            ("new items", f"{log.new:.1%} of the latest tenth are of items that are new in it")
        )
    if split is None:
        return [*shown, ("split", f"cannot be made: {hide_password(seen.refusal)}")]
    validation, test = split.num_targets
    return [
        *shown,
        (
            "split",
            f"{split.num_items:,} items, {split.num_sequences:,} training sequences, "
            f"{validation:,} validation and {test:,} test targets",
        ),
        ("cold targets", f"{split.cold:.1%} of the test targets are new to training"),
    ]


def advice(seen: Look) -> list[tuple[str, str]]:
    """Where to start, as pairs of words for people; nothing where there is no split."""
    if seen.split is None:
        return []
    from objectives.memory import least_table_memory
    from study.budget import format_bytes

    length, negatives = seen.split.covered, seen.split.negatives
    tables = least_table_memory(TrialConfig(), seen.split.num_items)
    width = TrialConfig().model.width
    return [
        ("length", f"--space.max_length {length} holds 95% of the training sequences whole"),
        ("negatives", f"--space.negatives {negatives} is a place to start"),
        (
            "memory",
            f"the item table alone takes {format_bytes(tables)} at width {width}; all of it: "
            f"python -m study.estimate {seen.flags} --max-length {length} --negatives {negatives}",
        ),
    ]


def _data(arguments: argparse.Namespace) -> int:
    seen = look(arguments)
    if arguments.json:
        print(json.dumps(_as_json(seen), indent=2))
        return cli.OK
    for note in seen.notes:
        cli.say(f"{seen.name}: {note}")
    print(cli.aligned(rows(seen)))
    if start := advice(seen):
        print(f"\nto start with\n{cli.aligned(start)}")
    return cli.OK


def _as_json(seen: Look) -> dict[str, Any]:
    from objectives.data.facts import QUANTILES

    log, split = seen.log, seen.split
    return {
        "name": seen.name,
        "interactions": log.num_interactions,
        "users": len(log.lengths),
        "items": len(log.counts),
        "first": log.first,
        "last": log.last,
        "lengths": {
            "mean": float(log.lengths.mean()),
            **{f"{q:g}": n for q, n in zip(QUANTILES, log.quantiles, strict=True)},
        },
        "gini": log.gini,
        "top_1_percent_share": log.head,
        "items_once_share": log.once,
        "repeats_share": log.repeats,
        "ties_share": log.ties,
        "future_share": log.future,
        "new_items_share": log.new,
        "copied_histories": log.copies,
        "split": None
        if split is None
        else {
            "items": split.num_items,
            "sequences": split.num_sequences,
            "validation_targets": split.num_targets[0],
            "test_targets": split.num_targets[1],
            "cold_share": split.cold,
            "max_length": split.covered,
            "negatives": split.negatives,
        },
        "refusal": seen.refusal or None,
        "notes": list(seen.notes),
    }


if __name__ == "__main__":
    sys.exit(main())
