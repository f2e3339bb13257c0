"""Who listens at an address, by tables of the kernel's and by real sockets."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psutil
import pytest

from emberd.manager import sockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads tables of Linux")

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


def _line(address: str, user: int, port: int = 30_000, state: str = _LISTENS) -> str:
    return (
        f"   0: {address}:{port:04X} 00000000:0000 {state} 0:0 00:0 0        {user}        0 1 1\n"
    )


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table in the place of the kernel's."""
    path = tmp_path / "tcp"
    monkeypatch.setattr(sockets, "TABLES", (path, tmp_path / "none"))
    return path


@pytest.mark.parametrize(
    ("lines", "users"),
    [
        ([_line(_LOOPBACK, ME)], {ME}),
        ([_line(_ANY, 0)], {0}),  # as Docker publishes a port
        ([_line(_ANY_6, OTHER)], {OTHER}),
        ([_line(_MAPPED, OTHER)], {OTHER}),
        ([_line(_NETWORK, 0)], set()),
        ([_line(_LOOPBACK_6, ME)], set()),
        ([_line(_LOOPBACK, ME, port=30_001)], set()),
        ([_line(_LOOPBACK, ME, state=_ESTABLISHED)], set()),
        ([_line(_NETWORK, 0), _line(_LOOPBACK, OTHER)], {OTHER}),
        ([_line(_ANY, ME), _line(_LOOPBACK, OTHER)], {ME, OTHER}),
        ([], set()),
    ],
)
def test_the_owners_are_those_whom_a_connection_may_reach(
    table: Path, lines: list[str], users: set[int]
) -> None:
    table.write_text(_HEAD + "".join(lines))
    assert sockets.owners(URL) == users
    assert sockets.is_trusted(URL) == (bool(users) and users <= {0, ME})


def test_another_user_on_the_loopback_is_not_trusted_for_roots_socket_on_the_network(
    table: Path,
) -> None:
    table.write_text(_HEAD + _line(_NETWORK, 0) + _line(_LOOPBACK, OTHER))
    assert not sockets.is_trusted(URL)
    assert sockets.is_trusted("http://192.168.1.5:30000")


@pytest.mark.parametrize(
    "url", ["http://gpu-box:30000", "http://127.0.0.1", "http://10.0.0.7:30000"]
)
def test_a_place_that_is_no_address_and_port_of_ours_is_not_trusted(table: Path, url: str) -> None:
    table.write_text(_HEAD + _line(_LOOPBACK, ME))
    assert sockets.owners(url) == set()


@pytest.mark.parametrize(
    ("family", "at"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_a_socket_of_our_own_is_seen(family: socket.AddressFamily, at: str) -> None:
    with socket.create_server((at, 0), family=family) as server:
        port = server.getsockname()[1]
        url = f"http://{at}:{port}" if family is socket.AF_INET else f"http://[{at}]:{port}"
        assert sockets.owners(url) == {ME}
        process = sockets.listener(url)
        assert process is not None
        assert process.pid == os.getpid()
        found = sockets.listening(psutil.Process())
        assert port in [where for address, where in found if str(address) == at]


def test_localhost_is_the_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert sockets.is_trusted(f"http://localhost:{server.getsockname()[1]}")


def test_nobody_listens_at_a_closed_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert sockets.owners(url) == set()
    assert sockets.listener(url) is None
