"""Moments as people write them."""

import math
from datetime import UTC, datetime

_UNITS = ((1e17, 10**9), (1e14, 10**6), (1e11, 10**3))
"""Numbers from each on are in such parts of a second: 1e11 s would be in the year 5138."""


def parse_moment(text: str) -> float:
    """Seconds since 1970.

    Args:
        text: A date or time in ISO 8601, in UTC where it does not say, or a number of seconds, or
            milliseconds and so on, since 1970.

    Raises:
        ValueError: It is neither.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return number / next((parts for least, parts in _UNITS if abs(number) >= least), 1)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "write a date such as 2024-03-01, a time such as 2024-03-01T12:00, or seconds since "
            "1970"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
