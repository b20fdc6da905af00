"""What a split may not do, on a thousand random logs."""

import contextlib
import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pytest

from objectives.config import DataConfig
from objectives.data.log import Log, sort
from objectives.data.splits import Part, Split, split, unused
from objectives.errors import UserError
from tests.objectives.data.logs import random_interactions

Event = tuple[int, float, int]
"""User, time and item; a log has each once."""
Sequences = list[list[Event]]

LOGS = 1000
TEMPORAL: list[dict[str, Any]] = [
    *({"target": target} for target in ("last", "first", "random", "all")),
    {"split_quantile": 0.5},
    {"split_date": "40", "target": "all"},
]
KINDS: list[dict[str, Any]] = [
    {"split": "leave-one-out"},
    {"split": "leave-one-out", "validation_users": 2},
    *({"split": "temporal", **kind} for kind in TEMPORAL),
    {"split": "user-disjoint"},
    {"split": "none"},
]
CONFIGS = {" ".join(map(str, kind.values())): DataConfig(data="log", **kind) for kind in KINDS}


def events(part: Part, extra: int) -> Sequences:
    """The events of each sequence, with as many after its end."""
    assert part.log.times is not None
    rows = list(zip(part.log.times.tolist(), part.log.items.tolist(), strict=True))
    bounds = zip(part.users.tolist(), part.begins.tolist(), part.ends.tolist(), strict=True)
    return [[(user, *row) for row in rows[begin : end + extra]] for user, begin, end in bounds]


@dataclass(frozen=True)
class Case:
    """A log and its split, as lists of events."""

    log: Log
    parts: Split
    cut: float

    @cached_property
    def users(self) -> dict[int, list[Event]]:
        whole = Part(self.log, self.log.starts, self.log.ends)
        return {sequence[0][0]: sequence for sequence in events(whole, 0)}

    @cached_property
    def train(self) -> Sequences:
        return events(self.parts.train, 0)

    @cached_property
    def validation(self) -> Sequences:
        return events(self.parts.validation, 1)

    @cached_property
    def test(self) -> Sequences:
        return events(self.parts.test, 1)


@cache
def logs() -> list[tuple[Log, int]]:
    """Logs, and of how many items each is."""
    return [(sort(raw, []), len(raw.item_ids)) for raw in map(random_interactions, range(LOGS))]


@cache
def cases(kind: str) -> list[Case]:
    """The logs that can be split so."""
    config, found = CONFIGS[kind], []
    for log, num_items in logs():
        assert log.times is not None
        cut = math.inf
        if config.split == "temporal":
            cut = float(np.quantile(log.times, config.split_quantile or 0.9))
        if config.split_date is not None:
            cut = float(config.split_date)
        # Of some logs nothing would be left to train or test.
        with contextlib.suppress(UserError):
            found.append(Case(log, split(log, num_items, config, []), cut))
    assert len(found) > LOGS // 3
    return found


def users_of(part: Sequences) -> set[int]:
    return {sequence[0][0] for sequence in part}


def known_to(case: Case) -> set[int]:
    """The items that are trained on."""
    return {item for sequence in case.train for _, _, item in sequence}


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_split_leaks(kind: str) -> None:
    for case in cases(kind):
        train = {event for sequence in case.train for event in sequence}
        targets = [sequence[-1] for sequence in [*case.validation, *case.test]]
        assert train.isdisjoint(targets)
        assert len(set(targets)) == len(targets)
        used = set()
        for sequence in [*case.train, *case.validation, *case.test]:
            # A history precedes its target, in time and, where times are equal, in the file.
            whole = iter(case.users[sequence[0][0]])
            assert all(event in whole for event in sequence)
            assert len(sequence) >= 2
            used.update(sequence)
        assert len(used) + unused(case.log, case.parts) == len(case.log.items)
        catalogue = set(np.flatnonzero(case.parts.items).tolist())
        assert catalogue >= {item for _, _, item in used}
        if CONFIGS[kind].split in ("temporal", "user-disjoint"):
            assert catalogue == known_to(case)
        else:
            assert catalogue == set(case.log.items.tolist())


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind.startswith("temporal")])
def test_the_future_is_tested_only(kind: str) -> None:
    for case in cases(kind):
        # All of a user before the cut is trained on, and nothing else.
        for sequence in case.train:
            assert sequence == [e for e in case.users[sequence[0][0]] if e[1] < case.cut]
        assert all(event[1] < case.cut for sequence in case.validation for event in sequence)
        assert all(sequence[-1][1] >= case.cut for sequence in case.test)
        assert users_of(case.train).isdisjoint(users_of(case.validation))
        assert users_of(case.train) >= users_of(case.test)


@pytest.mark.parametrize("target", ["last", "first", "random", "all"])
def test_targets_are_known_items_after_the_cut(target: str) -> None:
    places = {"last": slice(-1, None), "first": slice(1), "all": slice(None)}
    drawn = set()
    for case in cases(f"temporal {target}"):
        known = known_to(case)
        users = {user: [e for e in case.users[user] if e[2] in known] for user in case.users}
        late = {
            user: events
            for user in users_of(case.train)
            if (events := [e for e in users[user] if e[1] >= case.cut])
        }
        found: dict[int, list[Event]] = {}
        for sequence in case.test:
            # What lies between the cut and the target is known by then.
            assert sequence == users[sequence[0][0]][: len(sequence)]
            found.setdefault(sequence[0][0], []).append(sequence[-1])
        if target == "random":
            assert found.keys() == late.keys()
            assert all(len(events) == 1 for events in found.values())
            drawn |= {late[user].index(event) for user, [event] in found.items()}
        else:
            assert found == {user: events[places[target]] for user, events in late.items()}
    assert len(drawn) > 3 or target != "random"


def test_leave_one_out_keeps_the_last_two() -> None:
    for case in cases("leave-one-out"):
        whole = case.users.values()
        assert case.test == [events for events in whole if len(events) >= 3]
        assert case.validation == [events[:-1] for events in whole if len(events) >= 3]
        trained = [events[:-2] if len(events) >= 3 else events for events in whole]
        assert case.train == [events for events in trained if len(events) >= 2]


def test_no_user_of_a_disjoint_split_is_in_two_parts() -> None:
    for case in cases("user-disjoint"):
        train, validation, test = map(users_of, (case.train, case.validation, case.test))
        assert train.isdisjoint(validation | test)
        assert validation.isdisjoint(test)
        assert max(len(validation), len(test)) <= max(1, round(0.1 * len(case.users)))
        # Their last item that training knows is the target.
        known = known_to(case)
        for sequence in [*case.validation, *case.test]:
            assert sequence == [e for e in case.users[sequence[0][0]] if e[2] in known]


def test_without_a_split_all_is_trained_on() -> None:
    for case in cases("none"):
        assert case.train == [events for events in case.users.values() if len(events) >= 2]
        assert (case.validation, case.test) == ([], [])
