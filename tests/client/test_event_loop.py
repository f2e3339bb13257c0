"""No work of ours blocks an event loop: the longest turn, in seconds of its thread's CPU time.

CPU time, because other processes of a busy machine do not count. A slice takes 5 ms, and the bounds
are generous.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from canned_server import MODEL, canned_server, expected
from emberd import Embedder, Endpoint, TextError, ato_lists, index_identity, model_files
from emberd.cache import open_cache
from emberd.cache.cache import VectorCache
from emberd.manager import Server
from fake_server import QWEN, FakeServer, vectors_of

MOST_S = 0.2
NOWHERE = "http://127.0.0.1:9"
DIMENSIONS = 2560


@asynccontextmanager
async def _longest_turn() -> AsyncIterator[Callable[[], float]]:
    """Give what returns the longest time that the loop's thread computed in one turn."""
    longest_s, before_s = 0.0, time.thread_time()

    def turn() -> float:
        nonlocal longest_s, before_s
        now_s = time.thread_time()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
        return longest_s

    async def beat() -> None:
        while True:
            await asyncio.sleep(0)
            turn()

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    gc.collect()
    gc.disable()  # it would count the objects of all other tests
    try:
        turn()
        longest_s = 0.0
        yield turn
    finally:
        gc.enable()
        task.cancel()


async def test_many_texts_are_prepared_in_slices() -> None:
    texts = [f"text {number}" for number in range(400_000)]
    wrong: Any = None
    embedder = Embedder(MODEL, base_url=NOWHERE)
    with pytest.raises(TextError):
        await embedder.aembed_queries([wrong])  # imports
    async with _longest_turn() as longest_s:
        with pytest.raises(TextError) as caught:
            await embedder.aembed_queries([*texts, wrong])
        assert longest_s() < MOST_S
    assert caught.value.index == len(texts)


async def test_replies_of_numbers_are_read_in_slices() -> None:
    texts = [f"text {number}" for number in range(512)]
    with canned_server(floats=True) as url:
        embedder = Embedder(MODEL, base_url=url, batch_size=512)
        await embedder.aensure()
        async with _longest_turn() as longest_s:
            vectors = await embedder.aembed_documents(texts)
            assert longest_s() < MOST_S
        await embedder.aclose()
    np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)


async def test_vectors_of_the_cache_are_cut_and_listed_in_slices(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(16_000)]
    url = f"sqlite://{tmp_path}/cache.db"
    embedder = Embedder(MODEL, base_url=NOWHERE, cache=url, dimensions=2048)
    identity = index_identity.native(embedder.settings, embedder.settings.spec)
    VectorCache(open_cache(url), identity, DIMENSIONS).keep(texts, expected(texts))
    await embedder.aembed_documents(texts[:1])  # imports
    async with _longest_turn() as longest_s:
        lists = await ato_lists(await embedder.aembed_documents(texts))
        assert longest_s() < MOST_S
    heads = expected(texts[:1])[:, :2048]
    np.testing.assert_allclose(lists[:1], heads / np.linalg.norm(heads), atol=1e-6)


class _Manager:
    """Hands out a server, and notes the threads in which it is asked whether it still runs."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._server = Server(endpoint, "own", "it runs", start_id="n", folder="f")
        self.threads: list[threading.Thread] = []

    def ensure(self, *_: Any, **__: Any) -> Server:
        return self._server

    def is_current(self, _server: Server) -> bool:
        self.threads.append(threading.current_thread())
        return True

    def used(self, _server: Server) -> None:
        """Do nothing."""


async def test_record_of_the_server_is_read_in_another_thread() -> None:
    with FakeServer() as server:
        manager = _Manager(server.endpoint)
        embedder = Embedder(server.model, manager=manager)  # type: ignore[arg-type]
        for number in range(3):
            found = await embedder.aembed_documents([f"text {number}"])
            assert (found == vectors_of([f"text {number}"])).all()
        await embedder.aclose()
    assert len(manager.threads) >= 2
    assert threading.main_thread() not in manager.threads


@pytest.mark.parametrize("cached", [True, False])
async def test_model_folder_is_hashed_in_another_thread(
    cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / QWEN.rpartition("/")[2]
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 16}')
    threads: list[threading.Thread] = []
    hashed = model_files.content_hash

    def content_hash(name: str) -> str | None:
        threads.append(threading.current_thread())
        return hashed(name)

    with FakeServer(model=str(folder)) as server:
        embedder = Embedder(
            folder,
            manager=_Manager(server.endpoint),  # type: ignore[arg-type]
            query_instruction="",
            document_instruction="",
            cache=f"sqlite://{tmp_path}/cache.db" if cached else None,
        )
        monkeypatch.setattr(model_files, "content_hash", content_hash)
        await embedder.aembed_documents(["a"])
        await embedder.aclose()
    assert threads
    assert threading.main_thread() not in threads
