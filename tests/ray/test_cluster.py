"""A dataset on two nodes: every row once, right, and one server a node or GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

import emberd
import ray
import waiting
from emberd.ray import EmbedBatches, embed
from homes import server_of
from managed import MODEL, same
from ray_cluster import CARDS, Nodes, supervisors

ROWS = 96
BLOCKS = 8
TEXT = "Sentence {0} of a short text about rivers, bread and the salt of the sea."


def dataset(rows: int = ROWS, blocks: int = BLOCKS) -> Any:
    items = [{"id": row, "text": TEXT.format(row)} for row in range(rows)]
    return ray.data.from_items(items, override_num_blocks=blocks)


def check(rows: list[dict[str, Any]], count: int = ROWS) -> None:
    """Every row is there once, with the vector that ``Embedder`` gives to its text."""
    ordered = sorted(rows, key=lambda row: row["id"])
    assert [row["id"] for row in ordered] == list(range(count))
    assert same(
        np.stack([row["embedding"] for row in ordered]),
        emberd.Embedder(MODEL).embed_documents(row["text"] for row in ordered),
    )


def asking(nodes: Nodes, url: str) -> psutil.Process | None:
    """Return an actor that is connected to the server at ``url``."""
    port = urlsplit(url).port
    for worker in nodes.workers():
        with suppress(psutil.Error):
            if any(found.raddr and found.raddr.port == port for found in worker.net_connections()):
                return worker
    return None


@pytest.fixture
def _all_actors_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given out before all actors are there: so few rows were done by the first."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 60)


@pytest.mark.usefixtures("_all_actors_first")
def test_every_row_comes_once_and_right_and_each_node_has_one_server(ray_nodes: Nodes) -> None:
    ray_nodes.stop()
    check(embed(dataset(), model=MODEL, batch_rows=ROWS // BLOCKS).take_all())
    assert [len(found) for found in ray_nodes.supervisors()] == [1, 1]


@pytest.mark.usefixtures("_all_actors_first")
def test_each_gpu_gets_a_server_that_its_actors_share(ray_nodes: Nodes) -> None:
    ray_nodes.stop()
    found = embed(dataset(), model=MODEL, batch_rows=ROWS // BLOCKS, num_gpus=1)
    check(found.take_all())
    home = ray_nodes.cards
    assert sorted(path.name for path in home.iterdir()) == list(CARDS)
    assert [len(supervisors(home / card)) for card in CARDS] == [1, 1]
    assert ray_nodes.supervisors() == [[], []]


@pytest.mark.usefixtures("_all_actors_first")
def test_a_killed_worker_and_a_killed_server_lose_and_double_nothing(ray_nodes: Nodes) -> None:
    def embedded() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = embed(dataset(), model=MODEL, batch_rows=6).take_all()
        return found

    embedded()
    killed = next(one for one in ray_nodes.status() if one.state == "ready")
    server = server_of(psutil.Process(killed.supervisor_pid))
    assert server is not None
    server.suspend()  # its part of the work is not done before it is killed
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(embedded)
        worker = waiting.until(lambda: asking(ray_nodes, killed.url or ""), 60)
        assert worker is not None
        worker.kill()
        server.kill()
        check(again.result())
    assert killed.start_id not in [one.start_id for one in ray_nodes.status()]


def test_a_bad_row_is_named_or_set_aside(ray_nodes: Nodes) -> None:
    items = [{"id": 1, "text": "bread"}, {"id": 2, "text": None}]
    rows = ray.data.from_items(items, override_num_blocks=1)
    with pytest.raises(ray.exceptions.RayTaskError, match=r"(?s)is null.*row 1 of its batch"):
        embed(rows, model=MODEL, actors=1).take_all()
    good, bad = embed(rows, model=MODEL, actors=1, bad_rows="set-aside").take_all()
    assert good["error"] is None
    assert len(good["embedding"]) == 384
    assert (bad["embedding"], bad["error"]) == (None, "The text is null.")


def test_the_class_serves_a_map_batches_of_the_users_own(ray_nodes: Nodes) -> None:
    found = dataset(20, 2).map_batches(
        EmbedBatches,
        fn_constructor_kwargs={"model": MODEL, "role": "query", "dimensions": 384},
        batch_size=10,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
    )
    batch = found.take_batch(20)
    assert batch["embedding"].dtype == np.float32
    expected = emberd.Embedder(MODEL).embed_queries(batch["text"].tolist())
    assert same(batch["embedding"], expected)


def test_settings_of_the_driver_win_over_those_of_the_nodes(
    ray_nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each node has a different instruction: see ray_cluster.
    monkeypatch.setenv("EMBERD_MODEL", MODEL)
    monkeypatch.setenv("EMBERD_DOCUMENT_INSTRUCTION", "{text}")
    (row,) = embed(dataset(1, 1), actors=1).take_all()
    plain = emberd.Embedder(MODEL, document_instruction="{text}")
    assert same(row["embedding"], plain.embed_documents([row["text"]])[0])
