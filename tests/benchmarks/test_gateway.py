"""What the gateway costs over the bare server: CPU milliseconds a request, and requests a second.

Both are asked the same texts in turn, in one run. The server answers from memory, so that what is
measured is HTTP, the client in the gateway, and the way of the vectors through it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

from benchmarks.record import Ratio, Row, Table, publish
from canned_server import DIMENSIONS, MODEL, canned_server
from gateways import Running, serving

MS: Final = 1000
ROUNDS: Final = 3
CALLERS: Final = (1, 64)
TEXTS: Final = (1, 64)
SECONDS: Final = 1.5

pytestmark = pytest.mark.timeout(600)

Ask = Callable[[int], Awaitable[None]]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[str, Running]]:
    with canned_server() as url:
        with serving(tmp_path / "home", MODEL, environment={"EMBERD_BASE_URL": url}) as running:
            yield url, running


def _body(model: str, number: int, texts: int) -> dict[str, Any]:
    given = [f"What does the law say about case {number}-{place}?" for place in range(texts)]
    return {"model": model, "input": given, "encoding_format": "base64"}


async def _run(client: httpx.AsyncClient, model: str, callers: int, texts: int) -> int:
    """Return how many requests the callers made in the time."""
    end = time.perf_counter() + SECONDS
    done = 0

    async def call() -> None:
        nonlocal done
        while time.perf_counter() < end:
            reply = await client.post("/v1/embeddings", json=_body(model, done, texts))
            assert reply.status_code == 200, reply.text
            done += 1

    await asyncio.gather(*(call() for _ in range(callers)))
    return done


def test_the_gateway_over_the_bare_server(own: tuple[str, Running]) -> None:
    url, running = own
    process = psutil.Process(running.process.pid)
    rows, ratios = [], []
    for callers in CALLERS:
        for texts in TEXTS:
            found = asyncio.run(_compare(url, running, process, callers, texts))
            for name, (rate, cpu) in found.items():
                figures = {"requests/s": rate, "texts/s": rate * texts}
                figures |= {} if cpu is None else {"CPU ms/request": cpu}
                rows.append(Row(f"{name}, {callers} callers, {texts} texts", figures))
            cpu = found["gateway, TCP"][1] or 0
            ratios.append(
                Ratio(f"CPU ms a request, {callers} callers, {texts} texts", cpu, unit=" ms")
            )
            ratios.append(
                Ratio(
                    f"gateway by bare server, {callers} callers, {texts} texts",
                    found["gateway, TCP"][0] / found["bare server"][0],
                )
            )
    publish(
        Table(
            "gateway",
            f"requests of a client of asyncio (httpx), {DIMENSIONS} dimensions in base64, median "
            f"of {ROUNDS} rounds of {SECONDS:g} s",
            rows,
            ratios,
            packages=("emberd", "uvicorn", "starlette", "httpx"),
            notes=("The client and the server take the same cores as the gateway.",),
        )
    )


async def _compare(
    url: str, running: Running, process: psutil.Process, callers: int, texts: int
) -> dict[str, tuple[float, float | None]]:
    """Return requests a second and CPU milliseconds a request of each way."""
    limits = httpx.Limits(max_connections=callers, max_keepalive_connections=callers)
    options: dict[str, Any] = {"timeout": 60, "trust_env": False}
    key = {"authorization": f"Bearer {running.key}"}
    uds = httpx.AsyncHTTPTransport(uds=str(running.socket), limits=limits)
    async with (
        httpx.AsyncClient(base_url=url, limits=limits, **options) as bare,
        httpx.AsyncClient(base_url=running.url, headers=key, limits=limits, **options) as tcp,
        httpx.AsyncClient(base_url="http://localhost", transport=uds, **options) as unix,
    ):
        ways = {"bare server": bare, "gateway, TCP": tcp, "gateway, Unix socket": unix}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        costs: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS + 1):
            for name, client in ways.items():
                before, began = _cpu_s(process), time.perf_counter()
                count = await _run(client, MODEL, callers, texts)
                taken, used = time.perf_counter() - began, _cpu_s(process) - before
                if turn:
                    rates[name].append(count / taken)
                    costs[name].append(MS * used / count)
    return {
        name: (
            statistics.median(rates[name]),
            None if name == "bare server" else statistics.median(costs[name]),
        )
        for name in ways
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
