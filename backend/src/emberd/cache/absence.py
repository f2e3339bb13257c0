"""Doing without a store that is away: told once, and tried again after a pause."""

from __future__ import annotations

import logging
import time
from typing import Final

PAUSE_S: Final = 10.0
"""How long a store that failed is left alone: less would slow every call down by its timeout."""

_LOG: Final = logging.getLogger("emberd")


class Absence:
    """Whether a store is to be left alone for now.

    Args:
        what: The store and what is done with it, for people: "Reading the cache at ...".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._until: float | None = None
        self._is_told = False

    @property
    def lasts(self) -> bool:
        """Whether the store failed so lately that asking it again would only cost time."""
        return self._until is not None and time.monotonic() < self._until

    def begin(self, why: object, advice: str = "") -> None:
        """Note that the store failed; the first time of an absence is warned of."""
        self._until = time.monotonic() + PAUSE_S
        if not self._is_told:
            self._is_told = True
            _LOG.warning(
                "%s fails (%s). Vectors are computed without it; it is tried again every %.0f s.%s",
                self._what,
                why,
                PAUSE_S,
                f" {advice}" if advice else "",
            )

    def end(self) -> None:
        """Note that the store works: its next failure is warned of again."""
        self._until = None
        if self._is_told:
            self._is_told = False
            _LOG.warning("%s works again.", self._what)
