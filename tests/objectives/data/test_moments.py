import numpy as np
import pytest

from objectives.data.moments import parse_moment
from objectives.errors import UserError

SECONDS = 1_709_251_200
"""2024-03-01T00:00 in UTC."""


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
def test_a_date_is_in_the_unit_of_the_log(per_second: int) -> None:
    times = np.array([0, SECONDS + 9 * 86400]) * per_second
    assert parse_moment("2024-03-01", times, "--since") == SECONDS * per_second
    assert parse_moment("2024-03-01T00:00:00Z", times, "--since") == SECONDS * per_second
    assert parse_moment("2024-03-01T02:00+02:00", times, "--since") == SECONDS * per_second
    half = parse_moment("2024-03-01T00:00:00.5", times.astype(float), "--since")
    assert half == SECONDS * per_second + per_second // 2


def test_a_number_is_taken_as_it_stands() -> None:
    times = np.array([3, 5])
    assert parse_moment("4", times, "--since") == 4
    assert parse_moment("-1.5", times, "--since") == -1.5


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "2024-13-01"])
def test_what_is_no_moment_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=rf"^--since {text}: write a date such as 2024-03-01"):
        parse_moment(text, np.array([1]), "--since")
