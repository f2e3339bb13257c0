"""What an engine is: one kind of server, how it is launched, watched and diagnosed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from emberd.settings import ServerSpec

START_SILENCE_S = 300.0
DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Launch:
    """What the keeper has settled before it asks an engine for its command.

    Attributes:
        port: A loopback port that is reserved for the server.
        api_key: The key that the server must ask for.
        fingerprint: Text that the server is to echo as its weight version: it proves that the
            server on the port is the one that was started.
        folder: The server's state folder, for files that must not be seen by others.
    """

    port: int
    api_key: str = field(repr=False)
    fingerprint: str
    folder: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start a server.

    Attributes:
        command: Program and arguments; no secret stands in it.
        environment: The whole environment of the process; secrets may stand in it.
        device: Where the model will run, ``"cpu"`` or ``"cuda"``.
        silence_s: The start has failed when nothing moves for so long, in seconds.
        drain_s: After SIGTERM, requests may finish for so long, in seconds.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    device: str
    silence_s: float = START_SILENCE_S
    drain_s: float = DRAIN_S


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a server died.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        port_taken: The port was lost to somebody else, so another port is worth a try.
        killed: Somebody from outside killed it (SIGKILL, and no reason in the log), so another
            start is worth a try; a few in a row are not.
    """

    cause: str
    advice: str = ""
    port_taken: bool = False
    killed: bool = False


class Engine(Protocol):
    """One kind of server. A module under ``emberd.engines`` offers one as ``ENGINE``."""

    @property
    def name(self) -> str:
        """The name that ``engine=`` takes."""

    def refusal(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""

    def claims(self, spec: ServerSpec) -> Sequence[str]:
        """Return names of what only one starting server may take at a time, such as GPU UUIDs.

        They are held from before ``plan``, which measures what is free, until the server is ready.
        """

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``."""

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far."""

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server died.

        Args:
            exit_code: As ``subprocess`` gives it, negative for a signal; None when the server
                was ended by its keeper because nothing moved.
            log: What it wrote since its start.
        """

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is a server of this kind."""
