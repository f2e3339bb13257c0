"""What one call of the manager wants, and a start that it has joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emberd import durations
from emberd.manager.server import Server
from emberd.settings import ServerSpec, StartOptions


@dataclass(frozen=True, slots=True)
class Wish:
    """What one call wants.

    Attributes:
        spec: Which model, and what the server must meet.
        options: How to start a server if there is none.
        api_key: The user's key, for servers that the user has listed.
        idle_timeout: Idle seconds, or a text such as ``"5m"``, after which the server may stop;
            None for never.
        lost: The server that vanished in the middle of the caller's job.
        retry_failed: Start again although the last start has just failed.
        may_install: An engine that is missing may be installed, where the user asked for that.
    """

    spec: ServerSpec
    options: StartOptions
    api_key: str | None = None
    idle_timeout: float | str | None = None
    lost: Server | None = None
    retry_failed: bool = False
    may_install: bool = True

    def __post_init__(self) -> None:
        # A value that cannot be used is an error before anything is looked for.
        _ = self.idle_s

    @property
    def idle_s(self) -> float | None:
        """Idle seconds after which the server may stop; None for never."""
        return durations.validate_or_never("idle_timeout", self.idle_timeout)


@dataclass(frozen=True, slots=True)
class Joined:
    """A start that somebody waits for.

    Attributes:
        folder: The server's state folder.
        start_id: The name of the start.
        started: Whether this call began it.
        options: How the server is started.
    """

    folder: Path
    start_id: str
    started: bool
    options: StartOptions = field(default_factory=StartOptions)

    def unmet(self, asked: Mapping[str, Any]) -> list[str]:
        """Return the names of the start options in ``asked`` that the server will not have.

        Args:
            asked: Values by the fields of ``StartOptions``.
        """
        # A port that was left to emberd is known once the server is ready.
        known = [name for name in asked if name != "port" or self.options.port is not None]
        return [name for name in known if asked[name] != getattr(self.options, name)]


Check = Callable[[Server | Joined], None]
"""Called with the server or the start that a call would use, before anything is changed for it;
raises to refuse it."""
