"""Servers that somebody else started on this machine, or that the user listed.

Candidates only: whether one serves the wanted model is seen by asking it. None of them is ever
stopped, and none is given a key of ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from emberd import engines, surface
from emberd.manager import process
from emberd.settings import ServerSpec

if TYPE_CHECKING:
    import psutil

DEFAULT_PORT: Final = 30_000
"""Where SGLang listens when nobody says otherwise."""

_ROOT: Final = 0
_LISTENING: Final = "0A"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A place where a server may be.

    Attributes:
        url: Its root.
        why: How it came to be looked at, for people.
        api_key: A key of the user's that may be shown to it.
        engine: Name of the kind of server, where its process told it.
    """

    url: str
    why: str
    api_key: str | None = None
    engine: str | None = None


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


def contradiction(candidate: Candidate, spec: ServerSpec, api_key: str | None) -> str | None:
    """Return why a server does not have the pinned revision or number format; None if it has.

    What is pinned must be seen: a server that does not tell is not taken on trust.
    """
    pinned = {"revision": spec.revision, "dtype": spec.dtype, "quantization": spec.quantization}
    wanted = {name: value for name, value in pinned.items() if value is not None}
    if not wanted:
        return None
    reply = surface.get(candidate.url, "/server_info", api_key)
    told: Any = reply.json() if reply is not None else None
    for name, value in wanted.items():
        have = told.get(name) if isinstance(told, dict) else None
        if have != value:
            return f"{name} {value} is wanted, and the server says {have or 'nothing about it'}"
    return None


def socket_owner(port: int) -> int | None:
    """Return the user id of whoever listens on the loopback port; None when not to be seen."""
    if sys.platform != "linux":
        return _owner_elsewhere(port)
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                # Columns of the kernel's table: 1 local address:port, 3 state, 7 user id.
                columns = line.split()
                if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == port:
                    return int(columns[7])
    return None


def is_trusted(url: str) -> bool:
    """Return whether whoever listens at a loopback URL is this user or root."""
    return socket_owner(urlsplit(url).port or 0) in (_ROOT, os.geteuid())


def _all(listed: tuple[str, ...], api_key: str | None) -> Iterator[Candidate]:
    for url in listed:
        yield Candidate(url, "EMBERD_DISCOVER lists it", api_key)
    yield from _processes()
    url = f"http://127.0.0.1:{DEFAULT_PORT}"
    if is_trusted(url):
        yield Candidate(url, f"port {DEFAULT_PORT} is open")


def _processes() -> Iterator[Candidate]:
    import psutil

    kinds = [engines.load(name) for name in engines.NAMES]
    for found in psutil.process_iter(["cmdline"]):
        command = found.info["cmdline"] or []
        kind = next((engine for engine in kinds if engine.recognises(command)), None)
        if kind is not None and _is_strangers(found):
            for port in _ports(found):
                yield Candidate(
                    f"http://127.0.0.1:{port}",
                    f"process {found.pid} is a {kind.name} server",
                    engine=kind.name,
                )


def _is_strangers(found: psutil.Process) -> bool:
    import psutil

    try:
        # A server that bears our mark has a keeper and a key; its record is the way to it.
        return found.uids().real == os.getuid() and process.MARK not in found.environ()
    except (psutil.Error, OSError):
        return False


def _ports(found: psutil.Process) -> list[int]:
    import psutil

    try:
        connections = found.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return []
    listening = (c.laddr for c in connections if c.status == psutil.CONN_LISTEN)
    return sorted({address.port for address in listening if address})


def _owner_elsewhere(port: int) -> int | None:
    import psutil

    with suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            address = connection.laddr if connection.status == psutil.CONN_LISTEN else ()
            if address and address.port == port and connection.pid:
                return psutil.Process(connection.pid).uids().real
    return None
