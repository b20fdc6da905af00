"""Times of interactions as seconds since 1970, however they were written."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from objectives.data.growing import Growing
from objectives.data.ids import TEXTS
from objectives.errors import UserError
from objectives.moments import UNITS

_Numbers = NDArray[np.int64] | NDArray[np.float64]

_RECENT = 1e8
"""Seconds: March 1973. Numbers before it that are after it in a larger unit are of that unit."""
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Moments:
    """Times of some rows.

    Attributes:
        values: Numbers as they were written, of a unit that is yet to be found; or the seconds
            since 1970 of dates.
        known: Which of them are there.
        are: Which of both.
    """

    values: _Numbers
    known: NDArray[np.bool_]
    are: Literal["numbers", "dates"]


class Times:
    """Collects the times of rows that are kept."""

    def __init__(self) -> None:
        self._values = Growing(np.int64)
        self._are: str | None = None

    def append(self, moments: Moments, keep: NDArray[np.bool_], where: object) -> None:
        """Adds those to keep.

        Raises:
            UserError: Those before were written in another way.
        """
        values = moments.values[keep]
        if len(values) == 0:
            return
        if self._are not in (None, moments.are):
            raise UserError(_mixes(where, "numbers and dates"))
        self._are = moments.are
        if values.dtype != self._values.dtype and self._values.dtype == np.int64:
            self._values.change_type(np.float64)
        self._values.append(values)

    def seconds(self, where: object) -> tuple[_Numbers, tuple[str, ...]]:
        """Whole seconds as int64, others as float64; and what to tell the user.

        Raises:
            UserError: The unit of the numbers is not the same for all.
        """
        times: _Numbers = self._values.take()
        notes: tuple[str, ...] = ()
        if self._are == "numbers":
            largest = max(abs(float(times.max())), abs(float(times.min())))
            for least, per_second, unit in UNITS:
                if largest >= least:
                    if _has_smaller_unit(times, per_second):
                        raise UserError(_mixes(where, f"{unit} and larger units"))
                    times = _divide(times, per_second)
                    notes = (f"times read as {unit} since 1970",)
                    break
        return _as_integers(times), notes


def parse_times(column: pa.Array, where: object, rows_before: int) -> Moments:
    """The times of some rows.

    Args:
        column: Numbers, dates or text.
        where: The file, for the message.
        rows_before: Rows of the file before the first of these, for the message.

    Raises:
        UserError: They are something else, or too large.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_null(kind):
        return Moments(np.zeros(len(column), np.int64), np.zeros(len(column), bool), "numbers")
    try:
        if kind in TEXTS:
            column = _parse_text(column.cast(pa.large_binary()), where, rows_before)
            kind = column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return _dates(column)
        if pa.types.is_decimal(kind):
            column = column.cast(pa.float64())
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise UserError(
                f"{where}: times must be numbers, dates or ISO 8601, but the time column is {kind}"
            )
        if pa.types.is_floating(column.type):
            numbers = np.asarray(column.fill_null(np.nan).cast(pa.float64()))
            return Moments(numbers, np.isfinite(numbers), "numbers")
        known = np.asarray(column.is_valid())
        return Moments(np.asarray(column.fill_null(0).cast(pa.int64())), known, "numbers")
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{where}: the time column exceeds 64 bits; name another with --columns.time"
        ) from error


def _dates(column: pa.Array) -> Moments:
    known = np.asarray(column.is_valid())
    if pa.types.is_date32(column.type):
        days = np.asarray(column.view(pa.int32()).fill_null(0), dtype=np.int64)
        return Moments(days * 86_400, known, "dates")
    if pa.types.is_date64(column.type):
        column = column.view(pa.timestamp("ms"))
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
    numbers = np.array(column.view(pa.int64()).fill_null(0))
    return Moments(_divide(numbers, per_second), known, "dates")


def _parse_text(values: pa.Array, where: object, rows_before: int) -> pa.Array:
    """Integers, floats or ISO 8601, all of one kind; empty becomes null."""
    filled = pc.if_else(pc.equal(pc.binary_length(values), 0), None, values)
    try:
        texts = pc.utf8_trim_whitespace(filled.cast(pa.large_string()))
    except pa.ArrowException as error:
        raise UserError(f"{where}: the time column is not UTF-8 text") from error
    kinds = (pa.int64(), pa.float64(), pa.timestamp("us"), pa.timestamp("us", "UTC"))
    for kind in kinds:
        try:
            return texts.cast(kind)
        except pa.ArrowException:
            continue
    for row, text in enumerate(texts.to_pylist(), start=rows_before + 1):
        if text is not None and not any(_is(text, kind) for kind in kinds):
            raise UserError(
                f"{where}, row {row:,}: the time {text[:40]!r} is neither a number nor ISO 8601; "
                "name another column with --columns.time"
            )
    raise UserError(_mixes(where, "numbers and dates, or dates with a zone and without"))


def _is(text: str, kind: pa.DataType) -> bool:
    try:
        pa.scalar(text).cast(kind)
    except pa.ArrowException:
        return False
    return True


def _mixes(where: object, what: str) -> str:
    return f"{where}: the time column mixes {what}; write all in one way"


def _has_smaller_unit(times: _Numbers, per_second: int) -> bool:
    for begin in range(0, len(times), _BLOCK):
        sizes = np.abs(times[begin : begin + _BLOCK])
        if ((sizes >= _RECENT) & (sizes < _RECENT * per_second)).any():
            return True
    return False


def _divide(times: _Numbers, per_second: int) -> _Numbers:
    """In place, block by block; whole seconds remain integers."""
    if per_second == 1:
        return times
    blocks = [slice(begin, begin + _BLOCK) for begin in range(0, len(times), _BLOCK)]
    if times.dtype == np.int64 and all((times[block] % per_second == 0).all() for block in blocks):
        for block in blocks:
            times[block] //= per_second
        return times
    result = times.view(np.float64)
    for block in blocks:
        result[block] = times[block] / per_second
    return result


def _as_integers(times: _Numbers) -> _Numbers:
    if times.dtype == np.int64:
        return times
    blocks = [slice(begin, begin + _BLOCK) for begin in range(0, len(times), _BLOCK)]
    if not all(
        ((times[block] % 1 == 0) & (np.abs(times[block]) < 1 << 53)).all() for block in blocks
    ):
        return times
    result = times.view(np.int64)
    for block in blocks:
        result[block] = times[block]
    return result
