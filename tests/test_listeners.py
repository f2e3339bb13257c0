"""Which listening socket a connection reaches: from the kernel, its tables, and real sockets."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from emberd.system import listeners
from emberd.system.listeners import Listener, ListenerChangedError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")

ATTACKER = 64_202
# The queue of the listener is full, so its SYN stays unanswered until the client's crosses it.
_SIMULTANEOUS_OPEN = f"""
import os, socket, sys, time
os.setgid({ATTACKER}); os.setuid({ATTACKER})
def bound():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", 0)); return s
full, taken = bound(), bound()
full.listen(0)
fill = [socket.socket() for _ in range(4)]
for s in fill:
    s.setblocking(False); s.connect_ex(full.getsockname())
time.sleep(0.2)
print(taken.getsockname()[1], full.getsockname()[1], flush=True)
sys.stdin.readline()
taken.setblocking(False); taken.connect_ex(full.getsockname())
for s in (*fill, full):
    s.close()
print("waiting", flush=True)
sys.stdin.read()
"""

ME = os.geteuid()
OTHER = ME + 1
URL = "http://127.0.0.1:30000"

_HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
_LOOPBACK = "0100007F"
_ANY = "00000000"
_NETWORK = "0501A8C0"  # 192.168.1.5
_ANY_6 = "0" * 32
_MAPPED = "0000000000000000FFFF00000100007F"  # ::ffff:127.0.0.1
_LOOPBACK_6 = "00000000000000000000000001000000"
_LISTENS = "0A"
_ESTABLISHED = "01"


def _line(
    address: str,
    user: int,
    port: int = 30_000,
    state: str = _LISTENS,
    peer: str = "00000000:0000",
    inode: int = 7,
) -> str:
    return f"   0: {address}:{port:04X} {peer} {state} 0:0 00:0 0   {user}     0 {inode} 1\n"


@pytest.fixture
def no_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel, or a sandbox, that has no netlink."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(listeners, "_ask_kernel", refuse)
    monkeypatch.setattr(listeners, "_has_netlink", lambda: False)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_netlink: None) -> Path:
    """A table in place of the kernel's."""
    path = tmp_path / "tcp"
    monkeypatch.setattr(listeners, "TABLES", (path, tmp_path / "none"))
    return path


@pytest.fixture(params=["netlink", "tables"])
def either_way(request: pytest.FixtureRequest) -> None:
    """Through netlink, and without it."""
    if request.param == "tables":
        request.getfixturevalue("no_netlink")


@pytest.mark.parametrize(
    ("lines", "user"),
    [
        ([_line(_LOOPBACK, ME)], ME),
        ([_line(_ANY, 0)], 0),  # as Docker publishes a port
        ([_line(_ANY_6, OTHER)], OTHER),
        ([_line(_MAPPED, OTHER)], OTHER),
        ([_line(_NETWORK, 0)], None),
        ([_line(_LOOPBACK_6, ME)], None),
        ([_line(_LOOPBACK, ME, port=30_001)], None),
        ([_line(_LOOPBACK, ME, state=_ESTABLISHED)], None),
        ([_line(_NETWORK, 0), _line(_LOOPBACK, OTHER)], OTHER),
        ([_line(_ANY, ME), _line(_LOOPBACK, OTHER)], OTHER),
        ([_line(_ANY_6, OTHER), _line(_ANY, ME)], ME),
        ([], None),
    ],
)
def test_the_table_gives_the_listener_that_a_connection_reaches(
    table: Path, lines: list[str], user: int | None
) -> None:
    table.write_text(_HEAD + "".join(lines))
    assert listeners.find(URL) == (None if user is None else Listener(user, inode=7))


def test_a_table_in_any_order_is_read_whole(table: Path) -> None:
    """gVisor lists sockets of all states among each other."""
    table.write_text(_HEAD + _line(_ANY, ME, state=_ESTABLISHED) + _line(_LOOPBACK, ME))
    assert listeners.find(URL) == Listener(ME, inode=7)


def test_a_listener_of_ipv4_does_not_take_connections_of_ipv6(table: Path) -> None:
    table.write_text(_HEAD + _line(_ANY, ME))
    assert listeners.find("http://[::1]:30000") is None


def test_where_the_listening_sockets_cannot_be_read_none_is_taken_for_gone(
    no_netlink: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "TABLES", (tmp_path / "none", tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        listeners.find(URL)
    # Another port: a test of SGLang that runs beside this one listens on 30000.
    assert listeners.process_at("http://127.0.0.1:1") is None
    assert listeners.is_there(URL, Listener(ME, inode=7))
    with pytest.raises(FileNotFoundError):
        listeners.find_at(ip_address("127.0.0.1"), 30_000)


def test_an_address_that_cannot_be_asked_for_does_not_hide_the_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a kernel without IPv6, whose names of this machine have an address of it."""
    asked = listeners.find_at
    both = [(0, 0, 0, "", ("::1", 0)), (0, 0, 0, "", ("127.0.0.1", 0))]

    def find_at(address: Any, port: int) -> Listener | None:
        if address.version == 6:
            raise OSError(errno.EINVAL, "no IPv6")
        return asked(address, port)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    monkeypatch.setattr(listeners, "find_at", find_at)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://localhost:{server.getsockname()[1]}"
        found = listeners.find(url)
        assert found is not None
        assert found.inode == os.fstat(server.fileno()).st_ino
    with pytest.raises(OSError, match="no IPv6"):
        listeners.find(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "192.168.1.5"])
def test_without_descriptors_a_server_is_not_taken_for_one_elsewhere(host: str) -> None:
    """Each look-up needs one: of the name, of the address, of the listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as server, _no_descriptors():
        # Of a name, modules of the C library such as nss-mdns may give another number of the error.
        what = "Too many open files" if host != "localhost" else None
        with pytest.raises(OSError, match=what):
            listeners.find(f"http://{host}:{server.getsockname()[1]}")


@contextmanager
def _no_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Those that are open stay open; no number above them is given.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize(
    "url",
    [
        "http://gpu-box:30000",
        "http://192.0.2.1:30000",
        "http://127.0.0.1:none",
        "http://127.0.0.1:99999",
        "ftp://127.0.0.1",
        "",
    ],
)
def test_what_is_not_an_address_of_this_machine_has_no_listener(table: Path, url: str) -> None:
    table.write_text(_HEAD + _line(_ANY, ME) + _line(_LOOPBACK, ME, port=99))
    assert listeners.find(url) is None


@pytest.mark.parametrize(
    ("bound", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.1"),
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "[::1]"),
        ("::", "127.0.0.1"),
        ("::", "[::1]"),
    ],
)
@pytest.mark.usefixtures("either_way")
def test_a_real_listener_is_found_with_its_owner_and_inode(bound: str, asked: str) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    if family is socket.AF_INET6 and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server((bound, 0), family=family, dualstack_ipv6=bound == "::") as server:
        port = server.getsockname()[1]
        found = listeners.find(f"http://{asked}:{port}")
        assert found == Listener(ME, inode=os.fstat(server.fileno()).st_ino)
        assert found.is_trusted
        assert listeners.is_held(found, [os.getppid(), os.getpid()])
        assert not listeners.is_held(found, [os.getppid()])
    assert listeners.find(f"http://{asked}:{port}") is None


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_the_name_of_this_machine_is_one_of_its_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        inode = os.fstat(server.fileno()).st_ino
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: here)
        assert listeners.find(f"http://gpu-box:{port}") == Listener(ME, inode=inode)


@pytest.mark.usefixtures("either_way")
def test_a_socket_that_is_bound_and_does_not_listen_is_no_listener() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listeners.find_at(ip_address("127.0.0.1"), bound.getsockname()[1]) is None


@pytest.fixture
def connected() -> Iterator[tuple[socket.socket, socket.socket, Listener]]:
    """A listening socket, a connection to it, and what is known of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = listeners.find(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert found is not None
        with socket.create_connection(server.getsockname()) as connection:
            yield server, connection, found


@pytest.mark.usefixtures("either_way")
def test_a_connection_to_the_verified_listener_passes(
    connected: tuple[socket.socket, socket.socket, Listener],
) -> None:
    _, connection, found = connected
    listeners.check(connection, found)


@pytest.mark.usefixtures("either_way")
def test_a_connection_to_another_socket_on_the_port_is_refused(
    connected: tuple[socket.socket, socket.socket, Listener],
) -> None:
    server, _, found = connected
    address = server.getsockname()
    server.close()
    with socket.create_server(address), socket.create_connection(address) as connection:
        with pytest.raises(ListenerChangedError):
            listeners.check(connection, found)


def test_a_connection_whose_listener_closed_is_refused(
    connected: tuple[socket.socket, socket.socket, Listener],
) -> None:
    server, connection, found = connected
    server.close()
    with pytest.raises(ListenerChangedError):
        listeners.check(connection, found)


def test_the_same_inode_of_another_user_is_another_listener(
    connected: tuple[socket.socket, socket.socket, Listener],
) -> None:
    _, connection, found = connected
    with pytest.raises(ListenerChangedError):
        listeners.check(connection, Listener(OTHER, found.inode))


@pytest.fixture(params=[True, False], ids=["all-mapped", "some-mapped"])
def all_mapped(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """A machine, or a user namespace, in which ``ME`` is the overflow user id."""
    mapped = tmp_path / "uid_map"
    mapped.write_text(f"         0 {0 if request.param else 100_000} 4294967295\n")
    monkeypatch.setattr(listeners, "_overflow_uid", lambda: ME)
    monkeypatch.setattr(listeners, "_UID_MAP", mapped)
    return bool(request.param)


def test_overflow_uid_identifies_a_user_only_where_all_users_are_mapped(all_mapped: bool) -> None:
    """Kubernetes' ``runAsUser: 65534`` is an ordinary user; in a user namespace it is anyone."""
    assert Listener(ME, inode=1).has_owner_of(Listener(ME, inode=2)) == all_mapped
    assert Listener(ME).is_trusted == all_mapped
    assert Listener(OTHER, inode=1).has_owner_of(Listener(OTHER, inode=2))
    assert not Listener(OTHER, inode=1).has_owner_of(Listener(ME, inode=2))


def test_kernel_without_user_namespaces_maps_all_users(all_mapped: bool, tmp_path: Path) -> None:
    (tmp_path / "uid_map").unlink()
    assert Listener(ME, inode=1).has_owner_of(Listener(ME, inode=2))


def test_unreadable_map_of_users_identifies_nobody(all_mapped: bool, tmp_path: Path) -> None:
    (tmp_path / "uid_map").unlink()
    (tmp_path / "uid_map").mkdir()
    assert not Listener(ME, inode=1).has_owner_of(Listener(ME, inode=2))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user of a process")
def test_user_65534_owns_its_own_listener() -> None:
    program = (
        "import os, socket\n"
        "from emberd.system import listeners\n"
        "listeners.find('http://127.0.0.1:1')\n"  # imports what that user may not read
        "os.setgid(65534); os.setuid(65534)\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "found = listeners.find(f'http://127.0.0.1:{server.getsockname()[1]}')\n"
        "print(found.is_trusted, found.has_owner_of(found))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.split() == ["True", "True"], ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.usefixtures("either_way")
def test_a_connection_that_another_user_took_by_a_simultaneous_open_is_refused() -> None:
    """Its socket was bound to the port before the server listened."""
    attacker = subprocess.Popen(
        [sys.executable, "-c", _SIMULTANEOUS_OPEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert attacker.stdin is not None
    assert attacker.stdout is not None
    try:
        port, from_port = map(int, attacker.stdout.readline().split())
        with socket.socket() as server, socket.socket() as client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", port))
            server.listen()
            found = listeners.find(f"http://127.0.0.1:{port}")
            assert found is not None
            attacker.stdin.write("connect\n")
            attacker.stdin.flush()
            assert attacker.stdout.readline() == "waiting\n"
            # The kernel's own choice of a port, narrowed to one (IP_LOCAL_PORT_RANGE).
            only = struct.pack("=I", from_port << 16 | from_port)
            client.setsockopt(socket.IPPROTO_IP, 51, only)
            client.settimeout(10)
            client.connect(("127.0.0.1", port))
            server.settimeout(0)
            with pytest.raises(BlockingIOError):
                server.accept()
            with pytest.raises(ListenerChangedError, match=str(ATTACKER)):
                listeners.check(client, replace(found, owner_accepts=True))
    finally:
        attacker.kill()
        attacker.communicate()


@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.usefixtures("either_way")
def test_the_servers_own_end_of_a_connection_passes(
    connected: tuple[socket.socket, socket.socket, Listener], accepted: bool
) -> None:
    server, connection, found = connected
    held = server.accept()[0] if accepted else None
    listeners.check(connection, replace(found, owner_accepts=True))
    if held is not None:
        held.close()


_CLIENT = ("127.0.0.1", 0x9C40)
_FROM = f"{_LOOPBACK}:9C40"


@pytest.mark.parametrize(
    ("end", "passes"),
    [
        (_line(_LOOPBACK, OTHER, state=_ESTABLISHED, peer=_FROM, inode=9), False),
        (_line(_MAPPED, OTHER, state=_ESTABLISHED, peer=f"{_MAPPED}:9C40", inode=9), False),
        (_line(_LOOPBACK, OTHER, state="08", peer=_FROM, inode=9), False),  # after the peer's end
        (_line(_LOOPBACK, ME, state=_ESTABLISHED, peer=_FROM, inode=9), True),
        (_line(_LOOPBACK, 0, state=_ESTABLISHED, peer=_FROM, inode=0), True),  # not accepted
        (_line(_LOOPBACK, OTHER, state=_ESTABLISHED, peer=f"{_LOOPBACK}:9C41", inode=9), True),
        ("", True),
    ],
)
def test_without_netlink_the_other_end_of_a_connection_is_read_from_the_table(
    table: Path, end: str, passes: bool
) -> None:
    table.write_text(_HEAD + end + _line(_LOOPBACK, ME))
    connection = _Connection(("127.0.0.1", 30_000), _CLIENT)
    expected = Listener(ME, inode=7, owner_accepts=True)
    with nullcontext() if passes else pytest.raises(ListenerChangedError, match=str(OTHER)):
        listeners.check(connection, expected)  # type: ignore[arg-type]


@dataclass
class _Connection:
    """What is asked of a connected socket."""

    peer: tuple[str, int]
    own: tuple[str, int]

    def getpeername(self) -> tuple[str, int]:
        return self.peer

    def getsockname(self) -> tuple[str, int]:
        return self.own


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (PermissionError(errno.EPERM, "not allowed"), True),
        (OSError(errno.EPROTONOSUPPORT, "no such protocol"), True),
        (TimeoutError("timed out"), False),
        (OSError(errno.EMFILE, "too many open files"), False),
        (OSError(errno.EPROTO, "a message of another sender"), False),
    ],
)
def test_only_a_definite_answer_of_netlink_is_kept(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kept: bool
) -> None:
    asked = []

    def refuse(*_: object) -> None:
        asked.append(1)
        raise error

    listeners._answers_netlink.cache_clear()
    monkeypatch.setattr(listeners, "_ask_kernel", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        found = [listeners.find(url) for _ in range(2)]
    assert found == [Listener(ME, inode=found[0].inode)] * 2 if found[0] else False
    assert len(asked) == (1 if kept else 2)
    listeners._answers_netlink.cache_clear()


def test_only_this_user_and_root_are_trusted() -> None:
    assert Listener(ME).is_trusted
    assert Listener(0).is_trusted
    assert not Listener(OTHER).is_trusted


def test_the_process_that_listens_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = listeners.process_at(f"http://127.0.0.1:{port}")
        assert process is not None
        assert process.pid == os.getpid()
        assert (ip_address("127.0.0.1"), port) in listeners.addresses_of(os.getpid())
    assert listeners.process_at(f"http://127.0.0.1:{port}") is None


def test_where_the_kernel_names_no_inode_the_owning_process_is_compared(
    connected: tuple[socket.socket, socket.socket, Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, connection, _ = connected
    monkeypatch.setattr(sys, "platform", "darwin")
    found = listeners.find(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert found == Listener(ME, pid=os.getpid())
    assert listeners.is_held(found, [os.getpid()])
    listeners.check(connection, found)
    with pytest.raises(ListenerChangedError):
        listeners.check(connection, Listener(ME, pid=os.getppid()))
