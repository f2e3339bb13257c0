"""Listening sockets of this machine: which one a connection reaches, and whose it is.

A port number proves nothing: when a server ends, any user may listen on its port. The kernel
reports an owner and an inode for each listening socket, and no other user can forge them. The
client that has verified a server keeps its ``Listener`` and compares it on each new connection,
before the first byte is sent. If that socket still listens, it also listened when the connection
was made, because two users cannot listen on the same address and port at once. One way past it
remains: a socket that was bound to the port before the server listened can connect to a client's
port while that client connects (TCP's simultaneous open). So the other end of the connection is
looked up as well; it must not have been opened by another user.

Linux answers through ``sock_diag`` (the lookup that the kernel makes for a packet, 0.05 to 0.2 ms
for any number of connections), or through ``/proc/net/tcp`` where netlink is not available. On
macOS the owning process is compared instead.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from emberd.system import bounded_http

if TYPE_CHECKING:
    import psutil

Address = IPv4Address | IPv6Address

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

_ROOT: Final = 0
_UID_MAP: Final = Path("/proc/self/uid_map")
_HTTP_PORTS: Final = {"http": 80, "https": 443}

# <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_TCP_LISTEN: Final = 10
_NO_COOKIE: Final = 0xFFFFFFFF
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI4s16s16sIII")
_REPLY: Final = struct.Struct("=BBBB48sIIIII")

_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
# What a kernel or a sandbox without netlink answers each time. Other errors, such as a lack of
# descriptors or no answer in time, say nothing about the next question.
_NO_NETLINK: Final = (
    *(errno.EACCES, errno.EAFNOSUPPORT, errno.ECONNREFUSED, errno.EINVAL, errno.ENOSYS),
    *(errno.EOPNOTSUPP, errno.EPERM, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT),
)

_IPV4: Final = 4
_WORD_DIGITS: Final = 8
_LISTENING: Final = "0A"


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket.

    Attributes:
        uid: User id of its owner.
        inode: Its inode number on Linux; 0 elsewhere.
        pid: The process that listens on macOS; 0 on Linux.
        owner_accepts: Whether connections to it are known to be accepted by its owner, as those to
            a server that emberd started are. A server of root may accept as another user.
    """

    uid: int
    inode: int = 0
    pid: int = 0
    owner_accepts: bool = field(default=False, compare=False)

    @property
    def is_trusted(self) -> bool:
        """Whether it is known to belong to this user or to root."""
        return self.uid in {_ROOT, os.geteuid()} and not _is_shared(self.uid)

    def has_owner_of(self, other: Listener) -> bool:
        """Return whether both are known to belong to one user."""
        return self.uid == other.uid and not _is_shared(self.uid)


class ListenerChangedError(ConnectionError):
    """Another socket than the verified one listens at the address; nothing was sent."""


def find(url: str) -> Listener | None:
    """Return the listener that connections to ``url`` reach.

    Returns:
        None when nothing listens, or when the address is not one of this machine.

    Raises:
        OSError: The listening sockets cannot be read. A server that is there must not be taken for
            one that needs no check.
    """
    unread: OSError | None = None
    for address, port in _places(url):
        try:
            if (found := find_at(address, port)) is not None:
                return found
        except OSError as error:
            # A name may have two addresses, of which only one can be asked for.
            unread = unread or error
    if unread is not None:
        raise unread
    return None


def find_at(
    address: Address, port: int, pids: Callable[[], Iterable[int]] | None = None
) -> Listener | None:
    """Return the listener that connections to an address of this machine reach; None if none is.

    Args:
        address: An address of this machine.
        port: The port.
        pids: Returns the processes to look at on macOS; None for all of this user's.

    Raises:
        OSError: The listening sockets cannot be read.
    """
    if sys.platform == "linux":
        return _look_up(address, port)
    import psutil

    process = _process_at(address, port, pids() if pids is not None else None)
    with suppress(psutil.Error):
        return Listener(process.uids().real, pid=process.pid) if process is not None else None
    return None


def is_here(url: str) -> bool:
    """Return whether ``url`` names an address of this machine."""
    return any(True for _ in _places(url))


def is_there(url: str, expected: Listener) -> bool:
    """Return whether ``expected`` still listens at ``url``; True if that cannot be read."""
    try:
        found = (find_at(address, port, lambda: [expected.pid]) for address, port in _places(url))
        return expected in found
    except OSError:
        return True


def check(connection: socket.socket, expected: Listener) -> None:
    """Check that a connection leads to ``expected``; call it before anything is sent.

    Raises:
        ListenerChangedError: It leads elsewhere, or the peer is gone.
        OSError: The listening sockets cannot be read.
    """
    try:
        there, here = connection.getpeername()[:2], connection.getsockname()[:2]
    except OSError as error:
        raise ListenerChangedError(f"the connection ended at once: {error.strerror}") from error
    address, port = _address(there[0]), there[1]
    found = find_at(address, port, lambda: [expected.pid]) if _is_here(address) else None
    if found != expected:
        holder = "nothing" if found is None else f"a socket of user {found.uid}"
        raise ListenerChangedError(
            f"port {port} is no longer held by the verified server: {holder} listens there now"
        )
    is_known = expected.owner_accepts or expected.uid != _ROOT
    if sys.platform == "linux" and is_known:
        other_end = _look_up(address, port, (_address(here[0]), here[1]))
        # Before it is accepted a connection has no inode.
        if other_end is not None and other_end.inode and other_end.uid != expected.uid:
            raise ListenerChangedError(
                f"the server on port {port} belongs to user {expected.uid}, and the connection was "
                f"taken by a socket of user {other_end.uid}. If the server accepts connections in "
                f"processes of another user, let them run as user {expected.uid}"
            )


def is_held(listener: Listener, pids: Collection[int]) -> bool:
    """Return whether one of these processes holds the listening socket.

    Raises:
        PermissionError: None of those whose descriptors may be read does, and others may not be.
    """
    if sys.platform != "linux":
        return listener.pid in pids
    wanted = f"socket:[{listener.inode}]"
    refused: PermissionError | None = None
    for pid in pids:
        try:
            if wanted in _descriptors(pid):
                return True
        except PermissionError as error:
            refused = error
    if refused is not None:
        raise refused
    return False


def addresses_of(pid: int) -> list[tuple[Address, int]]:
    """Return the addresses and ports at which a process listens; empty if not visible."""
    import psutil

    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return []
    found = {c.laddr for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return sorted(((_plain(ip_address(at.ip)), at.port) for at in found), key=str)


def process_at(url: str) -> psutil.Process | None:
    """Return the process that listens at a URL of this machine; None if it is not visible.

    Processes of other users are not, such as the one through which Docker publishes a port.
    """
    try:
        places = list(_places(url))
    except OSError:
        return None
    found = (_process_at(address, port) for address, port in places)
    return next((process for process in found if process is not None), None)


def _process_at(
    address: Address, port: int, pids: Iterable[int] | None = None
) -> psutil.Process | None:
    """Return the one of ``pids`` (None for all of this user's) that listens there."""
    import psutil

    for pid in psutil.pids() if pids is None else pids:
        with suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if pids is None and process.uids().real != os.getuid():
                continue
            for here, at in addresses_of(pid):
                if at == port and (here == address or here.is_unspecified):
                    return process
    return None


# ---------------------------------------------------------------- addresses


def _places(url: str) -> Iterator[tuple[Address, int]]:
    """Yield the addresses of this machine that ``url`` names, in the order of connecting.

    It raises OSError if they cannot be looked up for now.
    """
    parts = urlsplit(url)
    try:
        port = parts.port or _HTTP_PORTS.get(parts.scheme)
    except ValueError:
        return
    if port is None:
        return
    try:
        # Names too: that of this machine is often one of its loopback addresses.
        found = bounded_http.look_up(parts.hostname or "", None)
    except UnicodeError:
        return
    except socket.gaierror:
        # It may be known to a proxy. Without descriptors no name is known at all (glibc), and this
        # raises.
        socket.socket().close()
        return
    for address in [_address(str(each[4][0])) for each in found]:
        if _is_here(address):
            # Connecting to the unspecified address reaches this machine's loopback.
            loopback = ip_address("127.0.0.1" if address.version == _IPV4 else "::1")
            yield (loopback if address.is_unspecified else address), port


def _address(text: str) -> Address:
    return _plain(ip_address(text.partition("%")[0]))


def _is_here(address: Address) -> bool:
    if address.is_loopback or address.is_unspecified:
        return True
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))  # only an address of this machine can be bound
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:
            raise  # says nothing about the address
        return False
    return True


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.version == _IPV4 else socket.AF_INET6


def _plain(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


# ---------------------------------------------------------------- Linux


def _has_netlink() -> bool:
    """Return whether to ask the kernel through netlink; else its tables say the same, slower."""
    try:
        return _answers_netlink()
    except OSError:
        return False  # for this question: the next one tries again


@cache
def _answers_netlink() -> bool:
    """Return whether the kernel answers for our own socket that listens.

    A kernel without the module says "no such socket", and a sandbox may refuse the question. Where
    there is no definite answer, the OSError is raised, so that none is cached.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening_here:
        try:
            here, port = listening_here.getsockname()
            return _ask_kernel(_address(here), port) is not None
        except OSError as error:
            if error.errno in _NO_NETLINK:
                return False
            raise


@cache
def _overflow_uid() -> int:
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    return 65_534  # Linux' default


def _is_shared(uid: int) -> bool:
    """Return whether ``uid`` may stand for several users, so that it proves nothing.

    In a user namespace, the kernel reports all users that the namespace does not map under one
    number. Where each user has its own number, that number is an ordinary user (``nobody``).
    """
    if sys.platform != "linux" or uid != _overflow_uid():
        return False
    # A namespace can map no user that the one above it does not map: only the full map is complete.
    try:
        return _UID_MAP.read_text().split() != ["0", "0", "4294967295"]
    except FileNotFoundError:
        return not _UID_MAP.parent.exists()  # with /proc: a kernel without user namespaces
    except OSError:
        return True


def _look_up(
    address: Address, port: int, client: tuple[Address, int] | None = None
) -> Listener | None:
    """Return the socket to which the kernel would give a packet.

    Args:
        address: The server's address.
        port: The server's port.
        client: Where the packet comes from: then the server's end of that connection is returned,
            with inode 0 before it is accepted. None for the socket that listens.

    Raises:
        OSError: Neither netlink nor the kernel's tables can be read.
    """
    if _has_netlink():
        return _ask_kernel(address, port, client)
    best: Listener | None = None
    for at, peer, is_listening, found in _read_tables(port):
        if client is not None:
            if not is_listening and at == address and peer == client:
                return found
        elif is_listening and at == address:
            return found
        elif is_listening and at.is_unspecified:
            # "::" takes IPv4 as well, unless IPv4 has its own listener.
            is_mapped = at.version != _IPV4 and best is None
            best = found if at.version == address.version or is_mapped else best
    return best


def _ask_kernel(
    address: Address, port: int, client: tuple[Address, int] | None = None
) -> Listener | None:
    """Like ``_look_up``, through netlink; raises OSError if that is not available, or refuses."""
    sender, from_port = client or (None, 0)
    body = _REQUEST.pack(
        *(_family(address), socket.IPPROTO_TCP, 0, 0, 0),
        struct.pack("!HH", port, from_port),
        *(address.packed, sender.packed if sender else b""),  # null bytes are added
        *(0, _NO_COOKIE, _NO_COOKIE),
    )
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as asked:
        asked.settimeout(1.0)
        asked.sendto(header + body, (0, 0))
        reply, (answered_by, _) = asked.recvfrom(4096)
    if answered_by != 0:
        raise OSError(errno.EPROTO, "a netlink message that is not the kernel's")
    message = _HEADER.unpack_from(reply)[1]
    if message == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", reply, _HEADER.size)
        if -code == errno.ENOENT:
            return None
        raise OSError(-code, os.strerror(-code))
    _, state, *_, uid, inode = _REPLY.unpack_from(reply, _HEADER.size)
    return Listener(uid, inode) if client is not None or state == _TCP_LISTEN else None


def _read_tables(port: int) -> Iterator[tuple[Address, tuple[Address, int], bool, Listener]]:
    """Yield address, peer, whether it listens, and owner of each socket on a port, IPv4 first."""
    for table in TABLES:
        # The second is missing where there is no IPv6.
        missing = (FileNotFoundError,) if table != TABLES[0] else ()
        with suppress(*missing), table.open() as file:
            next(file, None)
            for line in file:
                # Columns: 1 local address and port, 2 the peer's, 3 state, 7 user id, 9 inode.
                columns = line.split()
                if int(columns[1].partition(":")[2], 16) == port:
                    (at, _), peer = map(_read_place, columns[1:3])
                    owner = Listener(int(columns[7]), int(columns[9]))
                    yield at, peer, columns[3] == _LISTENING, owner


def _read_place(text: str) -> tuple[Address, int]:
    digits, _, port = text.partition(":")
    # Words of 32 bits, each in the machine's own byte order; the words in the network's.
    words = (digits[at : at + _WORD_DIGITS] for at in range(0, len(digits), _WORD_DIGITS))
    packed = b"".join(int(word, 16).to_bytes(4, sys.byteorder) for word in words)
    return _plain(ip_address(packed)), int(port, 16)


def _descriptors(pid: int) -> set[str]:
    """Return what a process has open; empty once it has ended. May raise PermissionError."""
    folder = f"/proc/{pid}/fd"
    found = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):
                found.add(os.readlink(f"{folder}/{name}"))
    return found
