"""The only parser of durations: in options, variables, arguments and URLs."""

from __future__ import annotations

import math
import re
import threading
from contextlib import suppress
from typing import Final

from emberd.errors import SettingError

NEVER: Final = "never"
FORMS: Final = "a number of seconds, or a duration such as 90s, 5m, 1h30m or 2d"
"""What is accepted, for error messages."""

FORMS_OR_NEVER: Final = f"{FORMS}, or {NEVER}"

_UNITS_S: Final = {"d": 86_400, "h": 3600, "m(?:in)?": 60, "s": 1}
_PLAIN: Final = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
# Each unit at most once, the longest first.
_PARTS: Final = re.compile(
    r"\s*".join(rf"(?:(\d+(?:\.\d+)?)\s*{unit})?" for unit in _UNITS_S), re.ASCII | re.IGNORECASE
)


def seconds(text: str) -> float:
    """Return a duration in seconds, at least 0.

    Args:
        text: A number of seconds, or numbers with the units ``d``, ``h``, ``m`` (or ``min``) and
            ``s``, the longest first: ``90``, ``0.5``, ``5m``, ``1h30m``, ``2 d 4 h``.

    Raises:
        ValueError: ``text`` has another form.
    """
    stripped = text.strip()
    if _PLAIN.fullmatch(stripped):
        total = float(stripped)
    else:
        parts = _PARTS.fullmatch(stripped)
        numbers = parts.groups() if parts else ()
        if not any(numbers):
            raise ValueError(text)
        units = zip(numbers, _UNITS_S.values(), strict=True)
        total = sum(float(number) * unit for number, unit in units if number)
    if not math.isfinite(total):
        raise ValueError(text)
    return total


def seconds_or_never(text: str) -> float | None:
    """Return what ``seconds`` does, or None for ``never``; raises as ``seconds``."""
    return None if text.strip().casefold() == NEVER else seconds(text)


def validate(name: str, value: object, *, zero: bool = False, forms: str = FORMS) -> float:
    """Return the duration of a setting, in seconds.

    Args:
        name: The setting, for the error.
        value: A number of seconds, or a text that ``seconds`` reads.
        zero: Whether 0 is valid.
        forms: What is accepted, for the error.

    Raises:
        SettingError: ``value`` is not a duration, or is longer than the platform can wait.
    """
    number = value
    if isinstance(value, str):
        with suppress(ValueError):
            number = seconds(value)
    if isinstance(number, int | float) and not isinstance(number, bool):
        is_valid = 0 < number <= threading.TIMEOUT_MAX or (zero and number == 0)
        if is_valid:
            return number
    least = "of 0 or more" if zero else "greater than 0"
    raise SettingError(f"{name}={value!r} must be a duration {least}: {forms}.")


def validate_or_never(name: str, value: object) -> float | None:
    """Return what ``validate`` does, or None for None and ``never``; raises as ``validate``."""
    if value is None or (isinstance(value, str) and value.strip().casefold() == NEVER):
        return None
    return validate(name, value, forms=FORMS_OR_NEVER)
