"""What an engine is: one kind of server, how it is launched, watched and diagnosed.

* A plan without a start: what a server's command would be, for those who only want to see it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from emberd.settings import ServerSpec, StartOptions

START_SILENCE_S = 300.0
DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Launch:
    """What the supervisor has settled before it asks an engine for its command.

    Attributes:
        port: The loopback port that the server is to listen on.
        api_key: The key that the server must ask for; None when it is to ask for none.
        fingerprint: Name of this start, which the server shows as its weight version. Every
            user of the machine can read it, so it proves nothing.
        folder: The server's state folder, for files that must not be seen by others.
        options: How the user wants it started.
        claimed: What ``Engine.claims`` named and is held for this start.
        descriptor: Descriptor of a socket that listens on ``port``, which the server inherits;
            None for an engine that opens its own, and for a dry run.
    """

    port: int
    api_key: str | None = field(repr=False)
    fingerprint: str
    folder: str
    options: StartOptions = field(default_factory=StartOptions)
    claimed: Sequence[str] = ()
    descriptor: int | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a piece of a plan is there, for people.

    Attributes:
        what: Words of the command, a variable of the environment, or a quantity.
        why: The reason, in one sentence without a full stop.
    """

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start a server.

    Attributes:
        command: Program and arguments; no secret stands in it.
        environment: The whole environment of the process; secrets may stand in it.
        device: Where the model will run, ``"cpu"`` or ``"cuda"``.
        silence_s: The start has failed when nothing moves for so long, in seconds.
        drain_s: After SIGTERM, requests may finish for so long, in seconds.
        files: Name in the state folder -> content, written for this user alone before the
            server starts; secrets may stand in it.
        reasons: Why each word of the command, and each figure in it, is there.
        notes: What whoever uses the server should know of it; said once.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    device: str
    silence_s: float = START_SILENCE_S
    drain_s: float = DRAIN_S
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    reasons: Sequence[Reason] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a server died.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        port_taken: The port was lost to somebody else, so another port is worth a try.
        killed: Somebody from outside ended it (SIGKILL or SIGTERM, and no reason in the log), so
            another start is worth a try; a few in a row are not.
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

    @property
    def takes_descriptor(self) -> bool:
        """Whether its server can serve on a listening socket that it inherits."""

    def refusal(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""

    def unfit(self, spec: ServerSpec) -> str | None:
        """Return why its servers do not give ``spec``'s vectors on any machine; None if they do.

        Of a model on the hub only files in the hub's cache are read, so the answer may differ
        after a download.
        """

    def missing(self, spec: ServerSpec) -> str | None:
        """Return the name of the environment whose installation would end the refusal, or None."""

    def claims(self, spec: ServerSpec, options: StartOptions) -> Sequence[str]:
        """Return names of what only one starting server may take at a time, such as GPU UUIDs.

        They are held from before ``plan``, which measures what is free, until the server is ready.
        """

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``. Writes nothing and starts nothing.

        Raises:
            StartError: What ``refusal`` could not see: memory is short, a file is damaged.
        """

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far."""

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server died.

        Args:
            exit_code: As ``subprocess`` gives it, negative for a signal; None when the server
                was ended by its supervisor because nothing moved.
            log: What it wrote since its start.
        """

    def is_doomed(self, log: str) -> bool:
        """Return whether a starting server has failed although its process still lives."""

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is a server of this kind."""


# In place of what is chosen at a start alone.
ANY_PORT: Final = 30_000
KEY: Final = "a-random-key-of-this-start"
FOLDER: Final = "FOLDER-OF-THE-SERVER"
_STAMP: Final = "a-random-stamp-of-this-start"


def rehearse(engine: Engine, spec: ServerSpec, options: StartOptions, home: str) -> Plan:
    """Return how ``engine`` would start a server for ``spec``; nothing is written or held.

    Args:
        engine: One that can serve it.
        spec: What is to be served.
        options: How it is to be started.
        home: The folder of all state, in which the server's would lie.

    Raises:
        StartError: The machine has not got what the plan needs.
    """
    claimed = tuple(engine.claims(spec, options))
    key = None if options.no_auth else KEY
    port = options.port or ANY_PORT
    folder = os.path.join(home, FOLDER)
    return engine.plan(spec, Launch(port, key, _STAMP, folder, options, claimed))
