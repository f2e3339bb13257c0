"""A fork after first use, while other threads of the parent are in the middle of a request."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import managed
from emberd.client import limits
from emberd.client.clients import AsyncClient, Client
from emberd.client.limits import CallSlots
from emberd.endpoint import Endpoint
from emberd.errors import EmberdError
from emberd.settings import Settings
from emberd.system import fork
from fake_server import MODEL, FakeServer, vectors_of

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform"),
    # Python 3.12 warns of a fork among threads, which is what is under test.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

SETTINGS = Settings.resolve(model=MODEL, batch_size=2, max_concurrency=3, timeout=20)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _in_child(work: Callable[[], Any], seconds: float = 30) -> Any:
    """Fork, run ``work`` in the child, and return what it gives; a hang is an error."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            os.write(writer, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    timer = threading.Timer(seconds, os.kill, (pid, 9))
    timer.start()
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    timer.cancel()
    assert status == 0, f"the child ended with {status}"
    return json.loads(said)


def _right(client: Client, name: str, rounds: int = 5) -> bool:
    for number in range(rounds):
        texts = [f"{name} {number} {i}" for i in range(12)]
        if not (client.embed(texts, "{text}") == vectors_of(texts)).all():
            return False
    return True


def test_parent_and_child_embed_at_once_and_get_their_own_vectors(server: FakeServer) -> None:
    client = Client(lambda: server.endpoint, SETTINGS)
    client.embed(["first use"], "{text}")
    stop = threading.Event()
    wrong: list[str] = []

    def keep_busy(name: str) -> None:
        while not stop.is_set():
            if not _right(client, name, rounds=1):
                wrong.append(name)

    threads = [threading.Thread(target=keep_busy, args=(f"parent {i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            assert _in_child(partial(_right, client, f"child {number}")) is True
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert _right(client, "parent afterwards")
    assert wrong == []
    client.close()


def test_a_child_may_have_children(server: FakeServer) -> None:
    client = Client(lambda: server.endpoint, SETTINGS)
    client.embed(["first use"], "{text}")

    def child() -> bool:
        return _right(client, "child", 1) and _in_child(lambda: _right(client, "grandchild", 1))

    assert _in_child(child) is True
    client.close()


class _Counted(fork.ForkAware):
    calls = 0

    def after_fork_in_child(self) -> None:
        self.calls += 1


def test_every_object_is_called_at_each_fork_of_a_forked_child(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[object] = []
    monkeypatch.setattr(fork._LOG, "exception", lambda *args: errors.append(args))
    client = Client(lambda: server.endpoint, SETTINGS)
    client.embed(["first use"], "{text}")
    counted = [_Counted() for _ in range(50)]
    for each in counted:
        fork.register(each)

    def grandchild() -> list[Any]:
        return [len(errors), *{each.calls for each in counted}]

    assert _in_child(lambda: _in_child(grandchild)) == [0, 2]
    client.close()


class _Failing(fork.ForkAware):
    def before_fork(self) -> None:
        raise OSError("closed")

    after_fork_in_parent = after_fork_in_child = before_fork


class _Recording(fork.ForkAware):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def before_fork(self) -> None:
        self.calls.append("before")

    def after_fork_in_parent(self) -> None:
        self.calls.append("parent")

    def after_fork_in_child(self) -> None:
        self.calls.append("child")


def test_an_object_that_fails_at_a_fork_does_not_keep_others_from_being_called() -> None:
    recording = [_Recording() for _ in range(50)]
    failing = [_Failing(), _Failing()]
    for each in (failing[0], *recording, failing[1]):
        fork.register(each)
    assert _in_child(lambda: [each.calls for each in recording]) == [["before", "child"]] * 50
    assert [each.calls for each in recording] == [["before", "parent"]] * 50


def test_a_child_holds_none_of_its_parents_connections(server: FakeServer) -> None:
    client = Client(lambda: server.endpoint, SETTINGS)
    client.embed([f"{i}" for i in range(20)], "{text}")
    mine = _connections(server.port)
    assert mine
    assert _in_child(lambda: _connections(server.port)) == []
    assert _connections(server.port) == mine
    assert _right(client, "parent")
    client.close()


def test_a_slot_that_another_thread_held_is_free_in_the_child() -> None:
    slot = CallSlots(limits.PROCESS_LIMITER, 1).acquire()

    def take() -> bool:
        CallSlots(limits.PROCESS_LIMITER, 1).acquire().release()
        return True

    with limits.PROCESS_LIMITER.changed:
        assert _in_child(take) is True
    slot.release()


def test_a_forked_process_of_multiprocessing_embeds(server: FakeServer) -> None:
    client = Client(lambda: server.endpoint, SETTINGS)
    client.embed(["first use"], "{text}")
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = context.Process(target=_exit_with, args=(client,))
        child.start()
    child.join(30)
    assert child.exitcode == 0
    client.close()


def _exit_with(client: Client) -> None:
    raise SystemExit(0 if _right(client, "multiprocessing") else 3)


def test_a_loop_in_the_child_gets_connections_of_its_own(server: FakeServer) -> None:
    async def resolve() -> Endpoint:
        return server.endpoint

    client = AsyncClient(resolve, SETTINGS)

    def right(name: str) -> bool:
        texts = [f"{name} {i}" for i in range(12)]
        return bool((asyncio.run(client.embed(texts, "{text}")) == vectors_of(texts)).all())

    used, forked = threading.Event(), threading.Event()
    results: list[bool] = []

    async def in_parent() -> None:
        texts = [f"parent {i}" for i in range(12)]
        for _ in range(2):
            vectors = await client.embed(texts, "{text}")
            results.append(bool((vectors == vectors_of(texts)).all()))
            used.set()
            await asyncio.to_thread(forked.wait)

    thread = threading.Thread(target=asyncio.run, args=(in_parent(),))
    thread.start()
    used.wait()
    mine = _connections(server.port)
    try:
        assert mine
        assert _in_child(lambda: (_connections(server.port), right("child"))) == [[], True]
        assert _connections(server.port) == mine
    finally:
        forked.set()
        thread.join()
    assert results == [True, True]


def _connections(port: int) -> list[str]:
    """Inodes of this process's sockets that are connected to the port."""
    connected = set()
    with open("/proc/self/net/tcp", encoding="ascii") as table:
        for line in table.readlines()[1:]:
            columns = line.split()
            if columns[2].endswith(f":{port:04X}"):
                connected.add(columns[9])
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the folder's own descriptor
            continue
    found = [link.removeprefix("socket:[").removesuffix("]") for link in links]
    return sorted(inode for inode in found if inode in connected)


def _hold_imports(entered: threading.Event, release: threading.Event, ended: list[bool]) -> None:
    """Do what a thread does that imports modules of ours."""
    with fork.no_fork():
        entered.set()
        release.wait(30)
        ended.append(True)


def _importable() -> bool:
    with fork.no_fork():
        return True


def test_a_fork_waits_for_an_import_of_another_thread() -> None:
    entered, release, ended = threading.Event(), threading.Event(), list[bool]()
    importing = threading.Thread(target=_hold_imports, args=(entered, release, ended))
    importing.start()
    entered.wait()
    timer = threading.Timer(0.5, release.set)
    timer.start()
    assert _in_child(lambda: [*ended, _importable()]) == [True, True]
    importing.join()
    timer.join()
    assert _in_child(_importable) is True


def test_a_child_forked_during_an_endless_import_gets_an_error_and_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fork, "_LONGEST_IMPORT_S", 0.1)
    entered, release = threading.Event(), threading.Event()
    importing = threading.Thread(target=_hold_imports, args=(entered, release, []))
    importing.start()
    entered.wait()

    def refused() -> str:
        with pytest.raises(EmberdError) as raised:
            _importable()
        return str(raised.value)

    try:
        assert "forked" in _in_child(refused)
        assert "forked" in _in_child(lambda: _in_child(refused))  # its locks stay locked
    finally:
        release.set()
        importing.join()
    # The parent is not affected, and neither is a later child.
    assert _importable()
    assert _in_child(_importable) is True


@pytest.mark.parametrize("package", ["numpy", "openai"])
@pytest.mark.parametrize("use", ["in_task", "in_thread"])
def test_a_child_that_is_forked_during_the_first_use_can_import(
    server: FakeServer, package: str, use: str
) -> None:
    """In a process of its own: here everything is imported already."""
    # The SDK is imported for a server on another machine.
    code = f"""
import asyncio, os, signal, sys, threading
from emberd import Embedder
if {package!r} == "openai":
    import emberd.client.loopback
    emberd.client.loopback.suits = lambda endpoint: False
embedder = Embedder({MODEL!r}, base_url={server.url!r})
importing = threading.Event()
def watch(event, args):
    if event == "import" and args[0].startswith("{package}."):
        importing.set()
sys.addaudithook(watch)
async def main():
    if {use!r} == "in_task":
        task = asyncio.create_task(embedder.aembed_query("a"))
    else:
        task = asyncio.create_task(asyncio.to_thread(embedder.embed_query, "a"))
    while not importing.is_set():
        await asyncio.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(0 if len(embedder.embed_query("b")) == 16 else 3)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), len(await task))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=managed.environment(),
        timeout=110,
    )
    assert (done.stdout, done.stderr) == ("0 16\n", "")
