import pytest

from objectives.moments import parse_moment

MARCH = 1_709_251_200
"""2024-03-01 in UTC."""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-03-01", MARCH),
        ("2024-03-01T00:00:00Z", MARCH),
        ("2024-03-01T02:00+02:00", MARCH),
        ("2024-03-01T00:00:00.5", MARCH + 0.5),
        ("4", 4),
        ("-1.5", -1.5),
        (f"{MARCH}", MARCH),
        (f"{MARCH}500", MARCH + 0.5),
        (f"{MARCH}000000", MARCH),
        (f"{MARCH}000000000", MARCH),
    ],
)
def test_moments_are_seconds_since_1970(text: str, seconds: float) -> None:
    assert parse_moment(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "2024-13-01"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^write a date such as 2024-03-01, "):
        parse_moment(text)
