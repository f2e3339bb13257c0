"""Servers that somebody else started on this machine, or that the user listed.

Candidates only: whether one serves the wanted model is seen by asking it. None of them is ever
stopped, and none is given a key of ours.

A revision and a number format are told by ``/server_info``. The files of a folder are told by the
path that the server loaded, where that is a folder of this machine, and by its age: what changed
after its start, it does not hold.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd import checkpoints, engines, probe
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    EmberdError,
    ServerMismatchError,
    ServerUnavailableError,
    SettingError,
    StartError,
)
from emberd.manager import cleanup, liveness, state
from emberd.manager.state import (
    Record,
    Server,
    ServerSnapshot,
    ServerStatus,
    State,
    Timing,
    Verify,
    snapshot,
)
from emberd.settings import ServerSpec
from emberd.system import listeners, processes
from emberd.system.listeners import Listener

if TYPE_CHECKING:
    import psutil


DEFAULT_PORT: Final = 30_000
"""Where SGLang listens when nobody says otherwise."""

_LOOPBACK: Final = "127.0.0.1"
_IPV4: Final = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place where a server may be.

    Attributes:
        url: Its root.
        why: How it came to be looked at, for people.
        api_key: A key of the user's that may be shown to it.
        engine: Name of the kind of server, where its process told it.
        listed: The user named it.
    """

    url: str
    why: str
    api_key: str | None = None
    engine: str | None = None
    listed: bool = False


def candidates(listed: tuple[str, ...], api_key: str | None) -> Iterator[Candidate]:
    """Yield where to look, each URL once: what was listed, processes, the default port.

    Args:
        listed: URLs of ``EMBERD_DISCOVER``.
        api_key: The user's key; shown to listed servers only, since those were named by hand.
    """
    seen: set[str] = set()
    for candidate in _all(listed, api_key):
        if candidate.url not in seen:
            seen.add(candidate.url)
            yield candidate


def _all(listed: tuple[str, ...], api_key: str | None) -> Iterator[Candidate]:
    for url in listed:
        yield Candidate(url, "EMBERD_DISCOVER lists it", api_key, listed=True)
    yield from _processes()
    url = f"http://{_LOOPBACK}:{DEFAULT_PORT}"
    # Where the listening sockets cannot be read, nothing is known of the port, and nothing is sent.
    with suppress(OSError):
        if (open_here := listeners.find(url)) is not None and open_here.is_trusted:
            yield Candidate(url, f"port {DEFAULT_PORT} is open")


def _processes() -> Iterator[Candidate]:
    import psutil

    kinds = [engines.load(name) for name in engines.NAMES]
    for found in psutil.process_iter(["cmdline"]):
        command = found.info["cmdline"] or []
        kind = next((engine for engine in kinds if engine.recognises(command)), None)
        if kind is not None and _is_strangers(found):
            for url in _urls(found):
                yield Candidate(
                    url,
                    f"process {found.pid} is a {kind.name} server",
                    engine=kind.name,
                )


def _is_strangers(found: psutil.Process) -> bool:
    import psutil

    try:
        # A server that bears our mark has a supervisor and a key; its record is the way to it.
        return found.uids().real == os.getuid() and processes.MARK not in found.environ()
    except (psutil.Error, OSError):
        return False


def _urls(found: psutil.Process) -> list[str]:
    urls = []
    for address, port in listeners.listening(found):
        at = str(address) if address.version == _IPV4 else f"[{address}]"
        urls.append(f"http://{_LOOPBACK if address.is_unspecified else at}:{port}")
    return urls


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
) -> Sought:
    """Look for a running server that serves ``spec`` and meets its constraints.

    Args:
        spec: What is wanted.
        listed: URLs of ``EMBERD_DISCOVER``.
        api_key: The user's key, for these.
        verify: See ``Verify``.
    """
    refusals: list[str] = []
    for candidate in candidates(listed, api_key):
        looked = _look_at(candidate, spec, verify)
        if isinstance(looked, Found):
            return Sought(looked, tuple(refusals))
        refusals.append(f"{candidate.url} ({candidate.why}): {looked}")
    return Sought(None, tuple(refusals))


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
    with liveness.held(folder) as free:
        if not free:
            raise StartError(f"{folder} was taken meanwhile", advice="Try again.")
        # Before the record goes that tells what a dead supervisor's server has left.
        cleanup.end(folder, timing)
        state.write_record(folder, memory)
    server = snapshot(folder).server() or found.server()
    return replace(server, endpoint=found.endpoint)


def successor(before: Endpoint) -> Listener | None:
    """Return what listens now where a given server was; it may be asked who it is.

    Returns:
        None for a server that is not on this machine.

    Raises:
        ServerUnavailableError: Nothing listens there, or that cannot be seen.
        ServerMismatchError: The address belongs to another user now.
    """
    if before.listener is None:
        return None
    try:
        now = listeners.find(before.url)
    except OSError as error:
        raise ServerUnavailableError(
            f"It cannot be seen which process listens at {before.url}: the listening sockets of "
            f"this machine cannot be read ({error}). Nothing was sent. Try again later."
        ) from error
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
    view: ServerSnapshot,
    spec: ServerSpec,
    listed: tuple[str, ...],
    api_key: str | None,
    verify: Verify,
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
        Candidate(url, server.reason, key, server.engine, url in listed), spec, verify
    )
    return replace(server, endpoint=looked.endpoint) if isinstance(looked, Found) else None


def examine(
    candidate: Candidate, spec: ServerSpec, verify: Verify, *, first_answer_s: float
) -> Found:
    """Return a candidate with what it proved to be.

    Args:
        candidate: Where the server may be.
        spec: What is wanted.
        verify: See ``Verify``.
        first_answer_s: How long it may take to list its models, in seconds.

    Raises:
        ServerMismatchError: It is not used, and why; nothing was sent to a server of another user.
        ServerUnavailableError: There is no response.
        AuthenticationError: It wants a key, or another one.
    """
    # Taken first, so that whatever is asked below, and used later, is this one server.
    listener = trusted_listener(candidate.url)
    if listener is None and not candidate.listed:
        raise ServerUnavailableError(f"{candidate.url} is not an address of this machine.")
    first = probe.get(
        candidate.url, probe.MODELS, candidate.api_key, first_answer_s, listener=listener
    )
    if first is None:
        raise ServerUnavailableError(
            f"No response from {candidate.url}, or not in HTTP within {first_answer_s:g} s. Start "
            f"the server there, or correct the address."
        )
    found = Found(candidate, verify(candidate.url, candidate.api_key, spec, listener))
    if (reason := _unfit(found, spec)) is not None:
        raise ServerMismatchError(reason)
    return found


def trusted_listener(url: str) -> Listener | None:
    """Return the listener to which a request for an external server may be sent.

    ``EMBERD_DISCOVER`` names an address and no user. Once the server has ended, any user may
    listen there and would get the key and the texts. So on this machine only this user and root
    are trusted.

    Returns:
        None for an address that is not one of this machine.

    Raises:
        ServerUnavailableError: Nothing listens there, or that cannot be seen.
        ServerMismatchError: The listening socket belongs to another user.
    """
    try:
        listener = listeners.find(url)
        is_missing = listener is None and listeners.is_here(url)
    except OSError as error:
        raise ServerUnavailableError(
            f"It cannot be seen which process listens at {url}: the listening sockets of this "
            f"machine cannot be read ({error}). Nothing was sent. Try again later."
        ) from error
    if is_missing:
        raise ServerUnavailableError(
            f"No response from {url}: nothing listens there. Start the server there."
        )
    if listener is not None and not listener.is_trusted:
        raise ServerMismatchError(
            f"{url} belongs to user {listener.uid}, who is not known to be you or root, so nothing "
            f"was sent there. If you trust that user, give the URL as base_url or EMBERD_BASE_URL."
        )
    return listener


def to_ask(status: ServerStatus) -> Listener | None:
    """Return the listener that may be asked whether the server of a record still responds.

    Returns:
        None for an external server that is not on this machine.

    Raises:
        ServerUnavailableError: Nothing listens there.
        ServerMismatchError: The address of an external server belongs to another user now.
    """
    if status.origin != "own":
        # Its restart is no fault: it is verified again before it is used.
        return trusted_listener(status.url or "")
    if status.listener is None:
        raise ServerUnavailableError(f"The record of {status.url} names no listening socket.")
    return status.listener


def _look_at(candidate: Candidate, spec: ServerSpec, verify: Verify) -> Found | str:
    """Return a candidate with what it proved to be, or why it is not used."""
    try:
        return examine(candidate, spec, verify, first_answer_s=_FIRST_ANSWER_S)
    except AuthenticationError as error:
        if candidate.listed:
            return str(error)
        return f"it wants a key, which is sent only to servers that EMBERD_DISCOVER lists: {error}"
    except EmberdError as error:
        return str(error)


def _unfit(found: Found, spec: ServerSpec) -> str | None:
    context_tokens = found.endpoint.context_tokens
    # A server whose engine nobody can name meets no wish for one.
    if not spec.accepts(found.engine or "", spec.device, context_tokens):
        return f"it does not meet engine={spec.engine}, context_tokens={spec.context_tokens}"
    # A path that is not on this machine may be the name that a server elsewhere goes by.
    is_known = checkpoints.is_folder(spec.model) or not checkpoints.is_path(spec.model)
    if found.engine and is_known and (problem := engines.load(found.engine).unfit(spec)):
        return f"it is a server of the engine {found.engine}: {problem}"
    return contradiction(found.endpoint, spec, listed=found.candidate.listed)


# A server reads its files some seconds after its start, and that is known to a second or so: the
# kernel counts it from the boot, whose time it has in whole seconds.
_READS_AFTER_S: Final = 2.0
_GIVE_IT: Final = "Give it as base_url to use it all the same"


def contradiction(endpoint: Endpoint, spec: ServerSpec, *, listed: bool = False) -> str | None:
    """Return why a server is not seen to have what ``spec`` pins; None if it is.

    Args:
        endpoint: The verified server.
        spec: What is wanted.
        listed: The user named it, and answers for whatever stands between it and its files.
    """
    return _in_numbers(endpoint, spec) or _in_files(endpoint, spec, listed=listed)


def _in_numbers(endpoint: Endpoint, spec: ServerSpec) -> str | None:
    reply = probe.get(endpoint.url, "/server_info", endpoint.api_key, listener=endpoint.listener)
    answer: Any = reply.json() if reply is not None else None
    told = answer if isinstance(answer, dict) else {}
    pinned = {"revision": spec.revision, "dtype": spec.dtype, "quantization": spec.quantization}
    for name, value in pinned.items():
        have = told.get(name)
        if value is not None and have != value:
            return f"{name} {value} is wanted, and the server says {have or 'nothing about it'}"
    # None asks for the engine's own format of numbers, but for no quantisation at all.
    if spec.quantization is None and told.get("quantization"):
        return f"it serves the model quantised ({told['quantization']}), which was not asked for"
    return None


def _in_files(endpoint: Endpoint, spec: ServerSpec, *, listed: bool) -> str | None:
    if spec.content is None:
        return None
    url = endpoint.url
    path = probe.model_path(url, endpoint.api_key, listener=endpoint.listener)
    if path is None or not _is_folder_here(url, path):
        return (
            f"it does not show that it serves the files of {spec.model}: it says "
            f"{path or 'nothing of them'}, which is no folder here. {_GIVE_IT}"
        )
    try:
        loaded, changed_s = checkpoints.content(path), checkpoints.changed_s(path)
    except SettingError as error:
        return f"what it serves cannot be read: {error} {_GIVE_IT}"
    if loaded != spec.content:
        return f"the files of {path}, which it serves, are not those of {spec.model}"
    return _in_process(url, path, changed_s, listed=listed)


def _in_process(url: str, path: str, changed_s: float, *, listed: bool) -> str | None:
    process = listeners.process_at(url)
    if not listed and (process is None or not _is_server_here(process)):
        return (
            f"whoever listens there is no server that this process can look into (a container, a "
            f"tunnel, a router): whether it holds the files of {path} cannot be seen. {_GIVE_IT}"
        )
    if process is not None and process.create_time() + _READS_AFTER_S < changed_s:
        return f"it was started before the files of {path} changed; restart it"
    return None


def _is_server_here(process: psutil.Process) -> bool:
    import psutil  # late: most processes look at no server of somebody else's

    # What forwards to another machine, or sees other files under the same path, proves nothing.
    kinds = [engines.load(name) for name in engines.NAMES]
    with suppress(psutil.Error, OSError):
        command = process.cmdline()
        same_files = sys.platform != "linux" or _files_of(process.pid) == _files_of("self")
        return same_files and any(kind.recognises(command) for kind in kinds)
    return False


def _files_of(pid: int | str) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def _is_folder_here(url: str, path: str) -> bool:
    return probe.is_loopback(url) and os.path.isabs(path) and os.path.isdir(path)
