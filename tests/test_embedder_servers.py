"""An embedder's server: from a manager, lost and found again, or behind a client of the user's."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

import embedders
from emberd import Embedder, ServerSpec
from emberd.errors import (
    RequestTimeoutError,
    ServerStoppedError,
    SettingError,
)
from emberd.manager import Server
from fake_server import MODEL, FakeServer, vector_of, vectors_of


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_server_that_was_swapped_is_asked_for_again(server: FakeServer, twin: str) -> None:
    embedder, manager = embedders.managed(server)
    embedders.embed(embedder, twin, ["a"])
    server.named = "other/model"
    with FakeServer() as other:
        manager.server = other
        texts = [f"text {i}" for i in range(30)]
        assert (embedders.embed(embedder, twin, texts) == vectors_of(texts)).all()
        assert embedder.ensure().endpoint.url == other.url
        embedder.close()
    assert len(manager.asked) == 2


class SlowManager(embedders.FakeManager):
    """Starts take until ``go``."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.begun = threading.Event()
        self.go = threading.Event()

    def ensure(self, spec: ServerSpec, **options: Any) -> Server:
        self.begun.set()
        assert self.go.wait(20)
        return super().ensure(spec, **options)


def test_cancelling_who_waits_for_a_start_returns_at_once_and_the_start_goes_on(
    server: FakeServer,
) -> None:
    manager = SlowManager(server)
    embedder = Embedder(MODEL, manager=manager)  # type: ignore[arg-type]

    async def give_up() -> None:
        waiters = [asyncio.create_task(embedder.aensure()) for _ in range(40)]
        await asyncio.to_thread(manager.begun.wait, 5)
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)  # the executor is free
        for waiter in waiters:
            waiter.cancel()
        assert all(
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(*waiters, return_exceptions=True)
        )

    asyncio.run(give_up())  # would wait for threads of the loop's executor
    assert not manager.go.is_set()

    async def wait_again() -> Server:
        waiter = asyncio.create_task(embedder.aensure())
        await asyncio.sleep(0)
        manager.go.set()
        return await waiter

    assert asyncio.run(wait_again()).endpoint.url == server.url
    assert len(manager.asked) == 1


def test_an_event_loop_never_waits_for_a_start_of_another_thread(server: FakeServer) -> None:
    """The server stopped, and a heal in a thread holds the lock for as long as a start takes."""
    embedder, manager = embedders.managed(server)
    embedder.ensure()
    manager.is_current = lambda server: False  # type: ignore[method-assign]
    turns = 0

    async def use() -> None:
        nonlocal turns
        waiter = asyncio.create_task(embedder.aensure())
        for _ in range(5):
            await asyncio.sleep(0)
            turns += 1
        embedder._handle._lock.release()
        await waiter

    assert embedder._handle._lock.acquire()
    asyncio.run(use())
    assert turns == 5
    assert len(manager.asked) == 2


def test_a_server_is_asked_for_once_in_a_process(server: FakeServer) -> None:
    embedder, manager = embedders.managed(server, start_timeout=7, idle_timeout=None, device="cpu")
    start = threading.Barrier(5)

    def use() -> None:
        start.wait()
        embedder.embed_query("a")

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(embedder.aembed_query("a"))
    assert len(manager.asked) == 1
    asked = manager.asked[0]
    assert asked["spec"] == ServerSpec(model=MODEL, device="cpu")
    assert (asked["start_timeout"], asked["idle_timeout"], asked["lost"]) == (7, None, None)
    embedder.close()


async def test_many_first_uses_at_once_ask_once(server: FakeServer) -> None:
    embedder, manager = embedders.managed(server)
    await asyncio.gather(*(embedder.aembed_query(f"{i}") for i in range(40)))
    assert len(manager.asked) == 1


def test_use_and_suspicion_are_reported(server: FakeServer) -> None:
    embedder, manager = embedders.managed(server, timeout=0.2)
    embedder.embed_query("a")
    assert manager.uses == [embedder.ensure()]
    server.fault = "hang"
    with pytest.raises(RequestTimeoutError):
        embedder.embed_query("a")
    assert set(map(id, manager.suspicions)) == {id(embedder.ensure())}
    embedder.close()


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_server_that_vanishes_is_asked_for_again(server: FakeServer, twin: str) -> None:
    embedder, manager = embedders.managed(server)
    before = embedder.ensure()
    server.die()
    texts = [f"text {i}" for i in range(30)]
    assert (embedders.embed(embedder, twin, texts) == vectors_of(texts)).all()
    assert [asked["lost"] for asked in manager.asked] == [None, before]
    assert embedder.ensure().endpoint.url == server.url
    embedder.close()


def test_several_jobs_heal_one_server_once(server: FakeServer) -> None:
    embedder, manager = embedders.managed(server)
    embedder.ensure()
    server.die()
    start = threading.Barrier(4)
    right: list[bool] = []

    def use(number: int) -> None:
        texts = [f"{number} {i}" for i in range(10)]
        start.wait()
        right.append(bool((embedder.embed_documents(texts) == vectors_of(texts)).all()))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4
    assert len(manager.asked) == 2
    embedder.close()


def test_a_server_that_a_person_stopped_ends_the_job_and_the_next_job_starts_it(
    server: FakeServer,
) -> None:
    embedder, manager = embedders.managed(server)
    embedder.ensure()
    manager.on_lost = ServerStoppedError("stopped by hand")
    server.die()
    with pytest.raises(ServerStoppedError):
        embedder.embed_documents(["a"])
    assert (embedder.embed_documents(["a"]) == vectors_of(["a"])).all()
    assert manager.asked[-1]["lost"] is None
    embedder.close()


def test_a_handed_in_client_decides_where_the_server_is(server: FakeServer) -> None:
    with openai.OpenAI(api_key="theirs", base_url=f"{server.url}/v1") as client:
        server.api_key = "theirs"
        embedder = Embedder(MODEL, client=client)
        assert (embedder.embed_query("a") == vector_of("a")).all()
        assert embedder.ensure().endpoint.dimensions == 16
        assert "given client" in embedder.ensure().reason
        with pytest.raises(SettingError, match="needs async_client="):
            asyncio.run(embedder.aembed_query("a"))


async def test_a_handed_in_asynchronous_client_likewise(server: FakeServer) -> None:
    async with openai.AsyncOpenAI(api_key="theirs", base_url=f"{server.url}/v1") as client:
        server.api_key = "theirs"
        embedder = Embedder(MODEL, async_client=client)
        assert (await embedder.aembed_query("a") == vector_of("a")).all()
        with pytest.raises(SettingError, match="needs client="):
            embedder.embed_query("a")


def test_clients_that_lead_to_different_servers_are_refused(server: FakeServer) -> None:
    here = openai.OpenAI(api_key="k", base_url=f"{server.url}/v1")
    there = openai.AsyncOpenAI(api_key="k", base_url="http://127.0.0.1:9/v1")
    for settings in (
        {"client": here, "async_client": there},
        {"client": here, "base_url": "http://127.0.0.1:9"},
    ):
        with pytest.raises(SettingError, match="different addresses: http"):
            Embedder(MODEL, **settings)  # type: ignore[arg-type]
    assert Embedder(MODEL, client=here, base_url=server.url).settings.base_url == server.url
    here.close()
    asyncio.run(there.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_its_parents_lock(server: FakeServer) -> None:
    """As under gunicorn's preload, when another thread asks for the server at the fork."""
    embedder, _ = embedders.managed(server)
    with embedder._handle._lock:
        pid = os.fork()
        if pid == 0:
            try:
                right = (embedder.embed_query("a") == vector_of("a")).all()
                os._exit(0 if right else 3)
            finally:
                os._exit(4)
        killer = threading.Timer(20, os.kill, (pid, 9))
        killer.start()
        _, status = os.waitpid(pid, 0)
        killer.cancel()
    assert os.waitstatus_to_exitcode(status) == 0
