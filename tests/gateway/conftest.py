"""A gateway in front of two fake servers, which record what they are sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fake_reranker import MODEL as RERANKER
from fake_reranker import FakeReranker
from fake_server import QWEN, FakeServer
from gateways import Running, serving


@dataclass(frozen=True)
class Faked:
    """The gateway and its servers."""

    running: Running
    embedder: FakeServer
    reranker: FakeReranker

    def inputs(self) -> list[str]:
        """All texts that the embedding server was sent so far."""
        return [text for request in self.embedder.embedded for text in request]


@pytest.fixture(scope="session")
def _faked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faked]:
    with FakeServer(model=QWEN, dimensions=1024) as embedder, FakeReranker() as reranker:
        urls = {"EMBERD_BASE_URL": embedder.url, "EMBERD_RERANK_BASE_URL": reranker.url}
        home = tmp_path_factory.mktemp("gw") / "home"
        models = {"EMBERD_MODEL": QWEN, "EMBERD_RERANK_MODEL": RERANKER}
        with serving(home, environment={**urls, **models}) as running:
            # What verifies the servers is sent now.
            running.post(model=QWEN, input="warm")
            running.post("/v1/rerank", model=RERANKER, query="warm", documents=["warm"])
            yield Faked(running, embedder, reranker)


@pytest.fixture
def faked(_faked: Faked) -> Faked:
    """The gateway of the session."""
    assert _faked.running.process.poll() is None, _faked.running.log.read_text()[-2000:]
    return _faked
