from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from objectives.config import ColumnsConfig, DataConfig, FilterConfig
from objectives.data import prepare, sources
from objectives.data.facts import LogFacts, facts_of_log, facts_of_split

Log = list[tuple[int, int, int]]


def facts(log: Log, *, times: bool = True) -> LogFacts:
    columns = dict(zip(("user", "item", "time"), zip(*log, strict=True), strict=True))
    if not times:
        columns.pop("time")
    return facts_of_log(sources.from_table(pa.table(columns), ColumnsConfig(), FilterConfig()))


def random_log(seed: int) -> Log:
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, (6, 9, 40), (60, 3))
    return [(int(user), int(item), int(time)) for user, item, time in drawn]


def share_of(found: int, log: Log) -> float:
    return found / len(log)


@pytest.mark.parametrize("seed", range(5))
def test_facts_equal_the_slow_ones(seed: int) -> None:
    log = random_log(seed)
    found = facts(log)
    users, items = (Counter(row[place] for row in log) for place in (0, 1))
    assert found.num_interactions == 60
    assert found.lengths.tolist() == sorted(users.values())
    assert found.counts.tolist() == sorted(items.values(), reverse=True)
    assert (found.first, found.last) == (
        min(row[2] for row in log),
        max(row[2] for row in log),
    )
    pairs = {(user, item) for user, item, _ in log}
    assert found.repeats == pytest.approx(share_of(60 - len(pairs), log))
    moments = {(user, time) for user, _, time in log}
    assert found.ties == pytest.approx(share_of(60 - len(moments), log))
    last = {user: max(row[2] for row in log if row[0] == user) for user in users}
    others = sorted(log, key=lambda row: row[2])
    for user in users:
        others.remove([row for row in others if row[0] == user][-1])
    middle = np.median(list(last.values()))
    later = [row for row in others if row[2] > middle]
    assert found.future == pytest.approx(len(later) / len(others))
    cut = np.quantile([row[2] for row in log], 0.9)
    known = {row[1] for row in log if row[2] < cut}
    late = [row for row in log if row[2] >= cut]
    assert found.new == pytest.approx(sum(row[1] not in known for row in late) / len(late))
    differences = sum(abs(a - b) for a in items.values() for b in items.values())
    assert found.gini == pytest.approx(differences / (2 * len(items) * 60))


def test_popularity_and_lengths() -> None:
    log = [(user, 0, 0) for user in range(50)] + [(0, item, 1) for item in range(1, 51)]
    found = facts(log)
    assert (found.head, found.once) == (0.5, 50 / 51)
    assert found.quantiles == [1, 1, 1, 1, 1, 51, 51]
    assert found.activity is not None
    assert (found.activity.sum(), len(found.activity)) == (100, 100)


def test_copies_of_histories_are_counted() -> None:
    rows = [(user, item, item) for user in (1, 2, 3) for item in range(5)]  # three alike
    rows += [(4, 4 - item, item) for item in range(5)]  # in another order
    rows += [(user, item, item) for user in (5, 6) for item in range(4)]  # too short
    rows += [(7, item + 9, item) for item in range(5)]
    assert facts(rows).copies == 3
    assert facts(rows, times=False).copies == 3


def test_without_times_there_is_no_span() -> None:
    found = facts(random_log(0), times=False)
    assert (found.first, found.future, found.new, found.activity, found.ties) == (
        None, None, None, None, 0,
    )  # fmt: skip
    assert found.span == "no times: the order of the rows is taken"


def test_spans_are_dates_where_they_may_be() -> None:
    assert facts([(1, 1, 3), (1, 2, 9)]).span == "3 to 9, which are no dates"
    dated = facts([(1, 1, 1_709_465_696), (1, 2, 1_709_465_696 + 36 * 3600)])
    assert dated.span == "2024-03-03 to 2024-03-04, 1.5 days"


def test_facts_of_a_split(tmp_path: Path) -> None:
    rows = [(user, item, item) for user in range(19) for item in range(6)]
    rows += [(19, item, item) for item in range(40)] + [(19, 99, 41)]
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    data = prepare(DataConfig(data=str(path), min_item_users=1, min_user_items=1))
    found = facts_of_split(data)
    assert (found.num_items, found.num_sequences, found.num_targets) == (41, 20, (20, 20))
    assert (found.cold, found.covered, found.negatives) == (1 / 20, 4, 40)
