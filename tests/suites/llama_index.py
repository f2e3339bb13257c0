"""What LlamaIndex does with an embedding, as a suite that every engine has to pass.

LlamaIndex has no suite for embeddings, unlike LangChain. A subclass gives the settings
of its engine. What an index answers is held against the vectors that ``Embedder`` gives for each
role, so that it is told with any weights.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import TransformQueryEngine
from llama_index.core.schema import Document, NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index_instrumentation import get_dispatcher

import managed
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import PASSAGES, QUERIES, same

_WANTED = "bread"


class Seen(BaseEventHandler):
    """The texts that were embedded in this process since the last look."""

    chunks: list[str] = []  # noqa: RUF012 - pydantic gives each object its own

    @classmethod
    def class_name(cls) -> str:
        return "Seen"

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, EmbeddingEndEvent):
            self.chunks.extend(event.chunks)

    def taken(self) -> list[str]:
        chunks, self.chunks = self.chunks, []
        return sorted(chunks)


class Imagined(CustomLLM):
    """A language model that knows one answer, the one that HyDE asks it to imagine."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=PASSAGES[_WANTED])

    def stream_complete(
        self, prompt: str, formatted: bool = False, **_: Any
    ) -> CompletionResponseGen:
        raise NotImplementedError


def _names(found: Sequence[NodeWithScore]) -> list[str]:
    return [hit.node.node_id for hit in found]


def _scores(found: Sequence[NodeWithScore]) -> Any:
    return pytest.approx({hit.node.node_id: hit.score for hit in found}, abs=1e-5)


def _expected(embedding: EmberdEmbedding, query: str) -> dict[str, float]:
    plain = embedding.embedder
    cosines = plain.embed_documents(PASSAGES.values()) @ plain.embed_query(query)
    return dict(zip(PASSAGES, cosines.tolist(), strict=True))


def _documents() -> list[Document]:
    return [Document(id_=name, text=text) for name, text in PASSAGES.items()]


class LlamaIndexSuite:
    """Subclass it as ``Test...`` and give ``embedding_params``."""

    @pytest.fixture
    def embedding_params(self) -> dict[str, Any]:
        """The engine's settings, under the names of ``EmberdEmbedding``."""
        raise NotImplementedError

    @pytest.fixture
    def embedding(self, embedding_params: dict[str, Any]) -> EmberdEmbedding:
        return EmberdEmbedding(**embedding_params)

    @pytest.fixture
    def nodes(self) -> list[TextNode]:
        return [TextNode(id_=name, text=text) for name, text in PASSAGES.items()]

    @pytest.fixture
    def seen(self) -> Iterator[Seen]:
        handler, root = Seen(), get_dispatcher()
        root.add_event_handler(handler)
        yield handler
        root.event_handlers.remove(handler)

    def test_embedding_class(self, embedding: EmberdEmbedding) -> None:
        assert isinstance(embedding, BaseEmbedding)
        assert embedding.class_name() == "EmberdEmbedding"

    @pytest.mark.parametrize("use_async", [False, True])
    def test_an_index_scores_queries_against_documents(
        self, embedding: EmberdEmbedding, nodes: list[TextNode], use_async: bool
    ) -> None:
        index = VectorStoreIndex(nodes, embed_model=embedding, use_async=use_async)
        retriever = index.as_retriever(similarity_top_k=len(PASSAGES))
        for query in QUERIES:
            assert _scores(retriever.retrieve(query)) == _expected(embedding, query)

    async def test_a_retriever_answers_many_at_once(
        self, embedding: EmberdEmbedding, nodes: list[TextNode]
    ) -> None:
        index = VectorStoreIndex([], embed_model=embedding)
        await index.ainsert_nodes(nodes)
        retriever = index.as_retriever(similarity_top_k=len(PASSAGES))
        found = await asyncio.gather(*(retriever.aretrieve(query) for query in QUERIES))
        assert [_scores(hits) for hits in found] == [_expected(embedding, each) for each in QUERIES]

    def test_hyde_retrieves_the_passage_like_its_generated_document(
        self, embedding_params: dict[str, Any], nodes: list[TextNode]
    ) -> None:
        """HyDE has imagined documents embedded as queries: roles must not differ."""
        embedding = EmberdEmbedding(**embedding_params, symmetric=True)
        index = VectorStoreIndex(nodes, embed_model=embedding)
        hyde = HyDEQueryTransform(llm=Imagined(), include_original=False)
        asked = hyde.run(QueryBundle("How long does it take?"))
        assert _names(index.as_retriever(similarity_top_k=1).retrieve(asked)) == [_WANTED]
        engine = TransformQueryEngine(index.as_query_engine(llm=Imagined()), hyde)
        response = engine.query("How long does it take?")
        assert _names(response.source_nodes)[0] == _WANTED

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_pipeline_gives_the_same_vectors_with_any_number_of_workers(
        self,
        embedding: EmberdEmbedding,
        nodes: list[TextNode],
        workers: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Workers attach to the one server."""
        expected = embedding.get_text_embedding_batch(list(PASSAGES.values()))
        before = managed.live_servers()
        monkeypatch.setenv("PYTHONPATH", managed.environment()["PYTHONPATH"])
        # LlamaIndex starts no more workers than there are processors.
        monkeypatch.setattr(multiprocessing, "cpu_count", lambda: workers)
        pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
        done = {
            node.node_id: node.embedding for node in pipeline.run(nodes=nodes, num_workers=workers)
        }
        managed.stop_resource_tracker()
        assert same([done[name] for name in PASSAGES], expected)
        assert managed.live_servers() == before

    async def test_a_pipeline_runs_asynchronously(
        self, embedding: EmberdEmbedding, nodes: list[TextNode]
    ) -> None:
        done = await IngestionPipeline(transformations=[embedding]).arun(nodes=nodes)
        expected = await embedding.aget_text_embedding_batch(list(PASSAGES.values()))
        assert same([node.embedding for node in done], expected)

    def test_a_pipeline_with_a_docstore_embeds_only_what_changed(
        self, embedding: EmberdEmbedding, seen: Seen
    ) -> None:
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(), embedding],
            docstore=SimpleDocumentStore(),
            docstore_strategy=DocstoreStrategy.DUPLICATES_ONLY,
            disable_cache=True,
        )
        pipeline.run(documents=_documents())
        assert seen.taken() == sorted(PASSAGES.values())
        pipeline.run(documents=[*_documents(), Document(id_="new", text="A new one.")])
        assert seen.taken() == ["A new one."]

    def test_a_cache_that_was_saved_saves_the_next_process_the_embedding(
        self,
        embedding: EmberdEmbedding,
        embedding_params: dict[str, Any],
        nodes: list[TextNode],
        seen: Seen,
        tmp_path: Path,
    ) -> None:
        pipeline = IngestionPipeline(transformations=[embedding])
        first = pipeline.run(nodes=nodes)
        pipeline.cache.persist(str(tmp_path / "cache.json"))
        assert seen.taken() == sorted(PASSAGES.values())

        def run_again(**settings: Any) -> list[str]:
            cache = IngestionCache.from_persist_path(str(tmp_path / "cache.json"))
            made = EmberdEmbedding(**{**embedding_params, **settings})
            again = IngestionPipeline(transformations=[made], cache=cache).run(nodes=nodes)
            if not settings:
                assert same([n.embedding for n in again], [n.embedding for n in first])
            return seen.taken()

        assert run_again() == []
        assert run_again(text_instruction="body: {text}") == sorted(PASSAGES.values())

    def test_an_index_that_was_saved_is_found_again(
        self,
        embedding: EmberdEmbedding,
        embedding_params: dict[str, Any],
        nodes: list[TextNode],
        seen: Seen,
        tmp_path: Path,
    ) -> None:
        VectorStoreIndex(nodes, embed_model=embedding).storage_context.persist(str(tmp_path))
        seen.taken()
        again = EmberdEmbedding(**embedding_params)
        context = StorageContext.from_defaults(persist_dir=str(tmp_path))
        index = load_index_from_storage(context, embed_model=again)
        retriever = index.as_retriever(similarity_top_k=len(PASSAGES))
        query, *_ = QUERIES
        found = retriever.retrieve(query)
        assert seen.taken() == [query]
        assert _scores(found) == _expected(embedding, query)
