"""Servers: given, started by emberd and external ones; the state folder, proxies and ports."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from emberd import probe
from emberd.client.verify import verify
from emberd.doctor.engines import up_command
from emberd.doctor.findings import BoundedResult, Finding, gather, note, ok, problem, split
from emberd.doctor.host import Filesystem, filesystem_of, nearest_existing
from emberd.doctor.wanted import Wanted
from emberd.endpoint import Endpoint
from emberd.errors import AuthenticationError, EmberdError, StateFolderError
from emberd.manager import State, Timing, discovery, lost_records, paths, state
from emberd.manager.discovery import DEFAULT_PORT, Candidate
from emberd.manager.state import ServerSnapshot, ServerStatus
from emberd.system import listeners, processes
from emberd.system.redaction import host

_REQUEST_S: Final = 3.5
_SERVER_S: Final = 4.0
_SHOW_KEY: Final = "With its key: export EMBERD_API_KEY=KEY EMBERD_DISCOVER={}"
_GIVEN: Final = "base_url is given"


def check_servers(wanted: Wanted) -> Iterator[Finding]:
    """Yield the known servers and which of them serves the requested model."""
    deadline_s = time.monotonic() + _SERVER_S
    candidates = list(_candidates(wanted))
    # Concurrently: a server that hangs must not use up the time of the others.
    jobs = [partial(_asked, wanted, candidate) for candidate in candidates]
    outcomes = gather(jobs, _SERVER_S)
    found = [_other(wanted, *pair) for pair in zip(candidates, outcomes, strict=True)]
    for view in _views(wanted, deadline_s):
        found += _own(wanted, view)
    yield from found or [ok("servers", "no server is running")]


def _candidates(wanted: Wanted) -> Iterator[Candidate]:
    if wanted.base_url is not None:
        yield Candidate(wanted.base_url, _GIVEN, wanted.api_key)
    for candidate in discovery.candidates(wanted.places.discover, wanted.api_key):
        if candidate.url != wanted.base_url:
            yield candidate


def _asked(wanted: Wanted, candidate: Candidate) -> Endpoint:
    asks = partial(verify, timeout_s=_REQUEST_S)
    if candidate.why == _GIVEN:
        return asks(candidate.url, candidate.api_key, wanted.spec)
    # The same function as in ``ensure``, so that nothing is sent to a server that it would skip.
    return discovery.verify_candidate(
        candidate, wanted.spec, asks, first_answer_s=_REQUEST_S
    ).endpoint


def _other(wanted: Wanted, candidate: Candidate, outcome: BoundedResult[Endpoint]) -> Finding:
    if candidate.why == _GIVEN:
        return _given(wanted, candidate.url, outcome)
    name = f"{candidate.url} ({candidate.why})"
    if outcome.value is None:
        wants_key = isinstance(outcome.error, AuthenticationError) and not candidate.api_key
        fact, advice = split(_why(outcome, candidate.url))
        advice = _SHOW_KEY.format(candidate.url) if wants_key else advice
        return note("found", f"{name} is not used: {fact}", advice)
    fact = f"{name} serves {wanted.spec.model}: {_size(outcome.value)}"
    return ok("found", fact, gives=f"{fact}. emberd uses it and does not stop it")


def _given(wanted: Wanted, url: str, outcome: BoundedResult[Endpoint]) -> Finding:
    if outcome.value is None:
        fact, advice = split(_why(outcome, url))
        advice = advice or "Correct EMBERD_BASE_URL, or unset it: emberd then finds or starts one."
        return problem("base_url", fact, advice)
    fact = f"{url} serves {wanted.spec.model}: {_size(outcome.value)}"
    return ok("base_url", fact, gives=f"{fact}. emberd uses it and starts no server")


def _views(wanted: Wanted, deadline_s: float) -> Iterator[ServerSnapshot]:
    for folder in paths.Home(Path(os.path.realpath(wanted.home))).all_server_folders():
        with suppress(StateFolderError):  # reported by check_state
            yield state.settled_snapshot(folder, deadline_s, Timing().poll_s)


def _own(wanted: Wanted, view: ServerSnapshot) -> Iterator[Finding]:
    status = lost_records.server_status(view)
    if status is None:
        return
    if status.state is State.UNKNOWN:
        yield note("own", f"The server in {view.folder}: {status.detail}", "emberd stop")
        return
    where = f" at {status.url}" if status.url else ""
    detail = f" ({status.detail})" if status.detail else ""
    fact = f"{status.spec.model} is {status.state}{where}{detail}"
    if status.state is State.FAILED:
        yield note("own", fact, _after_failure(wanted, status))
    elif status.state is State.READY and not _answers(status):
        yield note("own", f"{fact}, but does not respond", _log(status))
    elif status.state is not State.ABSENT:
        serves = status.spec.key == wanted.spec.key and view.serves(wanted.spec)
        # An external server is only recorded here; it was verified above.
        serves = serves and status.origin == "own"
        yield ok("own", fact, gives=f"{fact}; emberd uses it" if serves else "")
    yield from _leftover(view)


def _answers(status: ServerStatus) -> bool:
    try:
        listener = discovery.listener_to_probe(status)
    except EmberdError:
        return False
    reply = probe.get(status.url or "", "/ready", timeout_s=_REQUEST_S, listener=listener)
    return reply is not None


def _after_failure(wanted: Wanted, status: ServerStatus) -> str:
    again = f"; then: {up_command(wanted)}" if status.spec.key == wanted.spec.key else ""
    return _log(status) + again


def _log(status: ServerStatus) -> str:
    return f"Read its log: {status.log_path}" if status.log_path else "emberd stop"


def _leftover(view: ServerSnapshot) -> Iterator[Finding]:
    left = [] if view.alive else [str(own.pid) for own in processes.marked(str(view.folder))]
    if left:
        yield note(
            "leftover",
            f"processes of a stopped server are still running: {', '.join(left)}",
            "emberd stop  (ends them; so does the next start)",
        )


def _why(outcome: BoundedResult[Endpoint], url: str) -> str:
    if outcome.late:
        return f"{url} did not respond within {_SERVER_S:g} s."
    if isinstance(outcome.error, EmberdError):
        return str(outcome.error)
    return f"{url} could not be verified: {type(outcome.error).__name__}."


def _size(endpoint: Endpoint) -> str:
    context = f", {endpoint.context_tokens} tokens" if endpoint.context_tokens else ""
    return f"{endpoint.dimensions} dimensions{context}"


_ELSEWHERE: Final = "Set EMBERD_HOME to your own folder on a local disk."
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MOST_SKEW_S: Final = 2.0
_OPEN_AGAIN: Final = "/proc/self/fd/{}"
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
    yield from _tried(under)
    own = paths.Home(Path(os.path.realpath(wanted.home)))
    needed = {own.machine, own.servers, *own.server_folders(wanted.spec.key)}
    for folder in sorted({*needed, *own.all_server_folders()}):
        yield from _private(folder, problem if folder in needed else note)


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


def _private(folder: Path, told: Callable[..., Finding]) -> Iterator[Finding]:
    try:
        paths.check_private(folder)
    except FileNotFoundError:
        return
    except StateFolderError as error:
        yield told("state folder", *split(str(error)))


def _tried(under: Filesystem) -> Iterator[Finding]:
    """Test locks and timestamps with an unnamed temporary file."""
    try:
        with tempfile.TemporaryFile(dir=nearest_existing(under.path)) as probe:
            yield _locks(probe)
            yield _clock(probe)
    except OSError as error:
        yield problem("home", f"{under.path} cannot be written ({error.strerror})", _ELSEWHERE)


def _locks(probe: IO[bytes]) -> Finding:
    try:
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_free_again(probe):
            return problem("locks", "two processes can hold the same file lock", _ELSEWHERE)
    except OSError as error:
        return problem("locks", f"file locks do not work ({error.strerror})", _ELSEWHERE)
    return ok("locks", "file locks work")


def _is_free_again(probe: IO[bytes]) -> bool:
    """Return whether a second open file description can take the lock too."""
    with contextlib.suppress(FileNotFoundError), _opened_again(probe) as again:
        try:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        return True
    return False


def _opened_again(probe: IO[bytes]) -> Any:
    # Only Linux has this path, which opens the file a second time.
    return open(_OPEN_AGAIN.format(probe.fileno()), "rb")


def _clock(probe: IO[bytes]) -> Finding:
    probe.write(b"what time is it?")
    probe.flush()
    os.fsync(probe.fileno())
    now = time.time()
    skew = os.fstat(probe.fileno()).st_mtime - now
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


_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_EXCEPT: Final = "NO_PROXY"


def check_network(wanted: Wanted) -> Iterator[Finding]:
    """Yield which proxies apply, and which processes listen on the ports that emberd uses."""
    yield from _proxies(wanted)
    yield from _ports(wanted)


def _proxies(wanted: Wanted) -> Iterator[Finding]:
    # Only host and port: the URL of a proxy may contain a user name and a password.
    shown = [f"{name}={host(text)}" for name in _PROXIES if (text := _value(name))]
    if not shown:
        yield ok("proxy", "no proxy is set")
        return
    if excepted := _value(_EXCEPT):
        shown.append(f"{_EXCEPT}={excepted}")
    yield ok("proxy", f"{', '.join(shown)} (not used for loopback)")
    for url in filter(None, (wanted.base_url, *wanted.places.discover)):
        yield from _between(url)


def _between(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    name = parts.hostname or ""
    proxy = _value(f"{parts.scheme.upper()}_PROXY") or _value("ALL_PROXY")
    if proxy and not probe.is_loopback(url) and not _is_excepted(name):
        yield note(
            "proxy",
            f"requests to {host(url)} go through the proxy {host(proxy)}",
            f"If it is in your network: export NO_PROXY={name}",
        )


def _ports(wanted: Wanted) -> Iterator[Finding]:
    for port in dict.fromkeys((wanted.options.port, DEFAULT_PORT)):
        if port is not None:
            yield _port(wanted, port)


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
        return problem(
            name,
            f"{fact}, but EMBERD_PORT assigns the port to emberd's server",
            "Set another port, or unset EMBERD_PORT to use any free port.",
        )
    if listener.is_trusted:
        return ok(name, f"{fact}; see servers")
    return note(
        name,
        f"{fact}; ignored, because the listener belongs to another user",
        f"If you trust it: export EMBERD_BASE_URL={url}",
    )


def _is_excepted(name: str) -> bool:
    # The type stubs lack the second parameter, a mapping of proxies.
    excepted = {"no": _value(_EXCEPT)}
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    return bool(bypass(name, excepted))


def _value(name: str) -> str:
    return os.environ.get(name.lower()) or os.environ.get(name, "")
