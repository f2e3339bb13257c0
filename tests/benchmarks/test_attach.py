"""What attaching to a running server costs, compared with the openai SDK, which gets its URL.

``make bench`` prints the figures. Nothing here asserts a time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import openai
import pytest

import emberd
from managed import DIMENSIONS, MODEL, environment

CALLS = 100
PROCESSES = 20
TEXT = "query: Why is the Baltic almost fresh water?"
MS = 1000

WITH_SDK = f"""
import os
from openai import OpenAI
client = OpenAI(base_url=os.environ["URL"], api_key=os.environ["KEY"])
print(len(client.embeddings.create(model={MODEL!r}, input=[{TEXT!r}]).data[0].embedding))
"""
WITH_EMBERD = f"""
from emberd import Embedder
print(len(Embedder({MODEL!r}, query_instruction="").embed_query({TEXT!r})))
"""


@pytest.fixture(scope="module")
def server() -> emberd.Server:
    """A running server of the demo model."""
    return emberd.Manager().ensure(emberd.ServerSpec(model=MODEL))


def in_turn(*calls: Callable[[], object], times: int) -> list[list[float]]:
    """Time each call ``times`` times, A B A B, after one round that does not count; in ms."""
    timings: list[list[float]] = [[] for _ in calls]
    for _ in range(times + 1):
        for call, timing in zip(calls, timings, strict=True):
            began = time.perf_counter()
            call()
            timing.append((time.perf_counter() - began) * MS)
    return [timing[1:] for timing in timings]


def row(name: str, timing: list[float]) -> str:
    """Return one line of the table."""
    low, median, high = min(timing), statistics.median(timing), max(timing)
    return f"  {name:<42} {low:9.2f} {median:9.2f} {high:9.2f}"


def test_in_one_process(server: emberd.Server) -> None:
    """Ensure, a query through emberd, and the same request through the bare SDK."""
    manager, spec = emberd.Manager(), emberd.ServerSpec(model=MODEL)
    embedder = emberd.Embedder(MODEL, query_instruction="")
    with openai.OpenAI(
        base_url=server.endpoint.base_url, api_key=server.endpoint.api_key, max_retries=0
    ) as client:
        ensure, ours, theirs = in_turn(
            lambda: manager.ensure(spec),
            lambda: embedder.embed_query(TEXT),
            lambda: client.embeddings.create(model=MODEL, input=[TEXT]),
            times=CALLS,
        )
    embedder.close()
    more = statistics.median(ours) - statistics.median(theirs)
    print(f"\nms a call, {CALLS} calls each in turn             min    median       max")
    print(row("Manager.ensure, server running", ensure))
    print(row("Embedder.embed_query", ours))
    print(row("openai SDK, embeddings.create", theirs))
    print(f"  emberd takes {more:+.2f} ms (median) beside the SDK")


def test_fresh_processes_from_import_to_first_vector(server: emberd.Server) -> None:
    """A new interpreter that finds the server by itself, and one that gets its URL."""
    told = environment(URL=server.endpoint.base_url, KEY=server.endpoint.api_key or "")

    def run(program: str) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", program], env=told, capture_output=True, text=True, check=True
        )
        assert ended.stdout == f"{DIMENSIONS}\n"

    ours, theirs = in_turn(lambda: run(WITH_EMBERD), lambda: run(WITH_SDK), times=PROCESSES)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"\nms a process, {PROCESSES} of each in turn             min    median       max")
    print(row("emberd: find the server, first vector", ours))
    print(row("openai SDK: given URL and key, first vector", theirs))
    print(f"  ratio, pair by pair: median {statistics.median(ratios):.2f}")


def test_the_shells_way(server: emberd.Server) -> None:
    """``eval "$(emberd env)"`` while the server runs."""
    command = [sys.executable, "-m", "emberd", "env", "--model", MODEL]

    def env() -> None:
        ended = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True
        )
        assert f"OPENAI_BASE_URL={server.endpoint.base_url}" in ended.stdout.replace("'", "")

    (timing,) = in_turn(env, times=PROCESSES)
    print(f"\nms a process, {PROCESSES} times                        min    median       max")
    print(row("emberd env, server running", timing))
