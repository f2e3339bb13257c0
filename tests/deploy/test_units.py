"""The user units: a restart of the service loses no request, because systemd keeps the sockets."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path
from typing import Any

from deploy import gateway_process, manifests
from deploy.gateway_process import Placed
from deploy.load import Load
from fake_server import QWEN, FakeServer

SOCKET = manifests.unit("emberd-serve.socket")


def test_a_restart_under_load_loses_no_request(tmp_path: Path) -> None:
    """``systemctl restart``: SIGTERM, the end, and the next start on the same sockets."""
    path, address = SOCKET["ListenStream"]
    assert (path, address) == ("%t/emberd.sock", "127.0.0.1:7475")
    with (
        FakeServer(model=QWEN, dimensions=1024) as server,
        socket.create_server(("127.0.0.1", 0), backlog=int(SOCKET["Backlog"][0])) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        server.latency_s = 0.2
        unix.bind(str(tmp_path / "emberd.sock"))
        unix.listen()
        more = {
            "EMBERD_HOME": str(tmp_path / "state"),
            "EMBERD_MODEL": QWEN,
            "EMBERD_BASE_URL": server.url,
            "EMBERD_SERVE_KEY": "key",
        }
        placed = Placed(manifests.of_systemd(), tmp_path, tcp.getsockname()[1], more)
        command = placed.command[:-2]  # the port is that of the socket

        with contextlib.ExitStack() as stack:

            def start() -> subprocess.Popen[Any]:
                process = gateway_process.start_activated(
                    command, [unix, tcp], env=placed.environment
                )
                stack.callback(process.wait, 20)
                stack.callback(process.kill)
                return process

            first = start()
            with Load(placed.url, "key", "localhost") as load:
                assert gateway_process.stop(placed, first) == 0
                second = start()
                load.goes_on()
            assert gateway_process.stop(placed, second) == 0
    assert load.failures == []
