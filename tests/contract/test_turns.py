"""Other tasks of an event loop keep running: counted in loop iterations, not in time."""

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
    """Yield a list with one number, which counts the iterations of the loop."""
    iterations = [0]

    async def tick() -> None:
        while True:
            iterations[0] += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(tick())
    yield iterations
    task.cancel()


async def test_conversion_to_lists_yields_to_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_loops, "FIRST_S", 0)
    monkeypatch.setattr(event_loops, "SLICE_S", 0)
    vectors = np.arange(200 * 2560, dtype=np.float32).reshape(200, 2560)
    async with _ticking() as iterations:
        before = iterations[0]
        lists = await ato_lists(vectors)
        assert iterations[0] - before >= 5
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
    assert (done.stdout, done.stderr) == ("[('numpy', False)]\n", "")
