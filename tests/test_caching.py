"""A cache in front of the server: by one argument, in ``Embedder`` and in both frameworks."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberd import Embedder, SettingError, TextTooLongError
from fake_server import QWEN, FakeServer, vector_of, vectors_of
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

NATIVE = 1024
TEXTS = ["one", "two", "three", "two"]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=NATIVE) as running:
        yield running


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/cache.db"


@pytest.fixture
def make(server: FakeServer, url: str) -> Callable[..., Embedder]:
    def make(**settings: Any) -> Embedder:
        return Embedder(QWEN, **{"base_url": server.url, "cache": url, **settings})

    return make


Make = Callable[..., Embedder]


def _threads(embedder: Embedder, texts: list[str]) -> Any:
    return embedder.embed_documents(texts)


def _tasks(embedder: Embedder, texts: list[str]) -> Any:
    async def embed() -> Any:
        try:
            return await embedder.aembed_documents(texts)
        finally:
            await embedder.aclose()

    return asyncio.run(embed())


both = pytest.mark.parametrize("embed", [_threads, _tasks])


@both
def test_the_second_time_the_server_is_not_asked(
    embed: Callable[..., Any], make: Make, server: FakeServer
) -> None:
    first = embed(make(), TEXTS)
    asked = len(server.embedded)
    again = embed(make(), TEXTS)
    assert (first == vectors_of(TEXTS, NATIVE)).all()
    assert (again == first).all()
    assert len(server.embedded) == asked


def test_cached_texts_need_no_server(make: Make) -> None:
    vectors = make().embed_documents(TEXTS)
    away = make(base_url="http://127.0.0.1:9")
    assert (away.embed_documents(TEXTS) == vectors).all()


def test_only_what_is_missing_is_asked_for_and_all_are_in_their_places(
    make: Make, server: FakeServer
) -> None:
    embedder = make()
    embedder.embed_documents(["one", "three"])
    server.requests.clear()
    vectors = embedder.embed_documents(["zero", *TEXTS, "four"])
    asked = sorted(text for inputs in server.embedded for text in inputs)
    assert asked == ["four", "two", "two", "zero"]
    assert (vectors == vectors_of(["zero", *TEXTS, "four"], NATIVE)).all()


def test_any_dimensions_come_from_the_same_entry(make: Make, server: FakeServer) -> None:
    make(dimensions=64, server_dimensions=True).embed_documents(TEXTS)
    server.requests.clear()
    for dimensions in (32, 256, None):
        cached = make(dimensions=dimensions).embed_documents(TEXTS)
        fresh = make(dimensions=dimensions, cache=None).embed_documents(TEXTS)
        assert (cached == fresh).all()
    assert all("dimensions" not in request.body for request in server.to("/v1/embeddings"))


def test_queries_and_documents_have_separate_entries(make: Make) -> None:
    embedder = make()
    document = embedder.embed_documents(["one"])[0]
    query = embedder.embed_query("one")
    assert (document == vector_of("one", NATIVE)).all()
    assert (query == vector_of(embedder.query_template.format(text="one"), NATIVE)).all()


def test_models_and_revisions_have_separate_entries(make: Make, url: str) -> None:
    make().embed_documents(["one"])
    with FakeServer(model="Qwen/Qwen3-Embedding-4B", dimensions=2560) as other:
        four = Embedder("Qwen/Qwen3-Embedding-4B", base_url=other.url, cache=url)
        assert four.embed_documents(["one"]).shape == (1, 2560)
    for model, revision in ((QWEN, "a" * 40), ("Qwen/Qwen3-Embedding-8B", None)):
        other_one = Embedder(
            model, revision=revision, base_url="http://127.0.0.1:9", cache=url, timeout=1
        )
        with pytest.raises(Exception, match="No response"):
            other_one.embed_documents(["one"])


def test_a_text_that_was_cut_is_not_kept(make: Make, server: FakeServer) -> None:
    server.context_tokens = 300
    make(truncate=True).embed_documents(["x" * 500])
    with pytest.raises(TextTooLongError):
        make().embed_documents(["x" * 500])


def test_a_text_that_is_set_aside_is_not_kept(make: Make, server: FakeServer) -> None:
    server.context_tokens = 300
    rows = list(make().iter_documents(["one", "x" * 500, "two"], set_aside=True))
    assert isinstance(rows[1], TextTooLongError)
    again = list(make(base_url="http://127.0.0.1:9").iter_documents(["one", "two"]))
    assert (np.stack(again) == vectors_of(["one", "two"], NATIVE)).all()


def test_what_came_before_an_error_is_kept(make: Make, server: FakeServer) -> None:
    server.refuses = "REFUSED"
    texts = [f"text {number}" for number in range(40)]
    with pytest.raises(Exception, match="refused"):
        make(batch_size=4, max_concurrency=1).embed_documents([*texts, "REFUSED"])
    embedder = make()
    embedder.embed_documents(texts)
    assert embedder.cache is not None
    assert embedder.cache.stats().hits > 0


def test_hits_and_misses_are_counted(make: Make) -> None:
    embedder = make()
    assert embedder.cache is not None
    embedder.embed_documents(["one", "two"])
    embedder.embed_documents(["one", "two", "three"])
    stats = embedder.cache.stats()
    assert (stats.hits, stats.misses, stats.entries) == (2, 3, 3)
    assert make(cache=None).cache is None


def test_per_call_settings_share_the_cache(make: Make, server: FakeServer) -> None:
    embedder = make()
    embedder.embed_documents(["one"])
    server.requests.clear()
    cut = embedder.using(dimensions=32)
    assert cut.embed_documents(["one"]).shape == (1, 32)
    assert cut.cache is embedder.cache
    assert server.embedded == []


def test_a_pickle_finds_the_same_cache(make: Make, server: FakeServer) -> None:
    embedder = make()
    embedder.embed_documents(["one"])
    server.requests.clear()
    assert (pickle.loads(pickle.dumps(embedder)).embed_documents(["one"])).shape == (1, NATIVE)
    assert server.embedded == []


def test_a_wrong_url_is_refused_at_construction() -> None:
    with pytest.raises(SettingError, match="is not a known kind of cache"):
        Embedder(QWEN, cache="mongodb://127.0.0.1")


def test_both_frameworks_take_it_as_one_argument_and_share_it(server: FakeServer, url: str) -> None:
    texts = ["one", "two"]
    chain = EmberdEmbeddings(model=QWEN, base_url=server.url, cache=url)
    vectors = chain.embed_documents(texts)
    asked = len(server.embedded)
    index = EmberdEmbedding(model_name=QWEN, base_url=server.url, cache=url)
    assert index.get_text_embedding_batch(texts) == vectors
    assert len(server.embedded) == asked
    assert index.get_query_embedding("one") == chain.embed_query("one")
    assert "cache" not in index.to_dict()


def test_the_environment_may_name_it(
    server: FakeServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_CACHE", url)
    assert Embedder(QWEN, base_url=server.url).settings.cache == url
