"""Moments as people write them, in the unit that a log counts time in."""

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from objectives.errors import UserError

_PER_SECOND = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (float("inf"), 10**9))
"""Times below each are in so many parts of a second: 1e11 s are in the year 5138, 1e11 ms were
in 1973."""


def parse_moment(
    text: str, times: NDArray[np.int64] | NDArray[np.float64], flag: str
) -> int | float:
    """A moment as the times of a log have it.

    Args:
        text: A date or time in ISO 8601, in UTC where it does not say, or a number, which is taken
            as it stands.
        times: Those of the log, since 1970, in seconds or a thousandth, millionth or billionth.
        flag: Where it was asked for.

    Raises:
        UserError: It is neither.
    """
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if np.isfinite(number):
            return number
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{flag} {text}: write a date such as 2024-03-01, a time such as 2024-03-01T12:00, or "
            "a number as the data has it"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    latest = times.max(initial=0)
    per_second = next(parts for below, parts in _PER_SECOND if latest < below)
    seconds, rest = divmod((moment - datetime.fromtimestamp(0, UTC)).total_seconds(), 1)
    return int(seconds) * per_second + round(rest * per_second)
