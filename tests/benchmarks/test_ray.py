"""What a second server brings: two that sleep a fixed time a request, beside one.

Each is a process that takes up one request after another. The actors are the same for both figures;
for the first all of them share one server, for the second each node has found its own. The rate is
that of the middle half of the rows: at both ends some actors have nothing to do yet, or any more,
and what was in work when the first rows came would count for nothing. It cannot exceed what the
servers can do, which the table shows.

``make bench`` prints the figures. Nothing here asserts a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.record import Ratio, Row, Table, publish
from canned_server import canned_server
from ray_cluster import FILTERS, Nodes, two_nodes

ROWS: Final = 8192
BLOCKS: Final = 64
MIDDLE: Final = (0.25, 0.75)
REQUEST_TEXTS: Final = 64
SLEEP_S: Final = 0.2
MODEL: Final = "test/model"
DIMENSIONS: Final = 256
TARGET: Final = 1.8
SECONDS: Final = 600

pytestmark = [
    pytest.mark.timeout(SECONDS),
    *(pytest.mark.filterwarnings(text) for text in FILTERS),
]


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    """Two servers."""
    with ExitStack() as stack:
        server = canned_server(model=MODEL, dimensions=DIMENSIONS, sleep_s=SLEEP_S, serial=True)
        other = canned_server(model=MODEL, dimensions=DIMENSIONS, sleep_s=SLEEP_S, serial=True)
        yield stack.enter_context(server), stack.enter_context(other)


@pytest.fixture(scope="module")
def nodes(urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes, each of which gets the URL of one of the servers."""
    root = tmp_path_factory.mktemp("r")
    # Sockets of Ray lie in it, and their paths must be short.
    with two_nodes(Path(root), EMBERD_DISCOVER=urls) as found:
        yield found


def test_two_servers_beside_one(nodes: Nodes, urls: tuple[str, str]) -> None:
    one = rate(base_url=urls[0])
    two = rate()
    publish(
        Table(
            name="ray-scale",
            title=(
                f"Ray Data, {ROWS:,} texts, requests of {REQUEST_TEXTS} that take {SLEEP_S:g} s, "
                f"one after another"
            ),
            rows=[
                Row("one server", {"texts/s": one}),
                Row("two servers, one a node", {"texts/s": two}),
                Row("what one can do at most", {"texts/s": REQUEST_TEXTS / SLEEP_S}),
                Row("what two can do at most", {"texts/s": 2 * REQUEST_TEXTS / SLEEP_S}),
            ],
            ratios=[Ratio("two servers / one", two / one, TARGET)],
            packages=["ray"],
        )
    )


def rate(**settings: Any) -> float:
    """Return how many texts a second are embedded in the middle of a job."""
    import ray
    from emberd.ray import embed

    items = [{"text": f"text {row}"} for row in range(ROWS)]
    dataset = ray.data.from_items(items, override_num_blocks=BLOCKS)
    # On a CPU, for else the GPUs that the second node seems to have would count.
    given = {"model": MODEL, "device": "cpu", "batch_size": REQUEST_TEXTS, **settings}
    found = embed(dataset, batch_rows=ROWS // BLOCKS, **given)
    arrivals: list[tuple[int, float]] = []
    rows = 0
    for batch in found.iter_batches(batch_size=None, prefetch_batches=0):
        rows += len(batch["text"])
        arrivals.append((rows, time.perf_counter()))
    assert rows == ROWS
    begin, end = (next(one for one in arrivals if one[0] >= part * ROWS) for part in MIDDLE)
    return (end[0] - begin[0]) / (end[1] - begin[1])
