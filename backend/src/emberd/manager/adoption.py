"""Using a server that somebody else started: seen, verified, remembered, and never stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from emberd import engines, surface
from emberd.errors import AuthenticationError, EmberdError, StartError
from emberd.manager import alive, discovery, leftovers, pins, process, record, sockets
from emberd.manager.discovery import Candidate
from emberd.manager.record import Record, State
from emberd.manager.server import Server, Verify
from emberd.manager.slot import View, look
from emberd.manager.timing import Timing
from emberd.settings import Endpoint, ServerSpec

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
    spec: ServerSpec, listed: tuple[str, ...], api_key: str | None, verify: Verify
) -> Sought:
    """Look for a running server that serves ``spec`` and meets its constraints."""
    refusals: list[str] = []
    for candidate in discovery.candidates(listed, api_key):
        looked = _look_at(candidate, spec, verify)
        if isinstance(looked, Found):
            return Sought(looked, tuple(refusals))
        refusals.append(f"{candidate.url} ({candidate.why}): {looked}")
    return Sought(None, tuple(refusals))


def adopt(folder: Path, spec: ServerSpec, found: Found, timing: Timing) -> Server:
    """Remember ``found`` in the record of ``folder``, so that the next process finds it at once.

    The caller holds the start lock.

    Raises:
        StartError: A keeper lives in that folder after all.
    """
    memory = Record(
        state=State.READY,
        nonce=process.new_nonce(),
        spec=spec,
        timing=timing,
        since_s=time.monotonic(),
        engine=found.engine,
        device=spec.device,
        # The user's key is the user's to give, each time.
        endpoint=replace(found.endpoint, api_key=None),
        reason=found.reason,
        found=True,
    )
    with alive.held(folder) as free:
        if not free:
            raise StartError(f"{folder} was taken meanwhile", advice="Try again.")
        # Before the record goes that tells what a dead keeper's server has left.
        leftovers.end(folder, timing)
        record.write(folder, memory)
    server = look(folder).server() or found.server()
    return replace(server, endpoint=found.endpoint)


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
    if url not in listed and not sockets.is_trusted(url):
        return None
    looked = _look_at(
        Candidate(url, server.reason, key, server.engine, url in listed), spec, verify
    )
    return replace(server, endpoint=looked.endpoint) if isinstance(looked, Found) else None


def _look_at(candidate: Candidate, spec: ServerSpec, verify: Verify) -> Found | str:
    """Return a candidate with what it proved to be, or why it is not used."""
    if surface.get(candidate.url, surface.MODELS, candidate.api_key, _FIRST_ANSWER_S) is None:
        return f"nobody answers there, or not in HTTP within {_FIRST_ANSWER_S:g} s"
    try:
        found = Found(candidate, verify(candidate.url, candidate.api_key, spec))
    except AuthenticationError as error:
        if candidate.listed:
            return str(error)
        return f"it wants a key, which is sent only to servers that EMBERD_DISCOVER lists: {error}"
    except EmberdError as error:
        return str(error)
    return _unfit(found, spec) or found


def _unfit(found: Found, spec: ServerSpec) -> str | None:
    context_tokens = found.endpoint.context_tokens
    # A server whose engine nobody can name meets no wish for one.
    if not spec.accepts(found.engine or "", spec.device, context_tokens):
        return f"it does not meet engine={spec.engine}, context_tokens={spec.context_tokens}"
    at = found.candidate
    return pins.contradiction(at.url, spec, at.api_key, listed=at.listed)
