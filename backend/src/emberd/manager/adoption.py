"""Using a server that somebody else started: seen, verified, remembered, and never stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from emberd import engines, model_files, probe
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    EmberdError,
    ServerMismatchError,
    ServerUnavailableError,
    StartError,
)
from emberd.manager import alive, discovery, leftovers, pins, record
from emberd.manager.discovery import Candidate
from emberd.manager.record import Record, State
from emberd.manager.server import Server, Verify
from emberd.manager.slot import View, look
from emberd.manager.timing import Timing
from emberd.settings import ServerSpec
from emberd.system import listeners, processes
from emberd.system.listeners import Listener

_FIRST_ANSWER_S: Final = 10.0
"""How long something that listens may take to list its models: it may be no such server at all."""


@dataclass(frozen=True, slots=True)
class Found:
    """A verified server of somebody else's.

    Attributes:
        candidate: Where it was looked for, and why there.
        endpoint: What it proved to be.
    """

    candidate: Candidate
    endpoint: Endpoint

    @property
    def engine(self) -> str | None:
        """Name of the engine that it is a server of; None for one of no kind that emberd starts."""
        told = self.candidate.engine or self.endpoint.server
        return told if told in engines.NAMES else None

    @property
    def reason(self) -> str:
        """Why it is used, in one sentence."""
        return f"{self.endpoint.url} was found ({self.candidate.why}) and verified"

    def server(self) -> Server:
        """Return it as a server to use, without a record."""
        return Server(self.endpoint, "found", self.reason, engine=self.engine)


@dataclass(frozen=True, slots=True)
class Sought:
    """What a search gave.

    Attributes:
        found: The first server that fits; None when there is none.
        refusals: Why each of the others does not.
    """

    found: Found | None
    refusals: tuple[str, ...] = ()


def search(
    spec: ServerSpec,
    listed: tuple[str, ...],
    api_key: str | None,
    verify: Verify,
    known: Sequence[Endpoint] = (),
) -> Sought:
    """Look for a running server that serves ``spec`` and meets its constraints.

    Args:
        spec: What is wanted.
        listed: URLs of ``EMBERD_DISCOVER``.
        api_key: The user's key, for these.
        verify: See ``Verify``.
        known: External servers that were verified before: their addresses are not used for a
            server of another user.
    """
    refusals: list[str] = []
    for candidate in discovery.candidates(listed, api_key):
        looked = _look_at(candidate, spec, verify, known)
        if isinstance(looked, Found):
            return Sought(looked, tuple(refusals))
        refusals.append(f"{candidate.url} ({candidate.why}): {looked}")
    return Sought(None, tuple(refusals))


def verified_before(views: Iterable[View], lost: Server | None) -> list[Endpoint]:
    """Return the external servers that the records or the caller know to be verified."""
    found = [server for view in views if view.origin == "found" and (server := view.server())]
    if lost is not None and lost.origin == "found":
        found.append(lost)
    return [server.endpoint for server in found]


def adopt(folder: Path, spec: ServerSpec, found: Found, timing: Timing) -> Server:
    """Remember ``found`` in the record of ``folder``, so that the next process finds it at once.

    The caller holds the start lock.

    Raises:
        StartError: A supervisor lives in that folder after all.
    """
    memory = Record(
        state=State.READY,
        start_id=processes.new_start_id(),
        spec=spec,
        timing=timing,
        since_s=time.monotonic(),
        engine=found.engine,
        device=spec.device,
        # The user's key is the user's to give, each time.
        endpoint=replace(found.endpoint, api_key=None, canary=()),
        reason=found.reason,
        found=True,
    )
    with alive.held(folder) as free:
        if not free:
            raise StartError(f"{folder} was taken meanwhile", advice="Try again.")
        # Before the record goes that tells what a dead supervisor's server has left.
        leftovers.end(folder, timing)
        record.write(folder, memory)
    server = look(folder).server() or found.server()
    return replace(server, endpoint=found.endpoint)


def successor(before: Endpoint) -> Listener | None:
    """Return what listens now where a given server was; it may be asked who it is.

    Returns:
        None for a server that is not on this machine.

    Raises:
        ServerUnavailableError: Nothing listens there.
        ServerMismatchError: The address belongs to another user now.
    """
    if before.listener is None:
        return None
    now = listeners.find(before.url)
    if now is None:
        raise ServerUnavailableError(
            f"No response from {before.url}: nothing listens there. Start the server there."
        )
    if not now.has_owner_of(before.listener):
        raise ServerMismatchError(
            f"{before.url} belonged to user {before.listener.uid} and now belongs to user "
            f"{now.uid}. Nothing was sent there. Make a new object to use that server."
        )
    return now


def recall(
    view: View, spec: ServerSpec, listed: tuple[str, ...], api_key: str | None, verify: Verify
) -> Server | None:
    """Return a remembered server of somebody else's if it is still what it was; else None.

    Another server may have taken its place since, and go by the same name: it is verified again.
    """
    server = view.server()
    if server is None:
        return None
    url = server.endpoint.url
    key = api_key if url in listed else None
    looked = _look_at(
        Candidate(url, server.reason, key, server.engine, url in listed),
        spec,
        verify,
        [server.endpoint],
    )
    return replace(server, endpoint=looked.endpoint) if isinstance(looked, Found) else None


def _look_at(
    candidate: Candidate, spec: ServerSpec, verify: Verify, known: Sequence[Endpoint]
) -> Found | str:
    """Return a candidate with what it proved to be, or why it is not used."""
    # Taken first, so that whatever is asked below, and used later, is this one server.
    listener = listeners.find(candidate.url)
    if (refusal := _untrusted(candidate, listener, known)) is not None:
        return refusal
    first = probe.get(
        candidate.url, probe.MODELS, candidate.api_key, _FIRST_ANSWER_S, listener=listener
    )
    if first is None:
        return f"no response there, or not in HTTP within {_FIRST_ANSWER_S:g} s"
    try:
        found = Found(candidate, verify(candidate.url, candidate.api_key, spec, listener))
    except AuthenticationError as error:
        if candidate.listed:
            return str(error)
        return f"it wants a key, which is sent only to servers that EMBERD_DISCOVER lists: {error}"
    except EmberdError as error:
        return str(error)
    return _unfit(found, spec) or found


def _untrusted(
    candidate: Candidate, listener: Listener | None, known: Sequence[Endpoint]
) -> str | None:
    """Return why nothing is sent to a candidate, not even a request for its models."""
    if listener is None and not candidate.listed:
        return "nothing listens there"
    if listener is not None and not (candidate.listed or listener.is_trusted):
        return f"it belongs to user {listener.uid}, who is neither you nor root"
    for before in (each.listener for each in known if each.url == candidate.url):
        if before is not None and (listener is None or not listener.has_owner_of(before)):
            return f"it belonged to user {before.uid} when it was verified, and does not now"
    return None


def _unfit(found: Found, spec: ServerSpec) -> str | None:
    context_tokens = found.endpoint.context_tokens
    # A server whose engine nobody can name meets no wish for one.
    if not spec.accepts(found.engine or "", spec.device, context_tokens):
        return f"it does not meet engine={spec.engine}, context_tokens={spec.context_tokens}"
    # A path that is not on this machine may be the name that a server elsewhere goes by.
    is_known = model_files.is_folder(spec.model) or not model_files.is_path(spec.model)
    if found.engine and is_known and (problem := engines.load(found.engine).unfit(spec)):
        return f"it is a server of the engine {found.engine}: {problem}"
    return pins.contradiction(found.endpoint, spec, listed=found.candidate.listed)
