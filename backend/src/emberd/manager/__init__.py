"""Find a server, start exactly one, watch it, stop it: one mechanism a module.

A server's folder is the meeting point of all processes; ``folders`` draws it, ``record`` and
``alive`` say what may be read and who may write, ``core`` is where to begin reading.
"""

from emberd.manager.manager import ServerManager
from emberd.manager.state import OnProgress, Progress, Server, ServerStatus, State, Timing, Verify

__all__ = [
    "OnProgress",
    "Progress",
    "Server",
    "ServerManager",
    "ServerStatus",
    "State",
    "Timing",
    "Verify",
]
