"""Keeps test sessions on one machine apart: the workers of one run, and several runs.

emberd looks at all processes of the machine. Every process that a session starts inherits the
session's name in its environment, and is not seen by the code under test of another session.
"""

from __future__ import annotations

import os
from typing import Final

from emberd.system import processes

VARIABLE: Final = "TESTS_OF"

_all_pids: Final = processes.pids


def begin(name: str) -> None:
    """Name this session, and hide the processes of others from now on.

    Args:
        name: Unique on the machine; inherited by all processes that are started from now on.
    """
    os.environ[VARIABLE] = name
    hide_other_sessions()


def hide_other_sessions() -> None:
    """Hide the processes of other sessions from ``processes.pids`` in this process."""
    processes.pids = _visible


def _visible() -> list[int]:
    own = os.environ.get(VARIABLE)
    return [pid for pid in _all_pids() if own is None or _owner(pid) in (own, None)]


def _owner(pid: int) -> str | None:
    try:
        return processes.variable(pid, VARIABLE)
    except processes.UNREADABLE:
        return None  # of another user, or it has ended
