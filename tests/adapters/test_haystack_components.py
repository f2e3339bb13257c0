"""Haystack's components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import Secret

from adapters import page
from agents.recipes import BOATS, BREAD, QUESTION, Sent
from emberd import Embedder, Reranker, SettingError, TextError
from emberd.adapters.haystack import EmberdDocumentEmbedder, EmberdRanker, EmberdTextEmbedder
from fake_reranker import FakeReranker
from managed import MODEL, same

_ALLOWED = ["emberd.adapters.haystack"]


def _pipeline(**settings: Any) -> Any:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [Document(content=text) for text in (BREAD, BOATS)]
    embedded = EmberdDocumentEmbedder(MODEL, **settings).run(documents)["documents"]
    assert [each.embedding for each in documents] == [None, None], "the originals were changed"
    store.write_documents(embedded)
    pipeline = Pipeline()
    pipeline.add_component("query", EmberdTextEmbedder(MODEL, **settings))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("query.embedding", "retriever.query_embedding")
    return pipeline


def test_a_pipeline_finds_the_document_with_the_templates_of_both_roles(sent: Sent) -> None:
    answer = _pipeline().run({"query": {"text": QUESTION}})
    assert answer["retriever"]["documents"][0].content == BREAD
    assert sent()[-3:] == [f"passage: {BREAD}", f"passage: {BOATS}", f"query: {QUESTION}"]


async def test_an_asynchronous_run_finds_it_too() -> None:
    pipeline = _pipeline()
    answer = await pipeline.run_async({"query": {"text": QUESTION}})
    assert answer["retriever"]["documents"][0].content == BREAD
    documents = EmberdDocumentEmbedder(MODEL)
    await documents.warm_up_async()
    (document,) = (await documents.run_async([Document(content=BREAD)]))["documents"]
    assert same(document.embedding, Embedder(MODEL).embed_documents([BREAD])[0])
    await documents.close_async()
    await pipeline.close_async()


def test_a_pipeline_read_from_yaml_has_the_same_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if the environment says something else by then."""
    pipeline = Pipeline()
    pipeline.add_component(
        "documents",
        EmberdDocumentEmbedder(
            MODEL, dimensions=128, meta_fields_to_embed=["title"], embedding_separator=" | "
        ),
    )
    pipeline.add_component("query", EmberdTextEmbedder(MODEL, query_instruction="ask: {text}"))
    pipeline.add_component("ranker", EmberdRanker(top_k=3, instruction="facts", truncate=True))
    dumped = pipeline.dumps()
    monkeypatch.setenv("EMBERD_DIMENSIONS", "64")
    monkeypatch.setenv("EMBERD_QUERY_INSTRUCTION", "")
    again = Pipeline.loads(dumped, allowed_modules=_ALLOWED)
    for name in ("documents", "query"):
        one, other = pipeline.get_component(name), again.get_component(name)
        assert one.embedder.identity == other.embedder.identity
    assert again.dumps() == dumped
    assert again.get_component("documents").embedding_separator == " | "
    assert again.get_component("ranker").reranker.settings.truncate


def test_a_key_is_kept_only_as_the_name_of_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "a-secret")
    kinds: list[type[Any]] = [EmberdTextEmbedder, EmberdRanker]
    for kind in kinds:
        made = kind(base_url="http://127.0.0.1:9", api_key=Secret.from_env_var("A_KEY"))
        assert made._user.settings.api_key == "a-secret"
        kept = made.to_dict()
        assert "a-secret" not in repr(kept)
        assert kept["init_parameters"]["base_url"] == "http://127.0.0.1:9"
        assert kind.from_dict(kept)._user.settings.api_key == "a-secret"
        given = kind(base_url="http://127.0.0.1:9", api_key="a-secret").to_dict()
        assert "a-secret" not in repr(given)


def test_a_given_reranker_is_kept_with_what_its_scores_depend_on(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = reranker.replace(truncate=True, instruction="facts")
    again = EmberdRanker.from_dict(EmberdRanker(given).to_dict()).reranker
    assert again.settings.truncate
    assert again.instruction == given.instruction
    monkeypatch.setenv("EMBERD_RERANK_TRUNCATE", "1")
    kept = EmberdRanker(reranker).to_dict()
    assert not EmberdRanker.from_dict(kept).reranker.settings.truncate


def test_fields_of_the_metadata_are_embedded_before_the_content(sent: Sent) -> None:
    embedder = EmberdDocumentEmbedder(MODEL, meta_fields_to_embed=["title", "absent"])
    embedder.run([Document(content=BREAD, meta={"title": "On baking"})])
    assert sent()[-1] == f"passage: On baking\n{BREAD}"


def test_warm_up_makes_the_server_known_and_close_allows_another_use() -> None:
    embedder = EmberdTextEmbedder(MODEL)
    embedder.warm_up()
    found = embedder.run(QUESTION)
    embedder.close()
    assert found["meta"] == {"model": MODEL}
    assert same(embedder.run(QUESTION)["embedding"], found["embedding"])
    embedder.close()


def test_the_model_and_the_length_are_known_without_a_server() -> None:
    for kind in (EmberdTextEmbedder, EmberdDocumentEmbedder):
        embedder = kind(MODEL, dimensions=64, base_url="http://127.0.0.1:9")
        assert embedder.dimensions == embedder.model_info.dimensions == 64
    assert EmberdRanker().model_info.task == "rerank"


def test_what_is_no_document_is_refused() -> None:
    embedder, ranker = EmberdDocumentEmbedder(MODEL), EmberdRanker()
    wrong: list[Any] = ["a text", [BREAD]]
    for given in wrong:
        with pytest.raises(TextError):
            embedder.run(given)
        with pytest.raises(TextError):
            ranker.run("a query", given)
    with pytest.raises(SettingError):
        EmberdRanker(Reranker(), instruction="facts")
    with pytest.raises(SettingError):
        EmberdTextEmbedder(Embedder(MODEL), dimensions=64)


@pytest.fixture
def reranker() -> Iterator[Reranker]:
    with FakeReranker() as server:
        yield Reranker(server.model, base_url=server.url)


async def test_a_ranker_orders_copies_by_their_scores(reranker: Reranker) -> None:
    ranker = EmberdRanker(reranker, top_k=2)
    documents = [Document(content=text) for text in ("one", "two", "three")]
    found = ranker.run("a query", documents)["documents"]
    scores = reranker.scores("a query", ["one", "two", "three"])
    assert [each.content for each in found] == [
        documents[place].content for place in (-scores).argsort()[:2]
    ]
    assert [each.score for each in found] == sorted(scores.tolist(), reverse=True)[:2]
    assert [each.score for each in documents] == [None] * 3
    later = await ranker.run_async("a query", documents, top_k=3)
    assert [each.id for each in later["documents"]][:2] == [each.id for each in found]
    assert ranker.run("a query", []) == {"documents": []}
    await ranker.close_async()


def test_the_code_of_the_page_finds_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = page.run("Haystack", monkeypatch)["found"]["retriever"]["documents"]
    assert found.content == "Zinc ..."
