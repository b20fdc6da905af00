from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from objectives.config import ColumnsConfig, FilterConfig
from objectives.data import sources
from objectives.errors import UserError
from tests.objectives.data.logs import parquet, write


def read(*files: Path) -> sources.Interactions:
    return sources.read(list(files), ColumnsConfig(), FilterConfig())


def refusal(*files: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(*files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def times_of(*files: Path) -> list[float]:
    log = read(*files)
    assert log.times is not None
    times: list[float] = log.times.tolist()
    return times


def csv_of(path: Path, *times: object) -> Path:
    rows = "".join(f"1,{item},{time}\n" for item, time in enumerate(times))
    return write(path, f"user,item,time\n{rows}")


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ("5", "12"),
        ("-3", "2"),
        ("1700000000000001", "1700000000000002"),
        ("1.25", "1.5"),
        ("9e8", "1.0e9"),
        (" 7 ", "8"),
        ("2024-02-09", "2024-10-01"),
        ("2024-02-09 10:00:00", "2024-02-09T10:00:01"),
        ("2024-02-09T10:00:00.000001Z", "2024-02-09T10:00:00.000002Z"),
        ("2024-02-09T10:00:00+02:00", "2024-02-09T09:00:00Z"),
    ],
)
def test_written_times_are_numbers_or_iso_8601(early: str, late: str, tmp_path: Path) -> None:
    first, second = times_of(
        write(tmp_path / "log.csv", f"user,item,time\n1,1,{late}\n1,2,{early}\n")
    )
    assert first > second


@pytest.mark.parametrize(
    "kind",
    [
        pa.int16(),
        pa.uint64(),
        pa.float32(),
        pa.float64(),
        pa.timestamp("s"),
        pa.timestamp("ns"),
        pa.timestamp("us", "Europe/Berlin"),
        pa.date32(),
    ],
)
def test_times_of_parquet(kind: pa.DataType, tmp_path: Path) -> None:
    path = parquet(tmp_path / "log.parquet", user=[1, 1], item=[1, 2], time=pa.array([9, 8], kind))
    first, second = times_of(path)
    assert first > second


def test_written_times_of_parquet(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string()):
        times = pa.array(["2024-05-02", "", "2024-05-01"], kind)
        path = parquet(tmp_path / "log.parquet", user=[1] * 3, item=[1, 2, 3], time=times)
        first, second = times_of(path)
        assert first > second
        assert read(path).item_ids.to_pylist() == [1, 3]


def test_times_out_of_range_are_refused(tmp_path: Path) -> None:
    times = pa.array([2**63, 1], pa.uint64())
    path = parquet(tmp_path / "log.parquet", user=[1, 1], item=[1, 2], time=times)
    assert "time column" in refusal(path)


def test_a_time_that_is_none_names_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,time\n1,1,5\n1,2,6\n1,3,soon\n1,4,later\n")
    message = refusal(path)
    assert message.startswith(f"{path}, row 3: the time 'soon' is neither a number nor ISO 8601")
    assert "--columns.time" in message


def test_numbers_and_dates_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user,item,time\n1,1,5\n1,2,2024-01-01\n")
    assert "the time column mixes numbers and dates" in refusal(path)


def test_times_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", b"user,item,time\n1,1,\xff\n")
    assert "the time column is not UTF-8 text" in refusal(path)


def test_times_of_another_type_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "log.parquet", user=[1], item=[1], time=[True])
    assert "the time column is bool" in refusal(path)


def test_dates_keep_their_distance(tmp_path: Path) -> None:
    days = pa.array([2**30, 2**30 - 2], pa.date32())  # long after nanoseconds have run out
    path = parquet(tmp_path / "log.parquet", user=[1, 1], item=[1, 2], time=days)
    first, second = times_of(path)
    assert first - second == 2 * 86_400


MOMENT = 1_709_465_696  # 2024-03-03 11:34:56 UTC


@pytest.mark.parametrize(
    ("per_second", "unit"),
    [(10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")],
)
def test_the_unit_of_numbers_is_found_and_said(per_second: int, unit: str, tmp_path: Path) -> None:
    moments = [(MOMENT + second) * per_second for second in (5, 0, 9)]
    log = read(csv_of(tmp_path / "whole.csv", *moments))
    assert log.times is not None
    assert log.times.dtype == np.int64
    assert log.times.tolist() == [MOMENT + 5, MOMENT, MOMENT + 9]
    assert log.notes == (f"times read as {unit} since 1970",)
    half = csv_of(tmp_path / "half.csv", MOMENT * per_second + per_second // 2)
    assert times_of(half) == [MOMENT + 0.5]
    floats = parquet(tmp_path / "f.parquet", user=[1], item=[2], time=[float(moments[0])])
    assert times_of(floats) == [MOMENT + 5]


def test_seconds_need_not_be_said(tmp_path: Path) -> None:
    log = read(csv_of(tmp_path / "log.csv", MOMENT, -5, 0))
    assert log.notes == ()


def test_numbers_of_two_units_are_refused(tmp_path: Path) -> None:
    first = csv_of(tmp_path / "a.csv", MOMENT)
    second = csv_of(tmp_path / "b.csv", MOMENT * 1000)
    assert refusal(first, second) == (
        f"{tmp_path}: the time column mixes milliseconds and larger units; write all in one way"
    )
    # Zero stands for an unknown time in many logs.
    assert times_of(csv_of(tmp_path / "c.csv", 0, MOMENT * 1000)) == [0, MOMENT]


def test_parts_must_agree_on_numbers_or_dates(tmp_path: Path) -> None:
    first = csv_of(tmp_path / "a.csv", MOMENT)
    second = csv_of(tmp_path / "b.csv", "2024-03-03")
    assert "mixes numbers and dates" in refusal(first, second)


def test_dates_are_seconds_since_1970_whatever_their_unit(tmp_path: Path) -> None:
    parts = [csv_of(tmp_path / "a.csv", "2024-03-03 11:34:56", "2024-03-03")]
    kinds = ("s", "ms", "us", "ns")
    for unit, factor in zip(kinds, (1, 10**3, 10**6, 10**9), strict=True):
        times = pa.array([MOMENT * factor], pa.timestamp(unit))
        parts.append(parquet(tmp_path / f"{unit}.parquet", user=["1"], item=["2"], time=times))
    days = pa.array([MOMENT // 86_400], pa.date32())
    parts.append(parquet(tmp_path / "d.parquet", user=["1"], item=["2"], time=days))
    midnight = MOMENT - MOMENT % 86_400
    assert times_of(*parts) == [MOMENT, midnight, *[MOMENT] * 4, midnight]
    milliseconds = pa.array([MOMENT * 1000 + 500], pa.timestamp("ms"))
    path = parquet(tmp_path / "x.parquet", user=["1"], item=["2"], time=milliseconds)
    assert times_of(*parts, path)[-2:] == [midnight, MOMENT + 0.5]


def test_the_row_of_a_wrong_time_is_counted_from_the_start_of_its_file(tmp_path: Path) -> None:
    rows = (1 << 20) + 1
    times = pa.array([*["5"] * rows, "soon"])
    ids = pa.array([1] * (rows + 1))
    path = parquet(tmp_path / "log.parquet", user=ids, item=ids, time=times)
    assert f"row {rows + 1:,}: the time 'soon'" in refusal(path)
