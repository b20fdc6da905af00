import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from objectives.config import ColumnsConfig, DataConfig
from objectives.data import PreparedData, Sequences, Targets, prepare, sources
from objectives.data.cache import cache_folder
from objectives.errors import UserError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


class Event(NamedTuple):
    user: int
    item: int
    time: int


Log = list[Event]
Split = tuple[list[list[int]], list[list[int]], list[list[int]]]


def write(path: Path, log: Log, *, times: bool = True) -> Path:
    rows = [f"{user},{item},{time}" if times else f"{user},{item}" for user, item, time in log]
    header = "user,item,time" if times else "user,item"
    path.write_text("\n".join([header, *rows, ""]))
    return path


def config(path: Path, **settings: Any) -> DataConfig:
    return DataConfig(data=str(path), **({"min_item_users": 1, "min_user_items": 1} | settings))


def refusal(chosen: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        prepare(chosen)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lists(data: PreparedData, sequences: Sequences) -> list[list[int]]:
    """Sequences of the file's own ids."""
    ids = [int(item) for item in data.item_ids.to_pylist()]
    return [
        [ids[item] for item in sequences.items[begin:end]]
        for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True)
    ]


def with_targets(data: PreparedData, targets: Targets) -> list[list[int]]:
    ids = [int(item) for item in data.item_ids.to_pylist()]
    histories = lists(data, targets.inputs)
    return [
        [*history, ids[target]] for history, target in zip(histories, targets.items, strict=True)
    ]


def split_of(data: PreparedData) -> Split:
    return (
        sorted(lists(data, data.train)),
        sorted(with_targets(data, data.validation)),
        sorted(with_targets(data, data.test)),
    )


# The protocol of section 5 of the loss reference once more, slowly.


def histories(log: Log) -> dict[int, Log]:
    """Events of each user by time, ties by row; users in the order in which they appear."""
    by_user: dict[int, Log] = {}
    for event in log:
        by_user.setdefault(event.user, []).append(event)
    return {user: sorted(events, key=lambda e: e.time) for user, events in by_user.items()}


def filtered(log: Log, min_item_users: int, min_user_items: int) -> dict[int, Log]:
    """Each event once; popular items; then users of enough of these items."""
    log = list(dict.fromkeys(log))
    users_of = Counter(item for _, item in {(event.user, event.item) for event in log})
    kept = {
        user: [event for event in events if users_of[event.item] >= min_item_users]
        for user, events in histories(log).items()
    }
    return {
        user: events
        for user, events in kept.items()
        if len({event.item for event in events}) >= min_user_items and events
    }


def items(events: Log) -> list[int]:
    return [event.item for event in events]


def leave_one_out(users: dict[int, Log]) -> Split | None:
    train, validation, test = [], [], []
    for events in users.values():
        ids = items(events)
        if len(ids) < 3:
            train.append(ids)
        else:
            train.append(ids[:-2])
            validation.append(ids[:-1])
            test.append(ids)
    train = [ids for ids in train if len(ids) >= 2]
    return (train, validation, test) if train and test else None


def cut_of(users: dict[int, Log]) -> Fraction:
    """The 90 % quantile of the events' times, interpolated."""
    times = sorted(event.time for events in users.values() for event in events)
    whole, rest = divmod(Fraction(9, 10) * (len(times) - 1), 1)
    after = times[min(int(whole) + 1, len(times) - 1)]
    return times[int(whole)] + rest * (after - times[int(whole)])


def temporal(users: dict[int, Log], first_seen: list[int]) -> Split | None:
    cut = cut_of(users)
    before = {u: [e for e in events if e.time < cut] for u, events in users.items()}
    codes = [code for code, user in enumerate(first_seen) if before.get(user)]
    if len(codes) < 2:
        return None
    size = max(1, round(0.05 * len(codes)))
    chosen = {
        first_seen[code] for code in np.random.default_rng(42).choice(codes, size, replace=False)
    }
    training = {u: e for u, e in before.items() if u not in chosen and len(e) >= 2}
    known = {event.item for events in training.values() for event in events}
    validation = [items([e for e in before[user] if e.item in known]) for user in chosen]
    test = [[e for e in users[user] if e.item in known] for user in training]
    result = (
        [items(events) for events in training.values()],
        [ids for ids in validation if len(ids) >= 2],
        # The one departure: the target of a test user is never an event of training.
        [items(events) for events in test if len(events) >= 2 and events[-1].time >= cut],
    )
    return result if all(result) else None


def random_log(seed: int) -> Log:
    """Up to a hundred events of few users, items and times: repeats and ties are common."""
    generator = np.random.default_rng(seed)
    size, num_users, num_items, num_times = generator.integers(1, (100, 8, 8, 150))
    columns = (generator.integers(0, n, size) for n in (num_users, num_items, num_times))
    return [Event(int(u), int(i), int(t)) for u, i, t in zip(*columns, strict=True)]


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
@given(
    seed=st.integers(0, 1 << 32),
    min_item_users=st.integers(1, 3),
    min_user_items=st.integers(1, 3),
)
@hypothesis.settings(max_examples=150)
def test_both_splits_equal_the_slow_ones(
    split: str,
    seed: int,
    min_item_users: int,
    min_user_items: int,
    session_cache: Path,
) -> None:
    log = random_log(seed)
    users = filtered(log, min_item_users, min_user_items)
    expected = None
    if len({event.item for events in users.values() for event in events}) >= 2:
        first_seen = list(dict.fromkeys(event.user for event in log))
        expected = (
            leave_one_out(users) if split == "leave-one-out" else temporal(users, first_seen)
        )
    chosen = config(
        write(session_cache / "log.csv", log),
        split=split,
        min_item_users=min_item_users,
        min_user_items=min_user_items,
    )
    if expected is None:
        assert str(session_cache) in refusal(chosen)
        return
    data = prepare(chosen)
    train, validation, test = expected
    assert split_of(data) == (sorted(train), sorted(validation), sorted(test))
    catalogue = {item for ids in train for item in ids}
    if split == "leave-one-out":
        catalogue = {item for events in users.values() for item in items(events)}
    assert sorted(map(int, data.item_ids.to_pylist())) == sorted(catalogue)
    assert data.num_items == len(catalogue)


def test_sequences_are_ordered_by_time_and_then_by_row(tmp_path: Path) -> None:
    log = [Event(1, 10, 5), Event(1, 11, 2), Event(1, 12, 5), Event(1, 13, 5), Event(1, 14, 1)]
    data = prepare(config(write(tmp_path / "log.csv", log)))
    assert with_targets(data, data.test) == [[14, 11, 10, 12, 13]]
    assert any(note.startswith("2 of 5 interactions share their time") for note in data.notes)


def test_without_times_rows_are_in_order(tmp_path: Path) -> None:
    log = [Event(1, 10, 9), Event(2, 10, 9), Event(1, 12, 1), Event(1, 11, 5), Event(1, 10, 0)]
    data = prepare(config(write(tmp_path / "log.csv", log, times=False)))
    assert with_targets(data, data.test) == [[10, 12, 11, 10]]
    assert "no time column: the order of the rows is the order of the interactions" in data.notes
    timed = write(tmp_path / "timed.csv", log)
    ignored = prepare(config(timed, columns=ColumnsConfig(time="none")))
    assert split_of(ignored) == split_of(data)


def marked_log() -> Log:
    """Forty users, each of whose first event is an item of their own, 1000 + user."""
    generator = np.random.default_rng(7)
    log = [Event(user, 1000 + user, user) for user in range(40)]
    for time in range(100, 700):
        log.append(Event(int(generator.integers(40)), int(generator.integers(15)), time))
    return log


def test_nothing_of_the_future_is_in_training(tmp_path: Path) -> None:
    log = marked_log()
    data = prepare(config(write(tmp_path / "log.csv", log), split="temporal"))
    users = histories(log)
    cut = cut_of(users)
    train = {ids[0] - 1000: ids for ids in lists(data, data.train)}
    for user, ids in train.items():
        assert ids == items([event for event in users[user] if event.time < cut])
    validation = lists(data, data.validation.inputs)
    assert len(validation) == 2
    assert len(train) == 38
    test = {ids[0] - 1000: ids for ids in with_targets(data, data.test)}
    assert set(test) <= set(train)
    for user, ids in test.items():
        assert ids == items(users[user])
        assert users[user][-1].time >= cut
    # Their own items are unknown to training, so they cannot lead a validation history.
    assert all(item < 1000 for ids in validation for item in ids)


def test_targets_of_leave_one_out_are_not_in_training(tmp_path: Path) -> None:
    log = marked_log()
    data = prepare(config(write(tmp_path / "log.csv", log)))
    users = histories(log)
    for part, kept in (
        (lists(data, data.train), -2),
        (with_targets(data, data.validation), -1),
        (with_targets(data, data.test), None),
    ):
        assert {ids[0] - 1000: ids for ids in part} == {
            user: items(events)[:kept] for user, events in users.items()
        }


def test_users_that_are_not_validated_train_on_all_but_their_last_item(tmp_path: Path) -> None:
    log = marked_log()
    path = write(tmp_path / "log.csv", log)
    data = prepare(config(path, validation_users=3))
    whole, users = prepare(config(path)), histories(log)
    validated = with_targets(data, data.validation)
    assert len(validated) == 3
    assert all(ids in with_targets(whole, whole.validation) for ids in validated)
    assert with_targets(data, data.test) == with_targets(whole, whole.test)
    chosen = {ids[0] for ids in validated}
    assert {ids[0]: ids for ids in lists(data, data.train)} == {
        items(events)[0]: items(events)[: -2 if items(events)[0] in chosen else -1]
        for events in users.values()
    }
    assert data.digest != whole.digest
    again = prepare(config(path, validation_users=3))
    assert with_targets(again, again.validation) == validated


def test_there_must_be_as_many_users_as_are_to_be_validated(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", marked_log())
    message = refusal(config(path, validation_users=1000))
    assert re.search(r"--validation-users 1000: there are \d+ users .* use at most", message)
    with pytest.raises(ValidationError, match="validation_users is for the leave-one-out split"):
        config(path, validation_users=3, split="temporal")


def test_a_test_user_with_only_new_items_after_the_cut_is_left_out(tmp_path: Path) -> None:
    log = [Event(user, item, 10 * item + user) for user in range(9) for item in range(9)]
    log += [Event(9, time % 9, time) for time in range(500, 512)]  # the cut lies among these
    log += [Event(4, 3, 1000), Event(5, 99, 1001)]
    data = prepare(config(write(tmp_path / "log.csv", log), split="temporal"))
    tests = with_targets(data, data.test)
    assert sorted(map(len, tests)) == [10, 12]
    assert [*range(9), 3] in tests
    assert b"99" not in data.item_ids.to_pylist()


def test_users_without_a_target_are_skipped_and_counted(tmp_path: Path) -> None:
    chosen = np.random.default_rng(42).choice(40, 2, replace=False)  # those validated on
    lonely = chosen[0]
    log = [
        Event(user, 100 + time if user == lonely else (user + time) % 15, time)
        for time in range(6)
        for user in range(40)
    ]
    # After the cut: one known item, one unknown item, and nothing of the others.
    others = [user for user in range(40) if user not in chosen]
    log += [Event(others[0], 3, 100), Event(others[1], 99, 100)]
    log += [Event(others[0], item % 15, 50 + item) for item in range(30)]
    data = prepare(config(write(tmp_path / "log.csv", log), split="temporal"))
    assert (len(data.train), len(data.validation.items), len(data.test.items)) == (38, 1, 1)
    skipped = [note for note in data.notes if "have no target and are skipped" in note]
    assert [note.split(" have")[0] for note in skipped] == [
        "1 of 2 validation users",
        "37 of 38 test users",
    ]
    assert prepare(config(tmp_path / "log.csv", split="temporal")).notes == data.notes


# All for training


def test_nothing_is_held_back_for_a_model_that_is_to_serve(tmp_path: Path) -> None:
    log = [*marked_log(), Event(40, 7, 1)]
    data = prepare(config(write(tmp_path / "log.csv", log), split="none"))
    alone = {40}  # one interaction predicts nothing
    assert sorted(lists(data, data.train)) == sorted(
        items(events) for user, events in histories(log).items() if user not in alone
    )
    assert (len(data.validation.inputs), len(data.validation.items)) == (0, 0)
    assert (len(data.test.inputs), len(data.test.items)) == (0, 0)
    assert set(map(int, data.item_ids.to_pylist())) == {event.item for event in log}


def test_only_who_was_active_since_trains_on_all_they_had(tmp_path: Path) -> None:
    log = [Event(user, item, 10 * user + item) for user in range(5) for item in range(4)]
    path = write(tmp_path / "log.csv", [*log, Event(0, 3, 33)])
    data = prepare(config(path, split="none"), since="33")
    assert lists(data, data.train) == [[0, 1, 2, 3, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    whole = prepare(config(path, split="none"))
    assert data.digest != whole.digest
    assert data.item_ids == whole.item_ids
    for since, reason in (("44", "no training interaction is so late"), ("soon", "write a date")):
        with pytest.raises(UserError, match=rf"^--since {since}: {reason}"):
            prepare(config(path, split="none"), since=since)
    untimed = config(path, split="none", columns=ColumnsConfig(time="none"))
    with pytest.raises(UserError, match=r"^--since 33: .* has no times"):
        prepare(untimed, since="33")


@pytest.mark.parametrize("split", ["none", "temporal"])
def test_items_that_a_model_knows_keep_their_numbers(split: str, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", marked_log())
    whole = prepare(config(path, split=split))
    ids = whole.item_ids.to_pylist()
    known = pa.array([ids[5], b"999", ids[0]], whole.item_ids.type)
    data = prepare(config(path, split=split), catalogue=known)
    assert data.item_ids.to_pylist() == [
        *known.to_pylist(),
        *(each for place, each in enumerate(ids) if place not in (0, 5)),
    ]
    assert data.num_items == len(ids) + 1
    assert split_of(data) == split_of(whole)
    assert data.digest != whole.digest
    with pytest.raises(UserError, match="item ids are large_binary, those of the model int64"):
        prepare(config(path, split=split), catalogue=pa.array([1]))


# Filters


def test_items_are_dropped_first_and_then_users(tmp_path: Path) -> None:
    log = [Event(user, item, item) for user in (1, 2, 3) for item in (1, 2, 3, 4)]
    log += [Event(4, 1, 1), Event(4, 2, 2), Event(4, 9, 3)]  # item 9 goes, and so user 4 goes
    log += [Event(1, 8, 8), Event(1, 8, 9)]  # twice by one user is one user
    data = prepare(config(write(tmp_path / "log.csv", log), min_item_users=2, min_user_items=3))
    assert with_targets(data, data.test) == [[1, 2, 3, 4]] * 3
    assert "dropped 2 items of fewer than 2 users (3 interactions)" in data.notes
    assert "dropped 1 users of fewer than 3 of these items (2 interactions)" in data.notes


def test_the_filter_is_a_single_pass(tmp_path: Path) -> None:
    log = [Event(user, item, item) for user in (1, 2, 3) for item in (1, 2, 3)]
    log += [Event(1, 4, 4), Event(4, 4, 1), Event(4, 1, 2)]  # user 4 goes, item 4 stays with one
    data = prepare(config(write(tmp_path / "log.csv", log), min_item_users=2, min_user_items=3))
    assert sorted(with_targets(data, data.test)) == [[1, 2, 3], [1, 2, 3], [1, 2, 3, 4]]


def test_a_user_needs_different_items(tmp_path: Path) -> None:
    log = [Event(1, 1, time) for time in range(9)]
    log += [Event(2, item, item) for item in (1, 2, 3)] + [Event(3, i, i) for i in (1, 2, 3)]
    log += [Event(3, 1, 4)]
    data = prepare(config(write(tmp_path / "log.csv", log), min_user_items=2))
    assert sorted(with_targets(data, data.test)) == [[1, 2, 3], [1, 2, 3, 1]]


def test_short_users_train_only(tmp_path: Path) -> None:
    log = [Event(1, item, item) for item in (1, 2, 3, 4)] + [Event(2, 5, 1), Event(2, 6, 2)]
    log += [Event(3, 7, 1)]
    data = prepare(config(write(tmp_path / "log.csv", log)))
    assert sorted(lists(data, data.train)) == [[1, 2], [5, 6]]
    assert with_targets(data, data.test) == [[1, 2, 3, 4]]
    assert "2 users of fewer than 3 interactions are neither validated nor tested" in data.notes
    assert data.num_items == 7


def test_notes_count_what_was_dropped_and_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n1,a,1\n1,b,2\n1,b,2\n1,,3\n1,c,4\n1,d,5\n1,a,6\n")
    data = prepare(config(path))
    assert data.notes == (
        "dropped 1 of 7 rows without a user, item or time",
        "dropped 1 rows that repeat a user, item and time",
        "leave-one-out: 4 items, 1 training sequences, 1 validation and 1 test targets",
        "1 test targets are in their user's history: never hit, since seen items are not "
        "recommended",
    )


# Data that cannot be used


def test_everything_filtered_away(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", [Event(1, 1, 1), Event(1, 2, 2)])
    message = refusal(config(path, min_item_users=2))
    assert message.startswith(f"{path}: no interaction is left once items of fewer than 2 users")
    assert "lower --min-item-users or --min-user-items" in message
    assert "users of fewer than 9 items" in refusal(config(path, min_user_items=9))


def test_one_item_left(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", [Event(1, 1, time) for time in range(5)])
    assert refusal(config(path)) == f"{path}: only one item is left; there is nothing to rank"


def test_users_with_one_interaction(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", [Event(user, user % 3, user) for user in range(30)])
    assert "no user has the 3 interactions that leave-one-out needs" in refusal(config(path))


def test_nothing_to_train_on(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", [Event(1, item, item) for item in range(3)])
    assert "no training sequence has the two interactions" in refusal(config(path))


def test_a_temporal_split_needs_times(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", marked_log(), times=False)
    message = refusal(config(path, split="temporal"))
    assert message.startswith(f"--split temporal: {path} has no time column")
    assert "--columns.time" in message


def test_a_temporal_split_needs_a_past(tmp_path: Path) -> None:
    log = [Event(user, item, 7) for user in range(5) for item in range(5)]
    path = write(tmp_path / "log.csv", log)
    assert "fewer than two users lie before the 90 % quantile" in refusal(
        config(path, split="temporal")
    )


# The cache


def snapshot(data: PreparedData) -> tuple[Any, ...]:
    return (
        data.name,
        data.digest,
        data.num_items,
        data.item_ids.to_pylist(),
        split_of(data),
        data.notes,
    )


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> sources.Interactions:
        raise AssertionError("read again")

    monkeypatch.setattr(sources, "read", read)


def test_prepared_data_comes_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "log.csv", marked_log())
    first = prepare(config(path, split="temporal"))
    forbid_reading(monkeypatch)
    assert snapshot(prepare(config(path, split="temporal"))) == snapshot(first)
    moved = path.rename(tmp_path / "moved.csv")
    again = prepare(config(moved, split="temporal"))
    assert (again.digest, again.name) == (first.digest, "moved")
    with pytest.raises(AssertionError, match="read again"):
        prepare(config(moved))


def test_the_digest_is_that_of_content_and_configuration(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", marked_log())
    choices: list[dict[str, Any]] = [
        {},
        {"split": "temporal"},
        {"split": "none"},
        {"min_item_users": 2},
        {"min_user_items": 2},
        {"validation_users": 2},
        {"columns": ColumnsConfig(time="none")},
    ]
    digests = [prepare(config(path, **chosen)).digest for chosen in choices]
    write(path, marked_log()[:-1])
    digests.append(prepare(config(path)).digest)
    assert len(set(digests)) == len(choices) + 1
    write(path, marked_log())
    assert prepare(config(path)).digest == digests[0]


def test_a_preparation_that_is_killed_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "cache"))
    chosen = config(write(tmp_path / "log.csv", marked_log()))
    save, calls = np.save, []

    def save_some(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_some)
        with pytest.raises(KeyboardInterrupt):
            prepare(chosen)
    assert list((tmp_path / "cache").rglob("*.npy")) == []
    assert len(prepare(chosen).train) == 40


def test_another_process_may_finish_the_same_entry_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(write(tmp_path / "log.csv", marked_log()))
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "theirs"))
    theirs = prepare(chosen)
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "ours"))
    replace = Path.replace

    def late(temporary: Path, target: Path) -> Path:
        entry = tmp_path / "theirs" / "prepared" / theirs.digest
        if entry.is_dir():
            replace(entry, target)  # between the look at the target and our own rename
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", late)
    assert snapshot(prepare(chosen)) == snapshot(theirs)


def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path / "file" / "cache"))
    message = refusal(config(write(tmp_path / "log.csv", marked_log())))
    assert message.startswith(f"{tmp_path / 'file' / 'cache' / 'prepared'}: the cache folder")
    assert "PARETOCUT_CACHE" in message


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARETOCUT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("PARETOCUT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "paretocut"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "paretocut"


# Through the whole door


def test_bytes_and_very_long_ids_survive_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    odd = [b"\xff\xfe", b"9" * 10_000_000, b"a b", b"\xe4"]
    rows = b"".join(b"%b,%b\n" % (user, item) for user in odd for item in odd)
    path.write_bytes(b"user,item\n" + rows)
    for _ in range(2):
        data = prepare(config(path))
        assert data.item_ids.to_pylist() == odd
        assert len(data.test.items) == 4


def test_movielens_1m_has_its_known_counts() -> None:
    path = SHARED / "ml-1m.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    data = prepare(DataConfig(data=str(path), columns=ColumnsConfig(time="none")))
    assert (len(data.train), data.num_items) == (6040, 3416)
    assert len(data.test.inputs.items) + len(data.test.items) == 999_611


def test_a_damaged_entry_is_one_sentence(tmp_path: Path) -> None:
    chosen = config(write(tmp_path / "log.csv", marked_log()))
    entry = cache_folder() / "prepared" / prepare(chosen).digest
    for damaged, content in (("train_items.npy", b"x"), ("item_ids.parquet", b"x" * 100)):
        kept = (entry / damaged).read_bytes()
        (entry / damaged).write_bytes(content)
        assert refusal(chosen) == f"{entry}: the prepared data is damaged; delete the folder"
        (entry / damaged).write_bytes(kept)
    (entry / "train_items.npy").unlink()
    assert "damaged" in refusal(chosen)
