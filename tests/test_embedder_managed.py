"""An embedder over servers that die, stop and come back: processes, not fakes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest

import stub_server
import waiting
from emberd import Embedder, Manager
from emberd.errors import PoisonTextError, ServerStoppedError
from emberd.manager import State, idle
from homes import Stub, home, manager, stub

__all__ = ["home", "manager", "stub"]

BARE: Final[dict[str, Any]] = {"query_instruction": "", "document_instruction": ""}
TEXTS = [f"text {number}" for number in range(600)]


@pytest.fixture
def embedder(manager: Manager, stub: Stub) -> Iterator[Embedder]:
    made = Embedder(
        stub().model,
        engine="stubs.engine",
        manager=manager,
        batch_size=8,
        max_concurrency=4,
        **BARE,
    )
    yield made
    made.close()


def right(texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the vectors that the stub has for these texts."""
    return np.array([stub_server.vector(text) for text in texts])


def server_process(manager: Manager) -> psutil.Process:
    """Return the process of the only server that runs."""
    pid = waiting.until(lambda: next((s.supervisor_pid for s in manager.status()), None))
    return waiting.until(psutil.Process(pid).children)[0]


def test_a_job_survives_the_death_of_its_server_with_every_vector_in_its_place(
    embedder: Embedder, manager: Manager
) -> None:
    embedder.embed_query("first")
    slow = [f"{text} SLOW 0.01" for text in TEXTS]
    got: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = []
    job = threading.Thread(target=lambda: got.append(embedder.embed_documents(slow)))
    job.start()
    waiting.until(lambda: _served(embedder) > 10)
    server_process(manager).kill()
    job.join(timeout=60)
    assert np.abs(got[0] - right(slow)).max() < 1e-6


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_what_a_person_stopped_between_two_jobs_is_started_by_the_next(
    embedder: Embedder, manager: Manager, twin: str
) -> None:
    def query() -> object:
        if twin == "threads":
            return embedder.embed_query("hello")
        return asyncio.run(embedder.aembed_query("hello"))

    query()
    before = embedder.ensure()
    manager.stop()
    query()
    assert embedder.ensure().start_id != before.start_id


def test_use_on_an_event_loop_is_recorded_by_another_thread(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.ensure()
    threads: list[str] = []

    def touch(_: str) -> bool:
        threads.append(threading.current_thread().name)
        return False

    monkeypatch.setattr(idle, "touch", touch)
    asyncio.run(embedder.aembed_query("hello"))
    waiting.until(lambda: threads)
    assert "MainThread" not in threads


def test_job_on_an_event_loop_gets_an_error_after_a_stop(
    embedder: Embedder, manager: Manager
) -> None:
    async def ingest() -> None:
        await embedder.aembed_query("first")
        slow = [f"{text} SLOW 0.05" for text in TEXTS]
        job = asyncio.create_task(embedder.aembed_documents(slow))
        await asyncio.to_thread(waiting.until, lambda: _served(embedder) > 10)
        await asyncio.to_thread(manager.stop)
        await job

    with pytest.raises(ServerStoppedError):
        asyncio.run(ingest())


def test_what_a_person_stops_in_the_middle_of_a_job_stays_stopped(
    embedder: Embedder, manager: Manager
) -> None:
    embedder.embed_query("first")
    slow = [f"{text} SLOW 0.05" for text in TEXTS]
    errors: list[BaseException] = []

    def ingest() -> None:
        try:
            embedder.embed_documents(slow)
        except ServerStoppedError as error:
            errors.append(error)

    job = threading.Thread(target=ingest)
    job.start()
    waiting.until(lambda: _served(embedder) > 3)
    manager.stop()
    job.join(timeout=60)
    assert len(errors) == 1
    assert manager.status()[0].state is State.ABSENT


def test_the_text_that_kills_the_server_each_time_is_named(embedder: Embedder) -> None:
    texts = [*TEXTS[:20], "this one will make it DIE", *TEXTS[20:40]]
    with pytest.raises(PoisonTextError, match="this one will make it DIE") as caught:
        embedder.embed_documents(texts)
    assert caught.value.index == 20


def test_a_server_that_went_idle_between_two_jobs_is_started_again(
    manager: Manager, stub: Stub, tmp_path: Path
) -> None:
    embedder = Embedder(
        stub().model, engine="stubs.engine", manager=manager, idle_timeout=0.5, **BARE
    )
    first = embedder.embed_query("hello")
    waiting.until(lambda: manager.status()[0].state is State.ABSENT)
    assert (embedder.embed_query("hello") == first).all()
    embedder.close()


def test_the_warning_about_cut_vectors_comes_once_however_often_the_server_does(
    manager: Manager, stub: Stub
) -> None:
    embedder = Embedder(stub().model, engine="stubs.engine", manager=manager, dimensions=4, **BARE)
    with pytest.warns(UserWarning, match="was not trained"):
        embedder.embed_query("hello")
    manager.stop()
    embedder.embed_query("hello")  # a warning would be an error here
    embedder.close()


def _served(embedder: Embedder) -> float:
    from emberd import probe

    endpoint = embedder.endpoint()
    activity = probe.activity(endpoint.url, endpoint.api_key)
    return activity.requests if activity else 0
