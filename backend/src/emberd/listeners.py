"""Listening sockets of this machine: which one a connection reaches, and whose it is.

A port number proves nothing: when a server ends, any user may listen on its port. The kernel
reports an owner and an inode for each listening socket, and no other user can forge them. The
client that has verified a server keeps its ``Listener`` and compares it on each new connection,
before the first byte is sent. If that socket still listens, it also listened when the connection
was made, because two users cannot listen on the same address and port at once.

Linux answers through ``sock_diag`` (the lookup that the kernel makes for a packet, about 0.05 ms
for any number of connections), or through ``/proc/net/tcp`` where netlink is not available. On
macOS the owning process is compared instead.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import psutil

Address = IPv4Address | IPv6Address

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

_ROOT: Final = 0
_HTTP_PORTS: Final = {"http": 80, "https": 443}

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_TCP_LISTEN: Final = 10
_NO_COOKIE: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI2s2s16s16sIII")
_REPLY: Final = struct.Struct("=BBBB48sIIIII")
_ERROR: Final = struct.Struct("=i")
_ADDRESS_BYTES: Final = 16
_REPLY_BYTES: Final = 4096
_NETLINK_S: Final = 1.0

_LISTENING: Final = "0A"
_WORD_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket.

    Attributes:
        uid: User id of its owner.
        inode: Its inode number on Linux; 0 elsewhere.
        pid: The process that listens on macOS; 0 on Linux.
    """

    uid: int
    inode: int = 0
    pid: int = 0

    @property
    def is_trusted(self) -> bool:
        """Whether it belongs to this user or to root."""
        return self.uid in {_ROOT, os.geteuid()}


class ListenerChangedError(ConnectionError):
    """Another socket than the verified one listens at the address; nothing was sent."""


def find(url: str) -> Listener | None:
    """Return the listener that connections to ``url`` reach.

    Returns:
        None when nothing listens, or when the address is not one of this machine.
    """
    for address, port in _places(url):
        if (found := find_at(address, port)) is not None:
            return found
    return None


def find_at(address: Address, port: int) -> Listener | None:
    """Return the listener that connections to an address of this machine reach, or None."""
    if sys.platform == "linux":
        with suppress(OSError):
            if (found := _ask_kernel(address, port)) is not None:
                return found
        # A kernel without the module says "no such socket" too, so that answer is not the last.
        return _look_up(address, port)
    return _find_process(address, port)


def check(connection: socket.socket, expected: Listener) -> None:
    """Check that a connection leads to ``expected``; call it before anything is sent.

    Raises:
        ListenerChangedError: It does not, or the peer is gone.
    """
    try:
        host, port = connection.getpeername()[:2]
    except OSError as error:
        raise ListenerChangedError(f"the connection ended at once: {error.strerror}") from error
    address = _plain(ip_address(host.partition("%")[0]))
    if sys.platform == "linux":
        found = find_at(address, port)
    else:
        found = _listener_of(expected.pid, address, port)
    if found != expected:
        holder = "nothing listens" if found is None else f"a socket of user {found.uid} listens"
        raise ListenerChangedError(
            f"{holder} on port {port} now, and not the server that was verified"
        )


def is_held(listener: Listener, pids: Collection[int]) -> bool:
    """Return whether one of these processes holds the listening socket."""
    if sys.platform != "linux":
        return listener.pid in pids
    wanted = f"socket:[{listener.inode}]"
    return any(wanted in _descriptors(pid) for pid in pids)


def listening(process: psutil.Process) -> list[tuple[Address, int]]:
    """Return the addresses and ports at which a process listens; empty when not visible."""
    import psutil

    try:
        connections = process.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return []
    found = {c.laddr for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return sorted(((_plain(ip_address(at.ip)), at.port) for at in found), key=str)


def process_at(url: str) -> psutil.Process | None:
    """Return the process that listens at a URL of this machine; None when it is not visible.

    Processes of other users are not, such as the one through which Docker publishes a port.
    """
    import psutil

    for address, port in _places(url):
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.uids().real == os.getuid() and _listens(process, address, port):
                    return process
    return None


# ---------------------------------------------------------------- addresses


def _places(url: str) -> Iterator[tuple[Address, int]]:
    """Yield the addresses of this machine that ``url`` names, in the order of connecting."""
    parts = urlsplit(url)
    try:
        port = parts.port or _HTTP_PORTS.get(parts.scheme)
    except ValueError:
        return
    if port is None:
        return
    for address in _addresses(parts.hostname or ""):
        if _is_here(address):
            # Connecting to the unspecified address reaches this machine's loopback.
            yield (_loopback(address) if address.is_unspecified else address), port


def _addresses(host: str) -> Iterator[Address]:
    bare = host.rstrip(".")
    with suppress(ValueError):
        yield _plain(ip_address(bare))
        return
    if bare == "localhost" or bare.endswith(".localhost"):
        with suppress(OSError):
            for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
                yield _plain(ip_address(str(found[4][0]).partition("%")[0]))
        return
    with suppress(OSError):  # 127.1 and the like, which ip_address does not read
        yield ip_address(socket.inet_aton(bare))


def _is_here(address: Address) -> bool:
    if address.is_loopback or address.is_unspecified:
        return True
    with suppress(OSError), socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
        probe.bind((str(address), 0))  # only an address of this machine can be bound
        return True
    return False


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6


def _loopback(address: Address) -> Address:
    return ip_address("127.0.0.1" if isinstance(address, IPv4Address) else "::1")


def _plain(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


# ---------------------------------------------------------------- Linux


def _ask_kernel(address: Address, port: int) -> Listener | None:
    """Return the socket that the kernel would give a new connection to.

    Raises:
        OSError: Netlink is not available, or refuses.
    """
    body = _REQUEST.pack(
        _family(address),
        socket.IPPROTO_TCP,
        0,
        0,
        1 << _TCP_LISTEN,
        port.to_bytes(2, "big"),
        bytes(2),
        address.packed.ljust(_ADDRESS_BYTES, b"\0"),
        bytes(_ADDRESS_BYTES),
        0,
        _NO_COOKIE,
        _NO_COOKIE,
    )
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as asked:
        asked.settimeout(_NETLINK_S)
        asked.sendto(header + body, (0, 0))
        reply, (sender, _) = asked.recvfrom(_REPLY_BYTES)
    if sender != 0:
        raise OSError(errno.EPROTO, "a netlink message that is not the kernel's")
    message = _HEADER.unpack_from(reply)[1]
    if message == _NLMSG_ERROR:
        (code,) = _ERROR.unpack_from(reply, _HEADER.size)
        if -code == errno.ENOENT:
            return None
        raise OSError(-code, os.strerror(-code))
    _, state, *_, uid, inode = _REPLY.unpack_from(reply, _HEADER.size)
    return Listener(uid, inode) if state == _TCP_LISTEN else None


def _look_up(address: Address, port: int) -> Listener | None:
    """Do as ``_ask_kernel``, in the kernel's tables."""
    best: Listener | None = None
    for at, listener in (found for table in TABLES for found in _read_table(table, port)):
        if at == address:
            return listener
        if at.is_unspecified and (best is None or at.version == address.version):
            best = listener
    return best


def _read_table(table: Path, port: int) -> Iterator[tuple[Address, Listener]]:
    """Yield what listens on ``port``: bound address, listener."""
    with suppress(OSError), table.open() as file:
        next(file, None)
        for line in file:
            # Columns: 1 local address and port, 3 state, 7 user id, 9 inode.
            columns = line.split()
            if columns[3] != _LISTENING:
                return  # listening sockets come first, before what may be thousands of others
            at, _, listening_on = columns[1].partition(":")
            if int(listening_on, 16) == port:
                yield _read_address(at), Listener(int(columns[7]), int(columns[9]))


def _read_address(digits: str) -> Address:
    # Words of 32 bits, each in the machine's own byte order; the words in the network's.
    words = (digits[at : at + _WORD_DIGITS] for at in range(0, len(digits), _WORD_DIGITS))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return _plain(ip_address(packed))


def _descriptors(pid: int) -> set[str]:
    folder = f"/proc/{pid}/fd"
    found = set()
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):
                found.add(os.readlink(f"{folder}/{name}"))
    return found


# ---------------------------------------------------------------- macOS


def _find_process(address: Address, port: int) -> Listener | None:
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and _listens(process, address, port):
                return Listener(process.uids().real, pid=process.pid)
    return None


def _listener_of(pid: int, address: Address, port: int) -> Listener | None:
    import psutil

    with suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if _listens(process, address, port):
            return Listener(process.uids().real, pid=pid)
    return None


def _listens(process: psutil.Process, address: Address, port: int) -> bool:
    return any(
        at == port and (here == address or here.is_unspecified) for here, at in listening(process)
    )
