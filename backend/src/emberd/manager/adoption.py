"""Using a server that somebody else started: seen, verified, remembered, and never stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from emberd import surface
from emberd.errors import EmberdError, StartError
from emberd.manager import alive, discovery, process, record
from emberd.manager.discovery import Candidate
from emberd.manager.record import Record, State
from emberd.manager.server import Server, Verify
from emberd.manager.slot import View, look
from emberd.manager.timing import Timing
from emberd.settings import Endpoint, ServerSpec


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
    def reason(self) -> str:
        """Why it is used, in one sentence."""
        return f"{self.endpoint.url} was found ({self.candidate.why}) and verified"

    def server(self) -> Server:
        """Return it as a server to use, without a record."""
        return Server(self.endpoint, "found", self.reason, engine=self.candidate.engine)


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
        try:
            endpoint = verify(candidate.url, candidate.api_key, spec)
        except EmberdError as error:
            refusals.append(f"{candidate.url} ({candidate.why}): {error}")
            continue
        reason = _unfit(candidate, endpoint, spec)
        if reason is None:
            return Sought(Found(candidate, endpoint), tuple(refusals))
        refusals.append(f"{candidate.url} ({candidate.why}): {reason}")
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
        engine=found.candidate.engine,
        device=spec.device,
        # The user's key is the user's to give, each time.
        endpoint=replace(found.endpoint, api_key=None),
        reason=found.reason,
        found=True,
    )
    with alive.held(folder) as free:
        if not free:
            raise StartError(f"{folder} was taken meanwhile", advice="Try again.")
        record.write(folder, memory)
    server = look(folder).server() or found.server()
    return replace(server, endpoint=found.endpoint)


def recall(
    view: View, spec: ServerSpec, listed: tuple[str, ...], api_key: str | None
) -> Server | None:
    """Return a remembered server of somebody else's if it is still what it was; else None.

    Another server may have taken its place since: its socket's owner, its name and what is
    pinned are looked at again.
    """
    server = view.server()
    if server is None:
        return None
    url = server.endpoint.url
    endpoint = replace(server.endpoint, api_key=api_key if url in listed else None)
    candidate = Candidate(url, server.reason, endpoint.api_key)
    if url not in listed and not discovery.is_trusted(url):
        return None
    if not _serves(endpoint) or discovery.contradiction(candidate, spec, endpoint.api_key):
        return None
    return replace(server, endpoint=endpoint)


def _serves(endpoint: Endpoint) -> bool:
    reply = surface.get(endpoint.url, "/v1/models", endpoint.api_key)
    listed = reply.json() if reply is not None else None
    models = listed.get("data", []) if isinstance(listed, dict) else []
    return any(isinstance(m, dict) and m.get("id") == endpoint.model for m in models)


def _unfit(candidate: Candidate, endpoint: Endpoint, spec: ServerSpec) -> str | None:
    # Nobody asked for "found"; a server whose engine nobody can name meets no wish for one.
    if not spec.accepts(candidate.engine or "", spec.device, endpoint.context_tokens):
        return f"it does not meet engine={spec.engine}, context_tokens={spec.context_tokens}"
    return discovery.contradiction(candidate, spec, candidate.api_key)
