from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from objectives.config import ColumnsConfig, FilterConfig
from objectives.data import sources
from objectives.errors import UserError


def table(**columns: object) -> pa.Table:
    return pa.table({"user": list("aabbc"), "item": list("vwxyz"), **columns})


def kept(log: sources.Interactions) -> str:
    return "".join(item.decode() for item in log.item_ids.take(pa.array(log.items)).to_pylist())


@pytest.mark.parametrize(
    "ratings",
    [[5, 3, None, 4, 2], [5.0, 3.9, float("nan"), 4.0, 1], ["5", "3", "", "4.0", "1e0"]],
)
def test_ratings(ratings: list[object]) -> None:
    log = sources.from_table(table(rating=ratings), ColumnsConfig(), FilterConfig(min_rating=4))
    assert kept(log) == "vy"
    assert log.notes == (
        "dropped 1 of 5 rows without a rating",
        "dropped 2 of 5 rows with a rating below 4",
    )
    assert log.num_users == 2


def test_ratings_are_numbers() -> None:
    with pytest.raises(UserError, match=r"the rating column is not one of .* --columns\.rating"):
        sources.from_table(
            table(rating=[*"5432", "x"]), ColumnsConfig(), FilterConfig(min_rating=4)
        )


def test_a_column_of_ratings_is_needed() -> None:
    with pytest.raises(UserError, match=r"no rating column; choose one with --columns\.rating"):
        sources.from_table(table(), ColumnsConfig(), FilterConfig(min_rating=4))
    columns, stars = ColumnsConfig(rating="stars"), [1, 2, 3, 4, 5]
    log = sources.from_table(table(stars=stars), columns, FilterConfig(min_rating=4))
    assert kept(log) == "yz"


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())])
def test_events(kind: pa.DataType) -> None:
    events = pa.array(["view", "cart", None, "buy", "view"], pa.string()).cast(
        pa.binary() if kind == pa.binary() else pa.string()
    )
    column = events.dictionary_encode() if pa.types.is_dictionary(kind) else events
    filters = FilterConfig(events="view,buy")
    log = sources.from_table(table(event=column), ColumnsConfig(), filters)
    assert kept(log) == "vyz"
    assert log.notes == ("dropped 2 of 5 rows of other events than view, buy",)


def test_events_may_be_numbers() -> None:
    filters = FilterConfig(events=[1, 3])
    columns = ColumnsConfig(event="kind")
    log = sources.from_table(table(kind=[1, 2, 3, 1, None]), columns, filters)
    assert kept(log) == "vxy"


def test_events_are_bytes() -> None:
    column = pa.array([b"\xff", b"buy", b"", b"buy", b"view"])
    log = sources.from_table(table(event=column), ColumnsConfig(), FilterConfig(events=("buy",)))
    assert kept(log) == "wy"


def test_events_are_words_or_numbers() -> None:
    with pytest.raises(UserError, match=r"the event column is list<.*>, not .* --columns\.event"):
        sources.from_table(table(event=[[1]] * 5), ColumnsConfig(), FilterConfig(events=("buy",)))


def test_no_event_is_no_filter() -> None:
    with pytest.raises(ValidationError, match="name at least one event"):
        FilterConfig(events=" , ")


def test_each_row_is_dropped_for_one_reason(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,rating,event\n,v,1,x\na,w,,x\na,x,1,x\na,y,5,x\na,z,5,view\n")
    filters = FilterConfig(min_rating=2, events=("view",))
    log = sources.read([path], ColumnsConfig(), filters)
    assert kept(log) == "z"
    assert log.notes == (
        "dropped 1 of 5 rows without a user, item or time",
        "dropped 1 of 5 rows without a rating",
        "dropped 1 of 5 rows with a rating below 2",
        "dropped 1 of 5 rows of other events than view",
    )


def test_when_nothing_is_left_the_reasons_are_said() -> None:
    with pytest.raises(UserError) as caught:
        sources.from_table(table(rating=range(5)), ColumnsConfig(), FilterConfig(min_rating=9))
    assert str(caught.value) == (
        "the table: none of the 5 rows is left (5 with a rating below 9); change "
        "--filter.min-rating or --filter.events"
    )


def test_sessions_take_the_place_of_users() -> None:
    columns = ColumnsConfig(session="visit")
    log = sources.from_table(table(visit=[1, 2, 1, 1, 1]), columns, FilterConfig())
    # The first visit of another user is another session.
    assert (log.users.tolist(), log.num_users) == ([0, 1, 2, 2, 3], 4)
    alone = table(visit=[1, 2, 1, 1, None]).drop_columns("user")
    log = sources.from_table(alone, columns, FilterConfig())
    assert (log.users.tolist(), log.num_users) == ([0, 1, 0, 0], 2)
    assert log.notes == ("dropped 1 of 5 rows without a user, item or time",)


def test_the_digest_is_that_of_filters_and_columns_too(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item\n1,2\n")
    asked = [
        (ColumnsConfig(), FilterConfig()),
        (ColumnsConfig(session="user"), FilterConfig()),
        (ColumnsConfig(), FilterConfig(min_rating=4)),
        (ColumnsConfig(), FilterConfig(events=("a",))),
    ]
    digests = [sources.content_digest([path], *each) for each in asked]
    assert len(set(digests)) == 4
    # That of earlier versions.
    assert digests[0] == "a438232a9392f1b2855c53073485aad04ab8908604d6473d016a7dab1967c2eb"
