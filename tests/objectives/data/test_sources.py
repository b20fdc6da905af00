from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from objectives.config import ColumnsConfig, DataConfig, FilterConfig
from objectives.data import sources
from objectives.errors import UserError
from tests.objectives.data.logs import parquet, write

ROWS = [("u1", "a", 5), ("u2", "b", 3), ("u1", "c", 4), ("u2", "a", 9)]


def read(*files: Path, **columns: str) -> sources.Interactions:
    return sources.read(list(files), ColumnsConfig.model_validate(columns), FilterConfig())


def refusal(*files: Path, **columns: str) -> str:
    """The one sentence with which the files are refused."""
    with pytest.raises(UserError) as caught:
        read(*files, **columns)
    message = str(caught.value)
    assert "\n" not in message
    assert str(files[0].parent) in message
    return message


def locating(data: Path | str) -> str:
    """The one sentence with which the place is refused."""
    with pytest.raises(UserError) as caught:
        sources.locate(DataConfig(data=str(data)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def item_ids(interactions: sources.Interactions) -> list[object]:
    ids: list[object] = interactions.item_ids.take(pa.array(interactions.items)).to_pylist()
    return ids


# Files


def delimited(delimiter: str) -> str:
    header = delimiter.join(("user", "item", "rating", "time"))
    rows = [delimiter.join((user, item, "4.5", str(time))) for user, item, time in ROWS]
    return "\n".join([header, *rows, ""])


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.inter", "log.parquet"])
def test_every_format_reads_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        users, items, times = zip(*ROWS, strict=True)
        parquet(path, user=users, item=items, rating=[4.5] * 4, time=times)
    else:
        write(path, delimited("," if path.suffix == ".csv" else "\t"))
    log = read(path)
    assert log.users.tolist() == [0, 1, 0, 1]
    assert log.items.tolist() == [0, 1, 2, 0]
    assert log.item_ids.to_pylist() == [b"a", b"b", b"c"]
    assert log.times is not None
    assert log.times.tolist() == [5, 3, 4, 9]
    assert log.notes == ()


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffuser,item\r\n1,2\r\n",
        '"user","item"\n"1","2"\n',
        "user,item\n\n1,2\n\n",
        "user,item\n1,2",
        "USER_ID,ItemId\n1,2\n",
        "item,user\n2,1\n",
        '"user","item","title, year"\n1,2,"a, b"\n',
        "user,item,item\n1,2,3\n",
    ],
    ids=["bom", "quotes", "blank-lines", "no-end", "case", "order", "quoted-comma", "twice"],
)
def test_dialects_of_csv(content: str, tmp_path: Path) -> None:
    log = read(write(tmp_path / "log.csv", content))
    assert (log.users.tolist(), item_ids(log), log.times) == ([0], [b"2"], None)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    parquet(tmp_path / "b" / "part-0.parquet", user=[3], item=[30])
    parquet(tmp_path / "part-1.parquet", user=[1], item=[10])
    parquet(tmp_path / "a-part.parquet", user=[2], item=[20])
    write(tmp_path / "README.md", "not data")
    files, columns, notes = sources.locate(DataConfig(data=str(tmp_path)))
    assert item_ids(sources.read(files, columns, FilterConfig())) == [20, 30, 10]
    assert notes == ()


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.int64()])
def test_integer_ids_stay_integers(kind: pa.DataType, tmp_path: Path) -> None:
    ids = pa.array([7, 100, 7], kind)
    log = read(parquet(tmp_path / "log.parquet", user=ids, item=ids))
    assert log.users.tolist() == [0, 1, 0]
    assert log.item_ids.to_pylist() == [7, 100]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()])
def test_written_ids_of_any_type_are_the_same(kind: pa.DataType, tmp_path: Path) -> None:
    users = pa.array(["x", "", "y", None, "x"], kind)
    log = read(parquet(tmp_path / "log.parquet", user=users, item=pa.array("abcde", kind)))
    assert log.users.tolist() == [0, 1, 0]
    assert log.item_ids.to_pylist() == [b"a", b"c", b"e"]
    assert log.notes == ("dropped 2 of 5 rows without a user, item or time",)


def test_dictionary_encoded_ids(tmp_path: Path) -> None:
    ids = pa.array(["x", "y", "x"]).dictionary_encode()
    log = read(parquet(tmp_path / "log.parquet", user=ids, item=ids))
    assert log.users.tolist() == [0, 1, 0]


def test_ids_in_text_are_not_numbers(tmp_path: Path) -> None:
    log = read(write(tmp_path / "log.csv", "user,item\n1,007\n1,7\n01,7.0\n"))
    assert log.users.tolist() == [0, 0, 1]
    assert log.item_ids.to_pylist() == [b"007", b"7", b"7.0"]


def test_ids_need_not_be_utf8(tmp_path: Path) -> None:
    log = read(write(tmp_path / "log.csv", b"user,item\n\xff\xfe,\x80\n\xff\xfe,\xe4\n"))
    assert log.users.tolist() == [0, 0]
    assert log.item_ids.to_pylist() == [b"\x80", b"\xe4"]


def test_an_id_may_have_ten_million_digits(tmp_path: Path) -> None:
    digits = b"9" * 10_000_000
    log = read(write(tmp_path / "log.csv", b"user,item\n1," + digits + b"\n1,9" + digits + b"\n"))
    assert log.items.tolist() == [0, 1]
    assert log.item_ids[0].as_py() == digits


# Columns


@pytest.mark.parametrize(
    "header", ["user,item,time", "user_id,itemid,ts", "uid,iid,datetime", "UserId,ITEM,Timestamp"]
)
def test_usual_names_are_found(header: str, tmp_path: Path) -> None:
    log = read(write(tmp_path / "log.csv", f"{header}\n1,2,3\n"))
    assert log.times is not None
    assert (item_ids(log), log.times.tolist()) == ([b"2"], [3])


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,who,item,what,time,when\n1,2,3,4,5,6\n")
    log = read(path, user="who", item="what", time="when")
    assert log.times is not None
    assert (item_ids(log), log.times.tolist()) == ([b"4"], [6])


def test_times_can_be_switched_off(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,time\n1,2,x\n1,3,\n")
    log = read(path, time="none")
    assert log.times is None
    assert item_ids(log) == [b"2", b"3"]


def test_a_missing_column_is_answered_with_what_there_is(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "who,item\n1,2\n")
    assert refusal(path) == (
        f"{path}: no user column; choose one with --columns.user from: who, item"
    )
    assert "no column 'Item'; choose one with --columns.item from: who, item" in refusal(
        path, user="who", item="Item"
    )
    assert "no column 'when'; choose one with --columns.time" in refusal(
        path, user="who", time="when"
    )


def test_a_long_header_is_cut_short(tmp_path: Path) -> None:
    header = ",".join(f"c{number}" for number in range(500))
    message = refusal(write(tmp_path / "log.csv", f"{header}\n"))
    assert message.endswith("c18, c19, …")


def test_a_named_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,x,x\n1,2,3,4\n")
    assert "the column 'x' stands 2 times" in refusal(path, item="x")


def test_of_columns_that_are_called_the_same_the_first_is_taken(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], ["user", "item", "item"])
    pq.write_table(table, tmp_path / "log.parquet")
    assert item_ids(read(tmp_path / "log.parquet")) == [2]
    assert item_ids(sources.from_table(table, ColumnsConfig(), FilterConfig())) == [2]


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_one_column_cannot_play_two_roles(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".csv":
        write(path, "user,item\n1,2\n")
    else:
        parquet(path, user=[1], item=[2])
    assert "'item'" in refusal(path, user="item")


# Rows


def test_rows_without_an_id_or_time_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = "1,a,1\n,a,2\n2,,3\n2,b,\n2,c,nan\n2,d,inf\n3,e,1.5\n"
    log = read(write(tmp_path / "log.csv", f"user,item,time\n{rows}"))
    assert item_ids(log) == [b"a", b"e"]
    assert log.times is not None
    assert log.times.tolist() == [1, 1.5]
    assert log.notes == ("dropped 5 of 7 rows without a user, item or time",)


def test_nulls_of_parquet_are_dropped_and_counted(tmp_path: Path) -> None:
    log = read(
        parquet(
            tmp_path / "log.parquet",
            user=[1, None, 1, 1],
            item=[1, 2, None, 4],
            time=[1, 2, 3, None],
        )
    )
    assert item_ids(log) == [1]
    assert log.notes == ("dropped 3 of 4 rows without a user, item or time",)


@pytest.mark.parametrize("rows", [",a,1\n2,,2\n2,b,\n", "1,2,\n3,4,\n"])
def test_at_least_one_row_must_be_whole(rows: str, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", f"user,item,time\n{rows}")
    count = rows.count("\n")
    assert f"every one of the {count} rows lacks a user, item or time" in refusal(path)


def test_columns_without_any_value_are_refused(tmp_path: Path) -> None:
    for columns in ({"user": pa.nulls(2)}, {"time": pa.nulls(2)}):
        path = parquet(tmp_path / "log.parquet", **({"user": [1, 2], "item": [1, 2]} | columns))
        assert "every one of the 2 rows lacks" in refusal(path)


def test_without_times_a_repeated_row_is_another_interaction(tmp_path: Path) -> None:
    log = read(write(tmp_path / "log.csv", "user,item\n1,a\n1,a\n"))
    assert len(log.items) == 2
    assert log.notes == ()


def test_ids_of_other_types_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "log.parquet", user=[True], item=[2])
    assert refusal(path) == f"{path}: ids must be integers or text, but the user column is bool"


# Files that cannot be used


def test_an_unknown_set_is_answered_with_the_known_ones() -> None:
    message = locating("ml-2m")
    assert message.startswith("--data ml-2m: neither a file or folder nor one of the named sets")
    assert "ml-100k, complete-journey, ml-1m, " in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no.csv") in locating(tmp_path / "no.csv")


def test_a_name_too_long_for_a_file_is_an_unknown_set() -> None:
    assert "neither a file or folder" in locating("x" * 5000)


def test_a_file_of_unknown_type_is_refused(tmp_path: Path) -> None:
    for name in ("log.txt", "log.gz", "log.parquet.gz"):
        path = write(tmp_path / name, "{}")
        assert locating(path) == (
            f"{path}: name it .csv, .tsv, .inter, .jsonl, .ndjson, .json (also .gz or .zst) or "
            ".parquet to say what it is"
        )


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "")
    assert locating(tmp_path).startswith(f"{tmp_path}: the folder holds no .csv")


def test_a_folder_of_several_types_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "user,item\n1,2\n")
    write(tmp_path / "b.tsv", "user\titem\n1\t2\n")
    assert locating(tmp_path).startswith(f"{tmp_path}: the folder mixes file types")


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, "")
    assert refusal(path) == f"{path}: the file is empty"


@pytest.mark.parametrize("content", ["user,item\n", "user,item\n\n", "user,item"])
def test_a_file_without_rows_is_refused(content: str, tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", content)
    assert refusal(path) == f"{path}: the file has a header but no rows"


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    empty = pa.array([], pa.int64())
    path = parquet(tmp_path / "log.parquet", user=empty, item=empty)
    assert refusal(path) == f"{path}: the file has a header but no rows"


def test_ragged_rows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item\n1,2\n3\n")
    assert refusal(path).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize("damage", [b"not parquet", b"PAR1 not parquet PAR1"])
def test_a_corrupt_parquet_file_is_refused(damage: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "log.parquet", damage)
    assert refusal(path).startswith(f"{path}: cannot be read: ")


def test_a_parquet_file_with_damaged_pages_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "log.parquet", user=list(range(1000)), item=list(range(1000)))
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    assert refusal(write(path, bytes(content))).startswith(f"{path}: cannot be read: ")


def test_parts_must_agree_on_their_times(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "user,item,time\n1,2,3\n")
    second = write(tmp_path / "b.csv", "user,item\n1,2\n")
    assert refusal(first, second) == f"{tmp_path}: only some of the files have a time column"


def test_parts_must_agree_on_their_types(tmp_path: Path) -> None:
    first = parquet(tmp_path / "a.parquet", user=[1], item=[2])
    second = parquet(tmp_path / "b.parquet", user=["x"], item=[2])
    assert refusal(first, second) == (
        f"{tmp_path}: the files disagree on the types of their columns"
    )


def test_parts_may_differ_in_the_width_of_their_integers(tmp_path: Path) -> None:
    first = parquet(tmp_path / "a.parquet", user=pa.array([1], pa.int32()), item=[2])
    second = parquet(tmp_path / "b.parquet", user=pa.array([1], pa.int64()), item=[3])
    assert read(first, second).users.tolist() == [0, 0]


def test_a_quote_is_a_character_like_others_between_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "log.tsv", 'user\titem\n1\t"a\n1\tb"\n')
    assert item_ids(read(path)) == [b'"a', b'b"']
