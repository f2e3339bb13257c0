"""What the manager gives out: a server to use, its progress while it starts, its status."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from emberd import env
from emberd.endpoint import Endpoint
from emberd.errors import StartTimeoutError
from emberd.manager.record import State
from emberd.settings import ServerSpec, StartOptions
from emberd.system.listeners import Listener

Origin = Literal["given", "own", "found"]


@dataclass(frozen=True, slots=True)
class Server:
    """A verified server, ready for use.

    Attributes:
        endpoint: Where it answers and what it serves.
        origin: ``"given"`` by URL, ``"own"`` (kept by emberd) or ``"found"`` (external).
        reason: Which server it is and why this one, in one sentence.
        started: Whether this call started it.
        engine: Name of the engine; None when not known.
        start_id: Name of this start of it; None for a given one.
        folder: Its state folder; None for a given one.
        notes: What whoever uses it should know, a sentence each.
        options: How it was started; None for one that emberd did not start.
    """

    endpoint: Endpoint
    origin: Origin
    reason: str
    started: bool = False
    engine: str | None = None
    start_id: str | None = None
    folder: str | None = None
    notes: tuple[str, ...] = ()
    options: StartOptions | None = None

    def unmet(self, asked: Mapping[str, Any]) -> list[str]:
        """Return the names of the start options in ``asked`` that this server does not have.

        Args:
            asked: Values by the fields of ``StartOptions``.
        """
        if self.started:
            return []
        # The port and the key are seen from outside; the rest is known of emberd's servers only.
        seen = {"port": urlsplit(self.endpoint.url).port, "no_auth": self.endpoint.api_key is None}
        known = self.options or StartOptions()
        return [name for name in asked if asked[name] != seen.get(name, getattr(known, name))]

    def noting_unmet(self, overridden: Container[str] = ()) -> Server:
        """Return the server with a note for each start option of the environment it does not have.

        Args:
            overridden: Options that the caller gave, which the environment has no say in.

        Raises:
            SettingError: A variable cannot be read; it is named.
        """
        asked = env.start_option_values()
        names = [name for name in self.unmet(asked) if name not in overridden]
        return replace(self, notes=(*self.notes, *map(self._unmet_note, names)))

    def _unmet_note(self, name: str) -> str:
        # Without the value: arguments may hold secrets.
        variable, url = env.start_option_variable(name), self.endpoint.url
        if self.origin == "given":
            return f"{variable} has no effect: the server at {url} was given, and none is started."
        if self.origin == "found":
            return f"{variable} has no effect: emberd did not start the server at {url}."
        return (
            f"{variable} has no effect: the server at {url} runs already and was started without "
            f"it. To start one with it, run `emberd stop` first."
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a starting server is.

    Attributes:
        text: What it is doing.
        seconds: How long the start has taken so far.
        log_path: Its log.
    """

    text: str
    seconds: float
    log_path: str

    def timed_out(self) -> StartTimeoutError:
        """Return the error of a caller that waits for the start no longer."""
        doing = self.text or "it reports no progress yet"
        return StartTimeoutError(
            f"The server has been starting for {self.seconds:.0f} s ({doing}) and start_timeout is "
            f"over. The start goes on: ask again to join it, or give a longer start_timeout. Log: "
            f"{self.log_path}"
        )


OnProgress = Callable[[Progress], None]

Verify = Callable[[str, str | None, ServerSpec, Listener | None], Endpoint]
"""Asks a server (URL, key) for a real embedding and returns what it is; raises when it does not
serve the spec. The listener is the one that must answer; None for whichever is there. It comes from
the client, which the manager does not know."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known of one server from its record.

    Attributes:
        key: The identity's 16 digits, and a number for a second server of it.
        spec: What was asked for.
        state: Where it is in its life.
        seconds: How long it has been there.
        url: Its root while it answers.
        engine: Name of its engine.
        device: Where the model runs.
        origin: ``"own"`` or ``"found"``.
        supervisor_pid: Process id of its supervisor while that lives.
        idle_timeout: Idle seconds after which it stops; None for never.
        detail: Progress, failure or reason, in words.
        log_path: Its log; empty for servers of others.
        start_id: Name of this start.
        api_key: Its key, for clients of other kinds. Never printed.
    """

    key: str
    spec: ServerSpec
    state: State
    seconds: float
    url: str | None
    engine: str | None
    device: str | None
    origin: Origin
    supervisor_pid: int | None
    idle_timeout: float | None
    detail: str
    log_path: str
    start_id: str
    api_key: str | None = field(default=None, repr=False)
