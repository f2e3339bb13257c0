"""After a fork the child starts with no sockets, locks or loops of its parent's.

A child that wrote to an inherited connection would mix its answers up with the parent's, and a
lock that another thread held at the fork is never released in the child. Of these the import
system's own cannot be made anew, so a fork waits for imports of ours.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol
from weakref import WeakSet

from emberd.client import deadline, pieces


class Resettable(Protocol):
    """Something that holds locks, sockets or loops."""

    def reset_after_fork(self) -> None:
        """Forget all of them; runs in the child, on its only thread, and takes no lock."""


_REGISTERED: Final[WeakSet[Any]] = WeakSet()
# What the child got from its parent is kept for good: collecting it would run its finalisers,
# which take locks and wake loops that belong to the parent.
_INHERITED: Final[list[object]] = []

_LONGEST_IMPORT_S: Final = 10.0
_importing = threading.RLock()

_CONNECTED: Final = ("connection.connect_tcp.complete", "connection.start_tls.complete")


def register(thing: Resettable) -> None:
    """Have ``thing`` reset in children of this process, for as long as it lives."""
    _REGISTERED.add(thing)


@contextmanager
def no_fork() -> Iterator[None]:
    """Let no thread fork in this block, in which modules are imported."""
    with _importing:
        yield


def keep_inherited(thing: object) -> None:
    """Keep ``thing``, which belongs to the parent, from ever being collected in the child."""
    _INHERITED.append(thing)


class Sockets:
    """The connections of one HTTP client, noted through httpx's trace of each request."""

    def __init__(self) -> None:
        self._streams: WeakSet[Any] = WeakSet()

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Take note of a connection that came about; other events are ignored."""
        if event in _CONNECTED:
            stream = info["return_value"]
            self._streams.add(stream)
            deadline.bind(stream)

    async def anote(self, event: str, info: dict[str, Any]) -> None:
        """Do as ``note``, for an asynchronous client, whose deadlines are the loop's."""
        if event in _CONNECTED:
            stream = info["return_value"]
            self._streams.add(stream)
            pieces.abind(stream)

    def close_in_child(self) -> None:
        """Close the child's copies of the connections; the parent's stay open."""
        for stream in list(self._streams):
            # Asked of the socket itself: the client's own close() takes its lock, which another
            # thread of the parent may have held.
            inherited = stream.get_extra_info("socket")
            if inherited is not None and inherited.fileno() >= 0:
                _close(inherited)


def _close(inherited: Any) -> None:
    if isinstance(inherited, socket.socket):
        inherited.close()
        return
    # A loop's socket cannot be closed from outside. Another file under its number ends the
    # child's share in the connection, and leaves the number to its owner.
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, inherited.fileno(), inheritable=False)
    os.close(nothing)


def _reset_all() -> None:
    for thing in list(_REGISTERED):
        thing.reset_after_fork()


def _wait_for_imports() -> None:
    global _waited  # noqa: PLW0603 - said to the other side of the fork
    _waited = _importing.acquire(timeout=_LONGEST_IMPORT_S)


def _after_in_parent() -> None:
    if _waited:
        _importing.release()


def _after_in_child() -> None:
    global _importing  # noqa: PLW0603 - another thread of the parent's may hold the old one
    _importing = threading.RLock()
    _reset_all()


_waited = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_imports,
        after_in_parent=_after_in_parent,
        after_in_child=_after_in_child,
    )
