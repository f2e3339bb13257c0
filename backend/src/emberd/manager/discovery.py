"""Finds and uses external servers: running on this machine, or listed in ``EMBERD_DISCOVER``.

Each candidate is verified before it is used. An external server is never stopped and never gets a
key of emberd's. What a spec pins must be visible: the revision and the quantisation in
``/server_info``, the files of a model folder by the path that the server has loaded and by the time
of its start.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd import catalog, engines, model_files, probe
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    EmberdError,
    ServerMismatchError,
    ServerUnavailableError,
    SettingError,
    StartError,
)
from emberd.manager import cleanup, history, locks, state
from emberd.manager.state import Record, Server, ServerSnapshot, ServerStatus, State, Timing, Verify
from emberd.settings import ServerSpec
from emberd.system import listeners, processes
from emberd.system.listeners import Listener

if TYPE_CHECKING:
    import psutil

DEFAULT_PORT: Final = 30_000
"""The port of SGLang if none is set."""

_LOOPBACK: Final = "127.0.0.1"
_IPV4: Final = 4
_FIRST_ANSWER_S: Final = 10.0
"""How long a listener may take to list its models: it may be no such server at all."""
# A server reads its files some seconds after its start, and the start time is precise to about a
# second: the kernel counts it from the boot, whose time it stores in whole seconds.
_READS_AFTER_S: Final = 2.0
_USE_BASE_URL: Final = "Pass it as base_url to use it anyway"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address where a server may be.

    Attributes:
        url: Its root.
        why: Why it is considered, for messages.
        api_key: A key of the user's that may be sent to it, unless it shows without a key that it
            serves other models.
        engine: Name of its engine, if its command line shows it.
        listed: Whether it is listed in ``EMBERD_DISCOVER``.
    """

    url: str
    why: str
    api_key: str | None = None
    engine: str | None = None
    listed: bool = False


# ---------------------------------------------------------------- candidates


def candidates(listed: tuple[str, ...], api_key: str | None) -> Iterator[Candidate]:
    """Yield the candidates, each URL once: listed ones, processes, the default port.

    Args:
        listed: URLs of ``EMBERD_DISCOVER``.
        api_key: The user's key; sent only to listed servers, which the user has named.
    """
    seen: set[str] = set()
    for candidate in _all_candidates(listed, api_key):
        if candidate.url not in seen:
            seen.add(candidate.url)
            yield candidate


def _all_candidates(listed: tuple[str, ...], api_key: str | None) -> Iterator[Candidate]:
    for url in listed:
        yield Candidate(url, "EMBERD_DISCOVER lists it", api_key, listed=True)
    yield from _processes()
    url = f"http://{_LOOPBACK}:{DEFAULT_PORT}"
    # If the listening sockets cannot be read, nothing is known about the port and nothing is sent.
    with suppress(OSError):
        if (listener := listeners.find(url)) is not None and listener.is_trusted:
            yield Candidate(url, f"port {DEFAULT_PORT} is open")


def _processes() -> Iterator[Candidate]:
    for pid in processes.pids():
        try:
            engine = _engine_of(processes.command_line(pid))
            if engine is None or not processes.is_own(pid):
                continue
            # A server with our mark has a supervisor and a key, and is used through its record.
            if processes.variable(pid, processes.MARK) is not None:
                continue
        except processes.UNREADABLE:
            continue
        for address, port in listeners.addresses_of(pid):
            at = str(address) if address.version == _IPV4 else f"[{address}]"
            url = f"http://{_LOOPBACK if address.is_unspecified else at}:{port}"
            yield Candidate(url, f"process {pid} is a {engine} server", engine=engine)


def _engine_of(command: list[str]) -> str | None:
    return next((name for name in engines.NAMES if engines.load(name).recognises(command)), None)


# ---------------------------------------------------------------- search and reuse


def search(
    spec: ServerSpec, listed: tuple[str, ...], api_key: str | None, verify: Verify
) -> tuple[Server | None, list[str]]:
    """Search for a running server that serves ``spec`` and meets its constraints.

    Args:
        spec: What is requested.
        listed: URLs of ``EMBERD_DISCOVER``.
        api_key: The user's key, for these URLs.
        verify: See ``Verify``.

    Returns:
        The first server that fits, without a record, or None; and why each of those before it
        does not fit.
    """
    refusals: list[str] = []
    for candidate in candidates(listed, api_key):
        result = _try_candidate(candidate, spec, verify)
        if isinstance(result, Server):
            return result, refusals
        refusals.append(f"{candidate.url} ({candidate.why}): {result}")
    return None, refusals


def adopt(folder: Path, spec: ServerSpec, found: Server, timing: Timing) -> Server:
    """Store ``found`` in the record of ``folder``, so that other processes find it at once.

    The caller holds the start lock.

    Raises:
        StartError: A supervisor runs in that folder.
    """
    record = Record(
        state=State.READY,
        start_id=processes.new_start_id(),
        spec=spec,
        timing=timing,
        since_s=time.monotonic(),
        engine=found.engine,
        device=spec.device,
        # The user's key is not stored: the user passes it each time.
        endpoint=replace(found.endpoint, api_key=None, canary=()),
        reason=found.reason,
        found=True,
    )
    with locks.liveness_lock(folder) as is_free:
        if not is_free:
            raise StartError(f"Another process started a server in {folder}", advice="Try again.")
        # Before the record is replaced: it names the files of a dead supervisor's server.
        cleanup.clean_up(folder, timing)
        state.write_record(folder, record)
        history.note(folder, history.ADOPTED, record, url=found.endpoint.url, cause=found.reason)
    return replace(found, start_id=record.start_id, folder=str(folder))


def reverify(
    seen: ServerSnapshot,
    spec: ServerSpec,
    listed: tuple[str, ...],
    api_key: str | None,
    verify: Verify,
) -> Server | None:
    """Return the external server of a record if it is still what it was; else None.

    It is verified again: another server with the same name may have taken its place. The arguments
    after ``seen``, a snapshot of the record's folder, are those of ``search``.
    """
    server = seen.server()
    if server is None:
        return None
    url = server.endpoint.url
    key = api_key if url in listed else None
    candidate = Candidate(url, server.reason, key, server.engine, url in listed)
    result = _try_candidate(candidate, spec, verify)
    return replace(server, endpoint=result.endpoint) if isinstance(result, Server) else None


# ---------------------------------------------------------------- verification


def verify_candidate(
    candidate: Candidate, spec: ServerSpec, verify: Verify, *, first_answer_s: float
) -> Server:
    """Return the verified server of a candidate.

    Args:
        candidate: Where the server may be.
        spec: What is requested.
        verify: See ``Verify``.
        first_answer_s: How long it may take to list its models, in seconds.

    Raises:
        ServerMismatchError: It cannot be used; nothing was sent to a server of another user.
        ServerUnavailableError: There is no response.
        AuthenticationError: It requires a key, or another one.
    """
    url = candidate.url
    # Taken first, so that everything that is requested below, and later, goes to this one server.
    listener = trusted_listener(url)
    if listener is None and not candidate.listed:
        raise ServerUnavailableError(f"{url} is not an address of this machine.")
    models = probe.get(url, probe.MODELS, None, first_answer_s, listener=listener)
    if models is None:
        raise ServerUnavailableError(
            f"No response from {url}, or not in HTTP within {first_answer_s:g} s. Start the server "
            f"there, or correct the address."
        )
    shown = probe.entries(models.json() if models.status == HTTPStatus.OK else None)
    if candidate.api_key and not shown:
        shown = probe.models_of_info(url, listener=listener)
    key = candidate.api_key if _may_have_key(shown, spec) else None
    endpoint = verify(url, key, spec, listener)
    name = candidate.engine or endpoint.server
    # An engine that emberd cannot start is unknown here, and does not meet a request for one.
    engine = name if name in engines.NAMES else None
    if (reason := _mismatch(endpoint, engine, spec, listed=candidate.listed)) is not None:
        raise ServerMismatchError(reason)
    reason = f"{endpoint.url} was found ({candidate.why}) and verified"
    return Server(endpoint, "found", reason, engine=engine, notes=endpoint.notes)


def _may_have_key(entries: list[dict[str, Any]], spec: ServerSpec) -> bool:
    """Return whether a server may be sent the user's key, which may be that of another one.

    Args:
        entries: The models that it lists without a key.
        spec: What is requested.
    """
    said = [str(entry[name]) for entry in entries for name in ("id", "root") if entry.get(name)]
    # A server that shows no list without a key, as most that require one, may serve the model.
    return not said or any(
        catalog.names(spec.model, name) or catalog.names(name, spec.model) for name in said
    )


def _try_candidate(candidate: Candidate, spec: ServerSpec, verify: Verify) -> Server | str:
    """Return the verified server of a candidate, or why it is not used."""
    try:
        return verify_candidate(candidate, spec, verify, first_answer_s=_FIRST_ANSWER_S)
    except AuthenticationError as error:
        if candidate.listed:
            return str(error)
        return (
            f"it requires a key, which is sent only to servers that EMBERD_DISCOVER lists: {error}"
        )
    except EmberdError as error:
        return str(error)


def _mismatch(
    endpoint: Endpoint, engine: str | None, spec: ServerSpec, *, listed: bool
) -> str | None:
    if not spec.accepts(engine or "", spec.device, endpoint.context_tokens, deterministic=True):
        return f"it does not meet engine={spec.engine}, context_tokens={spec.context_tokens}"
    if problem := determinism_mismatch(endpoint, spec):
        return problem
    # A path that is not on this machine may be the model name of a remote server.
    is_known = model_files.is_folder(spec.model) or not model_files.is_path(spec.model)
    if engine and is_known and (problem := engines.load(engine).why_unsupported(spec)):
        return f"it is a server of the engine {engine}: {problem}"
    return pinned_mismatch(endpoint, spec, listed=listed)


# ---------------------------------------------------------------- listeners


def trusted_listener(url: str) -> Listener | None:
    """Return the listener to which a request for an external server may be sent.

    ``EMBERD_DISCOVER`` names an address and no user. Once the server has ended, any user may
    listen there and would get the key and the texts. So on this machine only this user and root
    are trusted.

    Returns:
        None for an address that is not one of this machine.

    Raises:
        ServerUnavailableError: No process listens there, or that cannot be determined.
        ServerMismatchError: The listening socket belongs to another user.
    """
    listener = _find_listener(url)
    if listener is not None and not listener.is_trusted:
        raise ServerMismatchError(
            f"{url} belongs to user {listener.uid}, who is not known to be you or root, so nothing "
            f"was sent there. If you trust that user, pass the URL as base_url or EMBERD_BASE_URL."
        )
    return listener


def restarted_listener(before: Endpoint) -> Listener | None:
    """Return the current listener at the address of a given server that was lost.

    Returns:
        None for a server that is not on this machine.

    Raises:
        ServerUnavailableError: No process listens there, or that cannot be determined.
        ServerMismatchError: The address now belongs to another user.
    """
    if before.listener is None:
        return None
    now = _find_listener(before.url)
    if now is None:
        raise _not_listening(before.url)
    if not now.has_owner_of(before.listener):
        raise ServerMismatchError(
            f"{before.url} belonged to user {before.listener.uid} and now belongs to user "
            f"{now.uid}. No request was sent there. Create a new object to use that server."
        )
    return now


def listener_to_probe(status: ServerStatus) -> Listener | None:
    """Return the listener that may be asked whether the server of a record still responds.

    Returns:
        None for an external server that is not on this machine.

    Raises:
        ServerUnavailableError: No process listens there.
        ServerMismatchError: The address of an external server now belongs to another user.
    """
    if status.origin != "own":
        # It may have been restarted: it is verified again before it is used.
        return trusted_listener(status.url or "")
    if status.listener is None:
        raise ServerUnavailableError(f"The record of {status.url} contains no listening socket.")
    return status.listener


def _find_listener(url: str) -> Listener | None:
    try:
        listener = listeners.find(url)
        is_missing = listener is None and listeners.is_here(url)
    except OSError as error:
        raise ServerUnavailableError(
            f"Cannot determine which process listens at {url}: the listening sockets of this "
            f"machine cannot be read ({error}). No request was sent. Try again later."
        ) from error
    if is_missing:
        raise _not_listening(url)
    return listener


def _not_listening(url: str) -> ServerUnavailableError:
    return ServerUnavailableError(
        f"No response from {url}: no process listens there. Start the server there."
    )


# ---------------------------------------------------------------- what a spec pins


def pinned_mismatch(endpoint: Endpoint, spec: ServerSpec, *, listed: bool = False) -> str | None:
    """Return which pinned property a server is not known to have; None if it has them all.

    Args:
        endpoint: The verified server.
        spec: What is requested.
        listed: The user named the server, and so vouches for what is between it and its files.
    """
    reply = probe.get(endpoint.url, probe.SERVER_INFO, endpoint.api_key, listener=endpoint.listener)
    answer: Any = reply.json() if reply is not None else None
    reported = answer if isinstance(answer, dict) else {}
    pinned = {"revision": spec.revision, "quantization": spec.quantization}
    for name, value in pinned.items():
        actual = reported.get(name)
        if value is not None and actual != value:
            return f"{name} {value} is required, but the server reports {actual or 'none'}"
    # Without a quantisation in the spec, only unquantised weights give the right vectors.
    if spec.quantization is None and reported.get("quantization"):
        return f"it serves the model quantised ({reported['quantization']}), which is not requested"
    return None if spec.content is None else _files_mismatch(endpoint, spec, listed=listed)


def determinism_mismatch(endpoint: Endpoint, spec: ServerSpec) -> str | None:
    """Return that an external server does not meet ``deterministic=True``; None if it does.

    Raises:
        ServerUnavailableError: It cannot be found out.
    """
    if not spec.deterministic:
        return None
    url = endpoint.url
    reported = probe.is_deterministic(url, endpoint.api_key, listener=endpoint.listener)
    if reported is None:
        raise ServerUnavailableError(
            f"deterministic=True is required, but {url}{probe.SERVER_INFO}, which reports it, did "
            f"not answer, failed, or is closed to this key. Try again later, open that route, or "
            f"omit deterministic=True."
        )
    if reported:
        return None
    return (
        f"deterministic=True is required, but {url} does not report that it computes "
        f"deterministically. Start SGLang with --enable-deterministic-inference, or omit it."
    )


def _files_mismatch(endpoint: Endpoint, spec: ServerSpec, *, listed: bool) -> str | None:
    url = endpoint.url
    path = probe.model_path(url, endpoint.api_key, listener=endpoint.listener)
    is_here = path is not None and os.path.isabs(path) and os.path.isdir(path)
    if path is None or not is_here or not probe.is_loopback(url):
        return (
            f"it does not prove that it serves the files of {spec.model}: it reports "
            f"{path or 'no path'}, which is not a folder of this machine. {_USE_BASE_URL}"
        )
    try:
        loaded, changed_s = model_files.content_hash(path), model_files.changed_s(path)
    except SettingError as error:
        return f"the files that it serves cannot be read: {error} {_USE_BASE_URL}"
    if loaded != spec.content:
        return f"the files of {path}, which it serves, differ from those of {spec.model}"
    process = listeners.process_at(url)
    if not listed and (process is None or not _reads_our_files(process)):
        return (
            f"the process that listens there is not a server that this process can inspect (a "
            f"container, a tunnel, a router), so whether it has loaded the files of {path} is "
            f"unknown. {_USE_BASE_URL}"
        )
    if process is not None and process.create_time() + _READS_AFTER_S < changed_s:
        return f"it was started before the files of {path} changed; restart it"
    return None


def _reads_our_files(process: psutil.Process) -> bool:
    """Return whether it is a server process that sees the same files under the same paths.

    A process that forwards to another machine, or has another mount namespace, proves nothing.
    """
    import psutil  # late: most processes use no external server

    with suppress(psutil.Error, OSError):
        if sys.platform == "linux":
            mounts = (os.stat(f"/proc/{pid}/ns/mnt").st_ino for pid in (process.pid, "self"))
            if len(set(mounts)) != 1:
                return False
        return _engine_of(process.cmdline()) is not None
    return False
