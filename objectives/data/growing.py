"""An array that grows at its end."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_GROWTH = 1.25


class Growing:
    """Values of one type, appended in parts; memory is moved rather than copied."""

    def __init__(self, dtype: DTypeLike) -> None:
        self._values: NDArray[Any] = np.empty(0, dtype)
        self._length = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        return self._values.dtype

    def append(self, part: NDArray[Any]) -> None:
        """Adds values at the end."""
        end = self._length + len(part)
        if end > len(self._values):
            self._values.resize(max(end, int(_GROWTH * self._length)), refcheck=False)
        self._values[self._length : end] = part
        self._length = end

    def change_type(self, dtype: DTypeLike) -> None:
        """Converts what is there."""
        self._values = self._values[: self._length].astype(dtype)

    def take(self) -> NDArray[Any]:
        """The values; nothing is appended afterwards."""
        self._values.resize(self._length, refcheck=False)
        return self._values
