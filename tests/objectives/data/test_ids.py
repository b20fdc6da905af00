from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from objectives.data.ids import Ids, MixedTypesError, read_ids
from objectives.errors import UserError


def code(*parts: pa.Array) -> tuple[list[int], list[object]]:
    """The codes of all parts, and the ids of the codes."""
    ids, codes = Ids(), []
    for part in parts:
        values, known = read_ids(part, "user", "log.csv")
        codes += ids.encode(values.filter(pa.array(known))).tolist()
    found = ids.ids().to_pylist()
    assert len(ids) == len(found)
    return codes, found


def expected(*parts: list[object]) -> tuple[list[int], list[object]]:
    codes: dict[object, int] = {}
    return [codes.setdefault(each, len(codes)) for part in parts for each in part], list(codes)


SMALL: list[object] = [5, 3, 5, 9, 3, 0]
LARGE: list[object] = [1 << 40, 3, -7, 1 << 40, 0, 11]


@pytest.mark.parametrize(
    "parts",
    [[SMALL], [SMALL, SMALL[::-1]], [SMALL, LARGE], [LARGE, SMALL], [SMALL, LARGE, SMALL, LARGE]],
)
def test_integers_are_coded_by_first_appearance(parts: list[list[object]]) -> None:
    assert code(*map(pa.array, parts)) == expected(*parts)


@pytest.mark.parametrize(
    "parts",
    [
        [[b"7", b"12", b"7", b"0"]],
        [[b"7", b"12"], [b"007", b"7"], [b"12", b"x"]],
        [[b"7"], [b"7", b"-7", b"+7", b" 7", b"0x7", b"7.0", b"7e0"]],
        [[b"16777215"], [b"0xFFFFFF"]],
        [[b"9" * 18], [b"9" * 18, b"9" * 19, b"9" * 100]],
        [[b"a", b"b"], [b"c", b"1"]],
        [[b"\xff\xfe"], [b"\x00", b"\xff\xfe"], ["٣".encode()]],
    ],
)
def test_text_is_coded_by_its_bytes(parts: list[list[object]]) -> None:
    assert code(*(pa.array(part, pa.binary()) for part in parts)) == expected(*parts)


def test_random_ids_in_many_parts_equal_the_slow_way() -> None:
    generator = np.random.default_rng(0)
    for most in (50, 1 << 30):
        drawn = generator.integers(0, most, (20, 300)) // 7
        parts: list[list[object]] = drawn.tolist()
        assert code(*map(pa.array, parts)) == expected(*parts)
        texts: list[list[object]] = [[b"%d" % each for each in part] for part in drawn]
        assert code(*map(pa.array, texts)) == expected(*texts)


def test_integers_beyond_63_bits() -> None:
    huge = pa.array([1 << 63, 5], pa.uint64())
    assert code(pa.array([5, 6]), huge) == ([0, 1, 2, 0], [5, 6, 1 << 63])
    assert code(huge, pa.array([6, 5])) == ([0, 1, 2, 1], [1 << 63, 5, 6])
    with pytest.raises(MixedTypesError):
        code(huge, pa.array([-1]))


def test_integers_and_text_do_not_mix() -> None:
    with pytest.raises(MixedTypesError):
        code(pa.array([1]), pa.array(["1"]))


def test_what_is_missing() -> None:
    for column, known in (
        (pa.array(["a", "", None]), [True, False, False]),
        (pa.array([1, None]), [True, False]),
        (pa.array([1.0, None, float("nan")]), [True, False, False]),
        (pa.nulls(2), [False, False]),
        (pa.array(["a", None]).dictionary_encode(), [True, False]),
    ):
        assert read_ids(column, "item", "log.csv")[1].tolist() == known


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0, 2.0]),
        pa.array([1, 2], pa.float32()),
        pa.array([Decimal("1.00"), Decimal("2.00")]),
        pa.array([1, 2], pa.int8()),
        pa.array([1, 2], pa.uint64()),
    ],
)
def test_whole_numbers_are_integers(column: pa.Array) -> None:
    values, _ = read_ids(column, "item", "log.csv")
    assert (values.type, values.to_pylist()) == (pa.int64(), [1, 2])


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(2)]
)
def test_text_of_any_type(kind: pa.DataType) -> None:
    assert code(pa.array([b"ab", b"cd"]).cast(kind)) == ([0, 1], [b"ab", b"cd"])


def test_the_bytes_of_a_uuid_are_an_id() -> None:
    column = pa.array([b"a" * 16, b"b" * 16], pa.uuid())
    assert code(column) == ([0, 1], [b"a" * 16, b"b" * 16])


@pytest.mark.parametrize("number", [1.5, float("inf"), 1e300])
def test_fractions_are_no_ids(number: float) -> None:
    with pytest.raises(UserError, match=r"log\.csv: .* but the item column has fractions"):
        read_ids(pa.array([1.0, number]), "item", "log.csv")
