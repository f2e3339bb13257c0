"""Servers that somebody else started on this machine, or that the user listed.

Candidates only: whether one serves the wanted model is seen by asking it. None of them is ever
stopped, and none is given a key of ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from emberd import engines
from emberd.system import listeners, processes

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
