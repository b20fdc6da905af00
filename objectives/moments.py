"""Moments as people write them."""

import math
from datetime import UTC, datetime

UNITS = (
    (1e17, 1_000_000_000, "nanoseconds"),
    (1e14, 1_000_000, "microseconds"),
    (1e11, 1_000, "milliseconds"),
)
"""From that number on, so many a second, and their name: 1e11 seconds are the year 5138."""


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
        return number / next((parts for least, parts, _ in UNITS if abs(number) >= least), 1)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "write a date such as 2024-03-01, a time such as 2024-03-01T12:00, or seconds since "
            "1970"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
