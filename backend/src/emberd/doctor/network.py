"""Proxies between emberd and a server that it was given, and the ports that matter."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from emberd import probe
from emberd.doctor.findings import Finding, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.manager.discovery import DEFAULT_PORT
from emberd.system import listeners
from emberd.system.redaction import host

_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_EXCEPT: Final = "NO_PROXY"


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield what is sent through a proxy, and who has the ports that matter."""
    yield from _proxies(wanted)
    yield from _ports(wanted)


def _proxies(wanted: Wanted) -> Iterator[Finding]:
    # Host and port alone: a proxy's URL may hold a user's name and password.
    shown = [f"{name}={host(text)}" for name in _PROXIES if (text := _value(name))]
    if not shown:
        yield ok("proxy", "none is set")
        return
    if excepted := _value(_EXCEPT):
        shown.append(f"{_EXCEPT}={excepted}")
    yield ok("proxy", f"{', '.join(shown)} (never used for this machine itself)")
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
            f"If it is in your own network: export NO_PROXY={name}",
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
            f"it cannot be seen what listens there: the listening sockets cannot be read ({error})",
            "Allow sock_diag (netlink) or /proc/net/tcp in this sandbox: no server of this "
            "machine is used without.",
        )
    if listener is None:
        return ok(name, "nothing listens there")
    fact = f"a process of user {listener.uid} listens there"
    if port == wanted.options.port:
        return problem(
            name,
            f"{fact}, and a server of ours is to have it (EMBERD_PORT)",
            "Give another one, or none: then any that is free is taken.",
        )
    if listener.is_trusted:
        return ok(name, f"{fact}; what answers is among the servers")
    return note(
        name,
        f"{fact}: it is not used, because that user is neither you nor root",
        f"If you trust it: export EMBERD_BASE_URL={url}",
    )


def _is_excepted(name: str) -> bool:
    # Missing in the types: the proxies are an argument of the environment's own form.
    excepted = {"no": _value(_EXCEPT)}
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    return bool(bypass(name, excepted))


def _value(name: str) -> str:
    return os.environ.get(name.lower()) or os.environ.get(name, "")
