"""Other tasks of an event loop get their turn, told by turns and not by times."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

import managed
from emberd import ato_lists
from emberd.client import event_loops
from fake_server import MODEL, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@asynccontextmanager
async def _ticking() -> Any:
    """Give a list of one number, which counts the turns of the loop."""
    turns = [0]

    async def tick() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(tick())
    yield turns
    task.cancel()


async def test_vectors_become_lists_in_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_loops, "FIRST_S", 0)
    monkeypatch.setattr(event_loops, "SLICE_S", 0)
    vectors = np.arange(200 * 2560, dtype=np.float32).reshape(200, 2560)
    async with _ticking() as turns:
        before = turns[0]
        lists = await ato_lists(vectors)
        assert turns[0] - before >= 5
    assert lists == vectors.tolist()


def test_the_first_asynchronous_use_imports_in_another_thread(server: FakeServer) -> None:
    code = f"""
        import asyncio, sys, threading
        from emberd import Embedder
        threads = {{}}
        def watch(event, args):
            package = str(args[0]).split(".")[0] if event == "import" else ""
            if package in ("numpy", "openai") and package not in threads:
                threads[package] = threading.current_thread() is threading.main_thread()
        sys.addaudithook(watch)
        asyncio.run(Embedder({MODEL!r}, base_url={server.url!r}).aembed_query("a"))
        print(sorted(threads.items()))
    """
    program = "\n".join(line[8:] for line in code.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=managed.environment()
    )
    assert (done.stdout, done.stderr) == ("[('numpy', False), ('openai', False)]\n", "")
