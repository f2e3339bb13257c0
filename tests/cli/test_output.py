"""Durations as people read them."""

from __future__ import annotations

import pytest

from emberd.cli import output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (1800, "30 min"),
        (3600, "1 h"),
        (11_100, "3 h 5 min"),
        (86_400, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_one_is_singular() -> None:
    assert [output.pluralize(n, "text") for n in (0, 1, 2)] == ["0 texts", "1 text", "2 texts"]


def test_a_low_rate_is_not_rounded_to_zero() -> None:
    assert [output.rate(per_s) for per_s in (0, 0.2, 12.3, 1234)] == ["0", "0.2", "12", "1,234"]


def test_never_is_a_duration_too() -> None:
    assert (output.idle(None), output.idle(60)) == ("never", "after 60 s")
