"""Durations and counts as people read them."""

from __future__ import annotations

from typing import Final

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
_EXACT_BELOW_S: Final = 120


def duration(seconds: float) -> str:
    """Return ``seconds`` in words: ``45 s``, ``12 min``, ``3 h 5 min``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < _EXACT_BELOW_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min"
    if whole < _DAY_S:
        return _two(whole // _HOUR_S, "h", whole % _HOUR_S // _MINUTE_S, "min")
    return _two(whole // _DAY_S, "d", whole % _DAY_S // _HOUR_S, "h")


def idle(seconds: float | None) -> str:
    """Return when a server stops that is asked to stay for ``seconds`` after its last use."""
    return "never" if seconds is None else f"after {duration(seconds)}"


def counted(count: int, noun: str) -> str:
    """Return ``count`` with its noun: ``1 text``, ``2 texts``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _two(first: int, first_unit: str, second: int, second_unit: str) -> str:
    return f"{first} {first_unit}" + (f" {second} {second_unit}" if second else "")
