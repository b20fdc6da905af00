"""Ids of users and items: what may be one, and their codes by first appearance, batch by batch."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from objectives.errors import UserError

_LARGEST_DENSE = 1 << 26
"""Integers below it are looked up in a table of at most 256 MiB, others in a hash table."""
TEXTS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
)
"""Types that hold text."""

_POWERS = 10 ** np.arange(19)
_MOST_DIGITS = 18


class MixedTypesError(Exception):
    """Ids of a column are integers in one place and text in another."""


def read_ids(column: pa.Array, name: str, where: object) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Ids as int64, uint64 or large_binary, and which are there: neither null, empty nor NaN.

    Args:
        column: As it was read.
        name: What it is of, for the message.
        where: The file, for the message.

    Raises:
        UserError: The type is not one of ids.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage  # such as that of a UUID
    kind = column.type
    if pa.types.is_null(kind):
        return column, np.zeros(len(column), dtype=bool)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        # What pandas makes of integers where some are missing.
        return _whole(column, name, where)
    if pa.types.is_integer(kind):
        if kind == pa.uint64() and (pc.max(column).as_py() or 0) >= 1 << 63:
            return column, np.asarray(column.is_valid())
        return column.cast(pa.int64()), np.asarray(column.is_valid())
    if kind not in TEXTS and not pa.types.is_fixed_size_binary(kind):
        raise UserError(f"{where}: ids must be integers or text, but the {name} column is {kind}")
    column = column.cast(pa.large_binary())
    return column, np.asarray(pc.greater(pc.binary_length(column), 0).fill_null(False))


def _whole(column: pa.Array, name: str, where: object) -> tuple[pa.Array, NDArray[np.bool_]]:
    known = column.is_valid()
    if pa.types.is_floating(column.type):
        known = pc.and_(known, pc.invert(pc.is_nan(column).fill_null(True)))
    try:
        numbers = pc.if_else(known, column, None).cast(pa.int64())
    except pa.ArrowInvalid:
        raise UserError(
            f"{where}: ids must be integers or text, but the {name} column has fractions"
        ) from None
    return numbers, np.asarray(known)


class Ids:
    """Codes 0, 1, … of ids in the order in which they appear first."""

    def __init__(self) -> None:
        self._type: pa.DataType | None = None
        # Text of digits alone, without a zero in front, is coded as the numbers.
        self._is_digits = True
        # The code of each integer, while all are small; else -1.
        self._codes: NDArray[np.int32] | None = np.empty(0, dtype=np.int32)
        self._found: list[NDArray[np.int64]] = []
        self._known: Any = None
        self._count = 0

    def __len__(self) -> int:
        """Different ids."""
        return self._count

    def encode(self, values: pa.Array) -> NDArray[np.int32]:
        """The codes of ids as `read_ids` makes them, all there.

        Raises:
            MixedTypesError: Those before were of another type.
        """
        if len(values) == 0:
            return np.empty(0, dtype=np.int32)
        if self._type is None:
            self._type = values.type
        elif values.type != self._type:
            values = self._agree(values)
        if not pa.types.is_large_binary(values.type):
            return self._encode_integers(values)
        if self._is_digits:
            if (numbers := _digits(values)) is not None:
                return self._encode_integers(numbers)
            self._is_digits = False
            self._hash_from_now_on()
        return self._encode_hashed(values)

    def ids(self) -> pa.Array:
        """The id of every code."""
        self._hash_from_now_on()
        if self._is_digits and self._type == pa.large_binary():
            return self._as_text()
        return self._known

    def _agree(self, values: pa.Array) -> pa.Array:
        kinds = {self._type, values.type}
        if kinds != {pa.int64(), pa.uint64()}:
            raise MixedTypesError
        try:
            values = values.cast(pa.uint64())
            if self._type == pa.int64():
                self._hash_from_now_on()
                self._known, self._type = self._known.cast(pa.uint64()), pa.uint64()
        except pa.ArrowInvalid:
            raise MixedTypesError from None
        return values

    def _encode_integers(self, values: pa.Array) -> NDArray[np.int32]:
        if self._codes is not None and values.type == pa.int64():
            numbers = values.to_numpy()
            if numbers.min() >= 0 and (largest := int(numbers.max())) < _LARGEST_DENSE:
                return self._encode_dense(numbers, largest)
        self._hash_from_now_on()
        return self._encode_hashed(values)

    def _encode_dense(self, numbers: NDArray[np.int64], largest: int) -> NDArray[np.int32]:
        assert self._codes is not None
        if largest >= len(self._codes):
            more = np.full((1 << largest.bit_length()) - len(self._codes), -1, dtype=np.int32)
            self._codes = np.concatenate([self._codes, more])
        codes = self._codes[numbers]
        new = np.flatnonzero(codes < 0)
        if len(new):
            values, places = numbers[new], np.arange(len(new), dtype=np.int32)
            # Of equal values the first place is written last.
            self._codes[values[::-1]] = places[::-1]
            found = values[self._codes[values] == places]
            self._codes[found] = np.arange(self._count, self._count + len(found))
            codes[new] = self._codes[values]
            self._found.append(found)
            self._count += len(found)
        return codes

    def _hash_from_now_on(self) -> None:
        if self._codes is not None:
            self._known = pa.array(np.concatenate([np.empty(0, np.int64), *self._found]))
            self._codes, self._found = None, []
        if not self._is_digits and self._type == pa.large_binary():
            self._known = self._as_text()

    def _as_text(self) -> pa.Array:
        if self._known.type == pa.large_binary():
            return self._known
        return self._known.cast(pa.large_string()).cast(pa.large_binary())

    def _encode_hashed(self, values: pa.Array) -> NDArray[np.int32]:
        encoded = values.dictionary_encode()
        if self._count == 0:
            self._known, self._count = encoded.dictionary, len(encoded.dictionary)
            return np.asarray(encoded.indices)
        codes = np.asarray(pc.index_in(encoded.dictionary, value_set=self._known).fill_null(-1))
        is_new = codes < 0
        if is_new.any():
            codes = codes.copy()
            new = encoded.dictionary.filter(pa.array(is_new))
            codes[is_new] = np.arange(self._count, self._count + len(new))
            self._known = pa.concat_arrays([self._known, new])
            self._count += len(new)
        found: NDArray[np.int32] = codes[np.asarray(encoded.indices)]
        return found


def _digits(values: pa.Array) -> pa.Array | None:
    """Texts as the integers that they are, if each is written in the one usual way."""
    offsets = np.frombuffer(values.buffers()[1], dtype=np.int64)
    offsets = offsets[values.offset : values.offset + len(values) + 1]
    lengths = np.diff(offsets)
    if lengths.max() > _MOST_DIGITS:
        return None
    characters = np.frombuffer(values.buffers()[2], dtype=np.uint8)[offsets[0] : offsets[-1]]
    # Below "0" wraps around.
    if (characters - np.uint8(ord("0")) > 9).any():
        return None
    numbers = values.view(pa.large_string()).cast(pa.int64())
    is_usual = (numbers.to_numpy() >= _POWERS[lengths - 1]) | (lengths == 1)
    return numbers if is_usual.all() else None
