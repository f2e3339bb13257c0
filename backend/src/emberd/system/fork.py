"""The registry of what must not be shared with a forked child.

A child that wrote to an inherited connection would mix its replies with the parent's. A lock that
another thread held at the fork is never released in the child. An SQLite file that is open at a
fork is damaged sooner or later, because its locks belong to the process. The locks of the import
system cannot be replaced, so a fork waits until our imports have ended.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final
from weakref import WeakSet

from emberd.errors import EmberdError

_LOG: Final = logging.getLogger(__name__)
# An import of a second takes more than 10 s when ten processes share each core. The limit applies
# only when the import cannot end before the fork does.
_LONGEST_IMPORT_S: Final = 60.0


class ForkAware:
    """Base class of objects that hold locks, sockets, files or event loops.

    The methods run in the thread that forks; all three do nothing unless they are overridden.
    """

    __slots__ = ("__weakref__",)

    def before_fork(self) -> None:
        """Wait for what is in progress, and close what a child must not inherit."""

    def after_fork_in_parent(self) -> None:
        """Continue."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent; must not take a lock of the parent's."""


_REGISTERED: Final[WeakSet[ForkAware]] = WeakSet()
# Never collected: finalisers of inherited objects would take locks, close connections and wake
# event loops that belong to the parent.
_INHERITED: Final[list[object]] = []

_importing = threading.RLock()
_waited = False
_is_stuck = False  # forked during an import, whose lock will never be released here
_notified: list[ForkAware] = []


def register(thing: ForkAware) -> None:
    """Call the methods of ``thing`` at every fork of this process, while ``thing`` exists."""
    _REGISTERED.add(thing)


def keep_inherited(thing: object) -> None:
    """Never collect ``thing``, which belongs to the parent, in this child."""
    _INHERITED.append(thing)


@contextmanager
def no_fork() -> Iterator[None]:
    """Delay forks by other threads during the block, which prepares a first use.

    It imports modules, and may read the files of a model.

    Raises:
        EmberdError: This child was forked during such a block, and would wait for its locks
            forever.
    """
    if _is_stuck:
        raise EmberdError(
            f"This process was forked while another thread of its parent prepared the first use "
            f"of emberd for more than {_LONGEST_IMPORT_S:.0f} s, and cannot use emberd. Fork after "
            f"the first use, or start processes with multiprocessing's method 'spawn'."
        )
    with _importing:
        yield


def _registered() -> list[ForkAware]:
    while True:
        try:
            return list(_REGISTERED)
        except RuntimeError:  # another thread registered something in between
            continue


def _before() -> None:
    global _waited, _notified  # noqa: PLW0603 - read on the other side of the fork
    _waited = _importing.acquire(timeout=_LONGEST_IMPORT_S)
    _notified = _registered()
    _call_all(_notified, "before_fork")


def _after_in_parent() -> None:
    _call_all(reversed(_notified), "after_fork_in_parent")
    _notified.clear()  # or they would be kept until the next fork
    if _waited:
        _importing.release()


def _after_in_child() -> None:
    # Another thread of the parent may hold the old lock.
    global _importing, _is_stuck  # noqa: PLW0603 - read by no_fork
    _importing = threading.RLock()
    _is_stuck = _is_stuck or not _waited
    _call_all(reversed(_notified), "after_fork_in_child")


def _call_all(things: Iterable[ForkAware], method: str) -> None:
    for thing in things:
        try:
            getattr(thing, method)()
        except Exception:  # noqa: BLE001 - the others must be called too
            _LOG.exception("%s of %s failed at a fork", method, type(thing).__name__)


os.register_at_fork(
    before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
