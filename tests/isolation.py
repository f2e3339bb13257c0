"""Keeps test sessions on one machine apart: the workers of one run, and several runs.

emberd looks at all processes of the machine. Every process that a session starts inherits the
session's name in its environment, and is not seen by the code under test of another session.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

import psutil

VARIABLE: Final = "TESTS_OF"

_all_processes: Final = psutil.process_iter


def begin(name: str) -> None:
    """Name this session, and hide the processes of others from now on.

    Args:
        name: Unique on the machine; inherited by all processes that are started from now on.
    """
    os.environ[VARIABLE] = name
    hide_other_sessions()


def hide_other_sessions() -> None:
    """Hide the processes of other sessions from ``psutil.process_iter`` in this process."""
    psutil.process_iter = _visible  # type: ignore[assignment]


def _visible(*args: Any, **more: Any) -> Iterator[psutil.Process]:
    own = os.environ.get(VARIABLE)
    for process in _all_processes(*args, **more):
        try:
            owner = process.environ().get(VARIABLE)
        except (psutil.Error, OSError):
            owner = None  # of another user, or it has ended
        if owner is None or own is None or owner == own:
            yield process
