"""Kubernetes' rolling update of the gateway, with its probes, its hook and its order of steps.

The kernel's part of a Service is a small switch here: each new connection goes to one of the pods
that are ready, and an open connection stays where it is. As in a cluster, the switch learns late
that a pod is being deleted. Seconds of the manifest are shortened; their order is kept.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from deploy import gateway_process, manifests
from deploy.gateway_process import Placed
from deploy.load import Load
from deploy.manifests import BASE, Entry
from fake_server import QWEN, FakeServer
from ports import free_port

HOST: Final = "embeddings"  # the name of the Service
_LATE_S: Final = 0.5  # how long the switch still sends connections to a pod that is being deleted
_SHORTER: Final = 0.1  # what becomes of a second of the manifest


class Switch:
    """Passes each new connection on to one of the pods that it knows, in turn."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._pods: list[int] = []
        self._turn = itertools.count()
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def use(self, *ports: int) -> None:
        """Send new connections to these ports from now on."""
        self._pods = list(ports)

    def close(self) -> None:
        """Close the listener and all connections."""
        for each in (self._listener, *self._open):
            # Wakes up the threads that wait for it, which close does not.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self._open.append(client)
                pods = self._pods
                try:
                    pod = socket.create_connection(
                        ("127.0.0.1", pods[next(self._turn) % len(pods)])
                    )
                except OSError:  # a closed port: the client sees a reset
                    client.close()
                    continue
                self._open.append(pod)
                for ends in ((client, pod), (pod, client)):
                    threading.Thread(target=_pass, args=ends, daemon=True).start()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as running:
        running.latency_s = 0.2
        yield running


@pytest.fixture
def switch() -> Iterator[Switch]:
    running = Switch()
    yield running
    running.close()


class Pods:
    """The pods of a Deployment, which replaces them one after the other."""

    def __init__(self, entry: Entry, folder: Path, switch: Switch, server: FakeServer) -> None:
        self._entry = entry
        self._folder = folder
        self._switch = switch
        self._more = {"EMBERD_MODEL": QWEN, "EMBERD_BASE_URL": server.url}
        self._stack = contextlib.ExitStack()
        self._running: list[tuple[Placed, subprocess.Popen[Any]]] = []

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def key(self) -> str:
        return self._running[0][0].key

    def add(self) -> None:
        """Start a pod, and send connections to it once its readiness probe succeeds."""
        port = free_port()
        placed = Placed(self._entry, self._folder / str(port), port, self._more)
        ready = self._entry.probes["readiness"]
        process = self._stack.enter_context(gateway_process.running(placed, ready))
        self._running.append((placed, process))
        self._announce()

    def delete_oldest(self, *, with_hook: bool = True) -> int:
        """Delete a pod: the Service learns it, the hook runs, SIGTERM follows."""
        placed, process = self._running.pop(0)
        removal = threading.Timer(_LATE_S, self._announce)
        removal.start()
        if with_hook:
            program, seconds = self._entry.before_stop
            pause_s = float(seconds) * _SHORTER
            assert pause_s > _LATE_S
            subprocess.run([program, str(pause_s)], check=True)
        code = gateway_process.stop(placed, process)
        removal.join()
        return code

    def _announce(self) -> None:
        self._switch.use(*(placed.port for placed, _ in self._running))


def test_a_rolling_update_under_load_loses_no_request(
    tmp_path: Path, switch: Switch, server: FakeServer
) -> None:
    workload = manifests.named(BASE, "Deployment", "emberd")["spec"]
    replicas = workload["replicas"]
    assert workload["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    with Pods(manifests.of_kubernetes(BASE), tmp_path, switch, server) as pods:
        for _ in range(replicas):
            pods.add()
        with Load(switch.url, pods.key, HOST) as load:
            for _ in range(replicas):
                assert pods.delete_oldest() == 0
                load.goes_on()
                pods.add()
                load.goes_on()
            assert load.failures == []
            # What the hook is for: connections still arrive when the gateway listens no more.
            assert pods.delete_oldest(with_hook=False) == 0
            load.goes_on()
    assert load.failures
