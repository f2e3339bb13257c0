"""Embedding while the interpreter exits, and where no thread can be started."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from emberd.errors import EmberdError
from emberd.system import background
from fake_server import FakeServer
from managed import environment

_PROGRAM = """
import asyncio, atexit, sys
from emberd.client.clients import AsyncClient, Client
from emberd.endpoint import Endpoint
from emberd.errors import EmberdError
from emberd.settings import Settings

url, kind = sys.argv[1:]
endpoint = Endpoint(url, "test/model", 16)
settings = Settings.resolve(model="test/model")

async def resolve():
    return endpoint

def late():
    try:
        if kind == "tasks":
            asyncio.run(AsyncClient(resolve, settings).embed(["a"], "{text}", None))
        else:
            Client(lambda: endpoint, settings).embed(["a"], "{text}", None)
    except EmberdError:
        print("an error of ours")
    else:
        print("vectors")

atexit.register(late)
"""


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_embedding_at_exit_works_or_raises_an_error_of_ours(kind: str) -> None:
    with FakeServer() as server:
        ended = subprocess.run(
            [sys.executable, "-c", _PROGRAM, server.url, kind],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
    assert ended.stdout.strip() in ("vectors", "an error of ours"), ended.stderr
    assert ended.returncode == 0


def test_thread_that_cannot_be_started_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(EmberdError):
        background.run(lambda: None, "test")
