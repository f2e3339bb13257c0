"""A server does not end with its caller."""

from __future__ import annotations

import threading

from emberd.manager import Server
from emberd.verified_manager import Manager
from homes import Stub
from plain_client import embed


def test_a_server_outlives_the_thread_that_asked_for_it(manager: Manager, stub: Stub) -> None:
    """The kernel's death signal follows the thread that started a process, not its process."""
    servers: list[Server] = []
    asker = threading.Thread(target=lambda: servers.append(manager.ensure(stub())))
    asker.start()
    asker.join()
    (server,) = servers
    assert server.started
    assert embed(server, "hello").status_code == 200
    assert manager.ensure(stub()).start_id == server.start_id
