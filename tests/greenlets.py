"""A program whose standard library gevent or eventlet has patched.

``python greenlets.py LIBRARY SCENARIO`` writes how many vectors it got, which are all the same.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

LIBRARY, SCENARIO = sys.argv[1:3]
SETTINGS: dict[str, Any] = {
    "model": "stub/ok",
    "engine": "stubs.engine",
    "query_instruction": "",
    "document_instruction": "",
}
COUNT = 40
TEXT = "The Baltic Sea has little salt."

if SCENARIO != "patched late":
    if LIBRARY == "gevent":
        importlib.import_module("gevent.monkey").patch_all()
    else:
        importlib.import_module("eventlet").monkey_patch()

import asyncio  # noqa: E402 - after it was patched
import os  # noqa: E402
import signal  # noqa: E402

import numpy as np  # noqa: E402

import emberd  # noqa: E402

if SCENARIO == "patched late" and LIBRARY == "gevent":
    importlib.import_module("gevent.monkey").patch_all()
elif SCENARIO == "patched late":
    importlib.import_module("eventlet").monkey_patch()


def together(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Return what the calls return, each made in a greenlet."""
    if LIBRARY == "gevent":
        spawned = [importlib.import_module("gevent").spawn(call) for call in calls]
        return [each.get() for each in spawned]
    spawned = [importlib.import_module("eventlet").spawn(call) for call in calls]
    return [each.wait() for each in spawned]


def embed() -> Any:
    """Return the vector of the text, from a new embedder."""
    return emberd.Embedder(**SETTINGS).embed_documents([TEXT])[0]


def embed_async() -> Any:
    """Return the same through an event loop."""

    async def work() -> Any:
        embedder = emberd.Embedder(**SETTINGS)
        try:
            return (await embedder.aembed_documents([TEXT]))[0]
        finally:
            await embedder.aclose()

    return asyncio.run(work())


def embed_langchain() -> Any:
    """Return the same through LangChain."""
    from langchain_emberd import EmberdEmbeddings

    return EmberdEmbeddings(**SETTINGS).embed_documents([TEXT])[0]


def embed_after_a_loss() -> Any:
    """Return the vector from a second server, after the first was killed."""
    embedder = emberd.Embedder(**SETTINGS)
    embedder.embed_documents([TEXT])
    (server,) = emberd.Manager().status()
    assert server.supervisor_pid  # 0 is the group of this process
    os.kill(server.supervisor_pid, signal.SIGKILL)
    return embedder.embed_documents([TEXT])[0]


def embed_in_a_thread() -> Any:
    """Return the vector from a thread of the system, as an application's blocking calls run."""
    if LIBRARY == "gevent":
        return importlib.import_module("gevent").get_hub().threadpool.apply(embed)
    return importlib.import_module("eventlet.tpool").execute(embed)


def embed_many() -> Any:
    """Return the vector of the first of many texts, sent in several requests."""
    embedder = emberd.Embedder(**SETTINGS, batch_size=8)
    vectors = embedder.embed_documents([TEXT, *(f"text {number}" for number in range(200))])
    assert len(vectors) == 201
    return vectors[0]


SCENARIOS: dict[str, Callable[[], list[Any]]] = {
    "one": lambda: together([embed]),
    "without a greenlet": lambda: [embed()],
    "many": lambda: together([embed] * COUNT),
    "patched late": lambda: together([embed] * 3),
    "async": lambda: [embed_async()],
    "async in a greenlet": lambda: together([embed_async]),
    "langchain": lambda: together([embed_langchain] * 3),
    "a thread": lambda: [embed_in_a_thread()],
    "a loss": lambda: together([embed_after_a_loss]),
    "several requests": lambda: together([embed_many] * 3),
}

if __name__ == "__main__":
    rows = SCENARIOS[SCENARIO]()
    assert all(np.allclose(row, rows[0], atol=1e-5) for row in rows)
    assert abs(float(np.linalg.norm(rows[0])) - 1) < 1e-3
    print(len(rows))
