"""Who listens at an address of this machine: its users, its process, and since when that runs.

A port alone is not enough: another user may listen on 127.0.0.1 where somebody trusted listens on
the same port of the network's address.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import psutil

Address = IPv4Address | IPv6Address

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

_ROOT: Final = 0
_LISTENING: Final = "0A"
_WORD_DIGITS: Final = 8
_LOCAL: Final = "localhost"


def is_trusted(url: str) -> bool:
    """Return whether all who may answer at a URL of this machine are this user or root."""
    users = owners(url)
    return bool(users) and users <= {_ROOT, os.geteuid()}


def owners(url: str) -> set[int]:
    """Return the user ids of all sockets that connections to ``url`` may reach.

    Returns:
        Empty when nobody listens, who does is not to be seen, or it is no address of ours.
    """
    place = _place(url)
    if place is None:
        return set()
    if sys.platform != "linux":
        process = listener(url)
        return set() if process is None else {process.uids().real}
    return {user for at, port, user in _table() if port == place[1] and _reaches(place[0], at)}


def listener(url: str) -> psutil.Process | None:
    """Return the process that listens at a URL of this machine; None when it cannot be seen.

    The processes of other users cannot, such as the one by which Docker publishes a port.
    """
    import psutil

    place = _place(url)
    if place is None:
        return None
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and _listens(process, *place):
                return process
    return None


def listening(process: psutil.Process) -> list[tuple[Address, int]]:
    """Return the addresses and ports at which a process listens; empty when not to be seen."""
    import psutil

    try:
        connections = process.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return []
    found = {c.laddr for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return sorted(((_plain(ip_address(at.ip)), at.port) for at in found), key=str)


def _listens(process: psutil.Process, address: Address, port: int) -> bool:
    return any(at == port and _reaches(address, here) for here, at in listening(process))


def _place(url: str) -> tuple[Address, int] | None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        address = ip_address("127.0.0.1" if host == _LOCAL else host)
        port = parts.port
    except ValueError:
        return None  # a name on the network, or no port at all
    return None if port is None else (_plain(address), port)


def _reaches(address: Address, listening_at: Address) -> bool:
    return listening_at == address or listening_at.is_unspecified


def _plain(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


def _table() -> Iterator[tuple[Address, int, int]]:
    """Yield address, port and user id of each listening socket, as the kernel lists them."""
    for table in TABLES:
        with suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                # Columns: 1 local address and port, 3 state, 7 user id.
                columns = line.split()
                address, _, port = columns[1].partition(":")
                if columns[3] == _LISTENING:
                    yield _read(address), int(port, 16), int(columns[7])


def _read(digits: str) -> Address:
    # Words of 32 bits, each in the machine's own order of bytes; the words in the network's.
    words = (digits[at : at + _WORD_DIGITS] for at in range(0, len(digits), _WORD_DIGITS))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return _plain(ip_address(packed))
