"""Caches and forks.

A database that is open at a fork is damaged sooner or later: SQLite's locks belong to the process,
and the child believes that it holds its parent's. So files are closed before, and both sides open
them again when they need them.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Something that holds files, locks or connections."""

    def before_fork(self) -> None:
        """Wait for what is under way, and close what must not be inherited."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Forget what is the parent's; takes no lock."""


_REGISTERED: Final[WeakSet[Any]] = WeakSet()
# Kept for good: collecting a connection of the parent's would end it for the parent too.
_INHERITED: Final[list[object]] = []


def register(thing: Forked) -> None:
    """Have ``thing`` told of every fork, for as long as it lives."""
    _REGISTERED.add(thing)


def keep_inherited(thing: object) -> None:
    """Keep ``thing``, which belongs to the parent, from being collected in the child."""
    _INHERITED.append(thing)


def _before() -> None:
    global _told  # noqa: PLW0603 - the same ones are told after the fork
    _told = list(_REGISTERED)
    for thing in _told:
        thing.before_fork()


def _after_in_parent() -> None:
    for thing in _told:
        thing.after_fork_in_parent()


def _after_in_child() -> None:
    for thing in _told:
        thing.after_fork_in_child()


_told: list[Any] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
