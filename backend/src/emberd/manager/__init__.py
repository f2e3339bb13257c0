"""Finds a server, starts exactly one, watches it and stops it.

All processes meet in the state folder of a server. ``paths`` describes its layout, ``state`` its
record, ``locks`` the lock that shows whether its supervisor runs. Start reading at ``manager`` for
how a server is found or started, at ``supervisor`` for what happens when it dies, hangs or is idle.
"""

from emberd.manager.manager import Check, PendingStart, ServerManager
from emberd.manager.state import OnProgress, Progress, Server, ServerStatus, State, Timing, Verify

__all__ = [
    "Check",
    "OnProgress",
    "PendingStart",
    "Progress",
    "Server",
    "ServerManager",
    "ServerStatus",
    "State",
    "Timing",
    "Verify",
]
