"""Servers: given, started by emberd and external ones; the state folder, proxies and ports."""

from __future__ import annotations

import os
import stat
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from emberd import env, probe
from emberd.client.verify import verify
from emberd.doctor.engines import up_command
from emberd.doctor.findings import Finding, LateError, gather, note, ok, problem, split
from emberd.doctor.host import filesystem_of, nearest_existing
from emberd.doctor.wanted import Wanted
from emberd.endpoint import Endpoint
from emberd.errors import AuthenticationError, EmberdError, StateFolderError
from emberd.manager import State, Timing, discovery, lost_records, paths, state
from emberd.manager.discovery import DEFAULT_PORT, Candidate
from emberd.manager.state import ServerSnapshot, ServerStatus
from emberd.system import file_lock, listeners, ownership
from emberd.system.redaction import host

_REQUEST_S: Final = 3.5
_SERVER_S: Final = 4.0
_GIVEN: Final = "base_url is given"


def check_servers(wanted: Wanted) -> Iterator[Finding]:
    """Yield the known servers and which of them serves the requested model."""
    deadline_s = time.monotonic() + _SERVER_S
    listed = discovery.candidates(wanted.places.discover, wanted.api_key)
    candidates = [candidate for candidate in listed if candidate.url != wanted.base_url]
    if wanted.base_url is not None:
        candidates.insert(0, Candidate(wanted.base_url, _GIVEN, wanted.api_key))
    # Concurrently: a server that hangs must not use up the time of the others.
    outcomes = gather([partial(_verified, wanted, each) for each in candidates], _SERVER_S)
    found = [_other(wanted, *pair) for pair in zip(candidates, outcomes, strict=True)]
    marks = lost_records.marks_read_once()
    for folder in paths.Home(Path(os.path.realpath(wanted.home))).all_server_folders():
        with suppress(StateFolderError):  # reported by check_state
            view = state.settled_snapshot(folder, deadline_s, Timing().poll_s)
            found += _own(wanted, view, marks)
    yield from found or [ok("servers", "no server is running")]


def _verified(wanted: Wanted, candidate: Candidate) -> Endpoint:
    asks = partial(verify, timeout_s=_REQUEST_S, batch_size=wanted.batch_size)
    if candidate.why == _GIVEN:
        return asks(candidate.url, candidate.api_key, wanted.spec)
    # The same function as in ``ensure``, so that nothing is sent to a server that it would skip.
    return discovery.verify_candidate(
        candidate, wanted.spec, asks, first_answer_s=_REQUEST_S
    ).endpoint


def _other(wanted: Wanted, candidate: Candidate, found: Endpoint | BaseException) -> Finding:
    """Return the finding about a server that emberd did not start."""
    url, is_given = candidate.url, candidate.why == _GIVEN
    subject = "base_url" if is_given else "found"
    name = url if is_given else f"{url} ({candidate.why})"
    if isinstance(found, Endpoint):
        context = f", {found.context_tokens} tokens" if found.context_tokens else ""
        kind = "a reranker" if found.labels else f"{found.dimensions} dimensions"
        fact = f"{name} serves {wanted.spec.model}: {kind}{context}"
        rest = "starts no server" if is_given else "does not stop it"
        return ok(subject, fact, gives=f"{fact}. emberd uses it and {rest}")
    if isinstance(found, LateError):
        why = f"{url} did not respond within {_SERVER_S:g} s."
    elif isinstance(found, EmberdError):
        why = str(found)
    else:
        why = f"{url} could not be verified: {type(found).__name__}."
    fact, advice = split(why)
    task = wanted.spec.task
    if is_given:
        variable = env.setting_variable("base_url", task)
        correct = f"Correct {variable}, or unset it: emberd then finds or starts one."
        return problem(subject, fact, advice or correct)
    if isinstance(found, AuthenticationError) and not candidate.api_key:
        variable = env.setting_variable("api_key", task)
        advice = f"With its key: export {variable}=KEY EMBERD_DISCOVER={url}"
    return note(subject, f"{name} is not used: {fact}", advice)


def _own(wanted: Wanted, view: ServerSnapshot, marks: lost_records.Marks) -> Iterator[Finding]:
    status = lost_records.server_status(view, marks)
    if status is None:
        return
    if status.state is State.UNKNOWN:
        yield note("own", f"The server in {view.folder}: {status.detail}", "emberd stop")
        return
    where = f" at {status.url}" if status.url else ""
    detail = f" ({status.detail})" if status.detail else ""
    fact = f"{status.spec.model} is {status.state}{where}{detail}"
    log = f"Read its log: {status.log_path}" if status.log_path else "emberd stop"
    is_wanted = status.spec.key == wanted.spec.key
    if status.state is State.FAILED:
        yield note("own", fact, f"{log}; then: {up_command(wanted)}" if is_wanted else log)
    elif status.state is State.READY and not _answers(status):
        yield note("own", f"{fact}, but does not respond", log)
    elif status.state is not State.ABSENT:
        # An external server is only recorded here; it was verified above.
        serves = is_wanted and view.serves(wanted.spec) and status.origin == "own"
        yield ok("own", fact, gives=f"{fact}; emberd uses it" if serves else "")
    folder = str(view.folder)
    left = [] if view.alive else [str(own.pid) for own, marked, _ in marks() if marked == folder]
    if left:
        yield note(
            "leftover",
            f"processes of a stopped server are still running: {', '.join(left)}",
            "emberd stop  (ends them; so does the next start)",
        )


def _answers(status: ServerStatus) -> bool:
    try:
        listener = discovery.listener_to_probe(status)
    except EmberdError:
        return False
    return (
        probe.get(status.url or "", "/ready", timeout_s=_REQUEST_S, listener=listener) is not None
    )


_ELSEWHERE: Final = "Set EMBERD_HOME to your own folder on a local disk."
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MOST_SKEW_S: Final = 2.0
_EARLIEST_S: Final = 1_735_689_600  # 1 January 2025, before the first release of emberd


def check_state(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether EMBERD_HOME can hold the state of servers."""
    under = filesystem_of(wanted.home)
    yield _home(wanted.home)
    if under.is_shared:
        yield note(
            "file system",
            f"{wanted.home} is on {under.kind}, a network file system: whether its locks work "
            f"depends on the file server",
            _ELSEWHERE,
        )
    if not under.writable:
        yield problem("home", f"{under.path} is not writable", _ELSEWHERE)
        return
    try:
        # Unnamed, so that nothing is left behind.
        with tempfile.TemporaryFile(dir=nearest_existing(under.path)) as file:
            yield _locks(file.fileno())
            yield _clock(file)
    except OSError as error:
        yield problem("home", f"{under.path} cannot be written ({error.strerror})", _ELSEWHERE)
    own = paths.Home(Path(os.path.realpath(wanted.home)))
    needed = {own.machine, own.servers, *own.server_folders(wanted.spec.key)}
    for folder in sorted({*needed, *own.all_server_folders()}):
        try:
            ownership.check_private(folder)
        except FileNotFoundError:
            continue
        except StateFolderError as error:
            make = problem if folder in needed else note
            yield make("state folder", *split(str(error)))


def _home(home: Path) -> Finding:
    if not home.exists():
        return ok("home", f"{home} does not exist yet; the first start creates it")
    if not home.is_dir():
        return problem("home", f"{home} is not a folder", _ELSEWHERE)
    facts = home.stat()
    mode = stat.S_IMODE(facts.st_mode)
    if facts.st_uid != os.geteuid():
        return note("home", f"{home} belongs to user {facts.st_uid} (mode {mode:o})", _ELSEWHERE)
    if mode & _OTHERS_WRITE:
        return note("home", f"{home} is writable by others (mode {mode:o})", f"chmod 700 {home}")
    return ok("home", f"{home} (mode {mode:o})")


def _locks(descriptor: int) -> Finding:
    try:
        if not file_lock.try_lock(descriptor):  # no other process has this file
            return problem("locks", "file locks do not work", _ELSEWHERE)
        # Only Linux has this path, which opens the file a second time.
        with suppress(FileNotFoundError), open(f"/proc/self/fd/{descriptor}", "r+b") as again:
            if file_lock.try_lock(again.fileno()):
                return problem("locks", "two processes can hold the same file lock", _ELSEWHERE)
    except OSError as error:
        return problem("locks", f"file locks do not work ({error.strerror})", _ELSEWHERE)
    return ok("locks", "file locks work")


def _clock(file: IO[bytes]) -> Finding:
    file.write(b"what time is it?")
    file.flush()
    os.fsync(file.fileno())
    now = time.time()
    skew = os.fstat(file.fileno()).st_mtime - now
    if now < _EARLIEST_S:
        return note(
            "clock",
            f"this machine's clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}: "
            f"the hub's certificates are rejected",
            "Set the clock (timedatectl set-ntp true).",
        )
    if abs(skew) > _MOST_SKEW_S:
        return note(
            "clock",
            f"timestamps of new files differ by {skew:+.0f} s from this machine's clock",
            "Set the clocks of both machines (timedatectl set-ntp true).",
        )
    return ok("clock", "timestamps of new files agree with this machine's clock")


def check_network(wanted: Wanted) -> Iterator[Finding]:
    """Yield which proxies apply, and which processes listen on the ports that emberd uses."""
    yield from _proxies(wanted)
    for port in dict.fromkeys((wanted.options.port, DEFAULT_PORT)):
        if port is not None:
            yield _port(wanted, port)


def _proxies(wanted: Wanted) -> Iterator[Finding]:
    set_ones = urllib.request.getproxies_environment()
    # Only host and port: the URL of a proxy may contain a user name and a password.
    shown = [
        f"{scheme.upper()}_PROXY={host(set_ones[scheme])}"
        for scheme in ("http", "https", "all")
        if scheme in set_ones
    ]
    if not shown:
        yield ok("proxy", "no proxy is set")
        return
    if "no" in set_ones:
        shown.append(f"NO_PROXY={set_ones['no']}")
    yield ok("proxy", f"{', '.join(shown)} (not used for loopback)")
    for url in filter(None, (wanted.base_url, *wanted.places.discover)):
        parts = urlsplit(url)
        name = parts.hostname or ""
        proxy = set_ones.get(parts.scheme) or set_ones.get("all")
        if proxy and not probe.is_loopback(url) and not urllib.request.proxy_bypass(name):
            yield note(
                "proxy",
                f"requests to {host(url)} go through the proxy {host(proxy)}",
                f"If it is in your network: export NO_PROXY={name}",
            )


def _port(wanted: Wanted, port: int) -> Finding:
    name, url = f"port {port}", f"http://127.0.0.1:{port}"
    try:
        listener = listeners.find(url)
    except OSError as error:
        return note(
            name,
            f"cannot tell what listens there: the listening sockets cannot be read ({error})",
            "Allow sock_diag (netlink) or /proc/net/tcp in this sandbox: without it, emberd uses "
            "no server on this machine.",
        )
    if listener is None:
        return ok(name, "nothing listens there")
    fact = f"a process of user {listener.uid} listens there"
    if port == wanted.options.port:
        variable = env.start_option_variable("port", wanted.spec.task)
        return problem(
            name,
            f"{fact}, but {variable} assigns the port to emberd's server",
            f"Set another port, or unset {variable} to use any free port.",
        )
    if listener.is_trusted:
        return ok(name, f"{fact}; see servers")
    return note(
        name,
        f"{fact}; ignored, because the listener belongs to another user",
        f"If you trust it: export {env.setting_variable('base_url', wanted.spec.task)}={url}",
    )
