"""Ports of servers that are to be started, and what happens when another process takes one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import leftovers
from emberd.errors import StartError
from emberd.manager import ports
from emberd.settings import StartOptions
from emberd.system import listeners
from emberd.verified_manager import Manager
from homes import Starts, Stub


@pytest.fixture
def busy() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def _bind(port: int) -> None:
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        bound.listen()


def test_a_listening_port_cannot_be_taken_by_a_socket_with_the_same_options() -> None:
    with ports.listen(None) as opened, pytest.raises(OSError, match="in use"):
        _bind(opened.getsockname()[1])


def test_a_chosen_port_is_not_bound_and_not_one_that_the_kernel_gives_to_others() -> None:
    first, last = ports._ephemeral()
    for _ in range(50):
        port = ports.choose(None)
        assert not first <= port <= last
        _bind(port)


def test_where_the_kernel_gives_every_port_to_others_one_of_them_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = tmp_path / "range"
    everything.write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", everything)
    _bind(ports.choose(None))


def test_a_wanted_port_that_is_free_is_chosen(busy: int) -> None:
    with ports.listen(None) as opened:
        free = opened.getsockname()[1]
    assert ports.choose(free) == free
    with ports.listen(free) as opened:
        assert opened.getsockname()[1] == free


def test_a_wanted_port_that_is_in_use_is_an_error(busy: int) -> None:
    for get in (ports.listen, ports.choose):
        with pytest.raises(StartError, match=str(busy)):
            get(busy)


class Thief:
    """Takes the port on the command line of the first ``count`` servers of a home."""

    def __init__(self, home: Path, count: int) -> None:
        self.taken: list[socket.socket] = []
        self._home, self._count = home, count
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for opened in self.taken:
            opened.close()

    def _run(self) -> None:
        seen: set[int] = set()
        while len(self.taken) < self._count and not self._ended.wait(0.01):
            for process in leftovers.find([str(self._home)]):
                with suppress(psutil.Error, OSError):
                    words = process.cmdline()
                    port = int(words[words.index("--port") + 1]) if "--port" in words else 0
                    if port and port not in seen:
                        self.taken.append(socket.create_server(("127.0.0.1", port)))
                        seen.add(port)


@pytest.fixture
def thief(home: Path, request: pytest.FixtureRequest) -> Iterator[Thief]:
    thief = Thief(home, request.param)
    yield thief
    thief.close()


def _keys(home: Path, tmp_path: Path) -> list[str]:
    return [line.split()[1] for line in (tmp_path / "starts").read_text().splitlines()]


@pytest.mark.parametrize("thief", [1], indirect=True)
def test_a_port_taken_before_the_server_listens_is_left_with_its_key(
    manager: Manager, stub: Stub, starts: Starts, home: Path, tmp_path: Path, thief: Thief
) -> None:
    server = manager.ensure(stub(shows_port=1, start=0.5))
    assert starts() == 2
    assert listeners.find(server.endpoint.url) == server.endpoint.listener
    stolen, used = _keys(home, tmp_path)
    assert stolen != used == server.endpoint.api_key


@pytest.mark.parametrize("thief", [1], indirect=True)
def test_a_port_that_was_asked_for_and_taken_is_an_error_that_names_it(
    manager: Manager, stub: Stub, thief: Thief
) -> None:
    port = ports.choose(None)
    with pytest.raises(StartError, match=f"Port {port}"):
        manager.ensure(stub(shows_port=1, start=0.5), options=StartOptions(port=port))


def test_the_listener_in_the_record_is_held_by_the_server(
    manager: Manager, stub: Stub, home: Path
) -> None:
    endpoint = manager.ensure(stub()).endpoint
    held = [p for p in leftovers.find([str(home)]) if "server.py" in " ".join(p.cmdline())]
    assert endpoint.listener is not None
    assert listeners.is_held(endpoint.listener, [process.pid for process in held])


def test_a_server_without_its_listener_is_not_used(
    manager: Manager, stub: Stub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it died and another process took its port: the record still says that it is ready."""
    spec = stub()
    first = manager.ensure(spec)
    is_there = listeners.is_there

    def of_the_first_no_more(url: str, expected: listeners.Listener) -> bool:
        return expected != first.endpoint.listener and is_there(url, expected)

    monkeypatch.setattr(listeners, "is_there", of_the_first_no_more)
    second = manager.ensure(spec)
    assert second.start_id != first.start_id
    assert second.started


def test_a_server_whose_listener_was_missed_once_is_not_ended(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = stub()
    first = manager.ensure(spec)
    answers = iter([False])
    is_there = listeners.is_there
    monkeypatch.setattr(
        listeners, "is_there", lambda *place: next(answers, True) and is_there(*place)
    )
    assert manager.ensure(spec).start_id == first.start_id


def test_a_port_can_be_used_again_while_a_client_of_the_last_server_is_connected() -> None:
    first = ports.listen(None)
    port = first.getsockname()[1]
    first.close()
    # A port that was asked for, and not one from the kernel.
    with ports.listen(port) as listening:
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = listening.accept()
    accepted.close()  # as if killed: the client has not closed its end yet
    try:
        with ports.listen(port) as again:
            assert again.getsockname()[1] == port
            # While one listens, no other can.
            with pytest.raises(StartError):
                ports.listen(port)
    finally:
        client.close()
