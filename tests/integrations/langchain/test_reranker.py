"""``EmberdReranker`` in LangChain's retrieval: retrievers, pipelines, documents, callbacks."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from emberd import TextError
from emberd.prompts import rerank_frame
from fake_reranker import MODEL, FakeReranker
from langchain_emberd import EmberdEmbeddings, EmberdReranker
from managed import MODEL as DEMO
from managed import PASSAGES

QUERY = "Why is the Baltic almost fresh water?"


@pytest.fixture
def server() -> Iterator[FakeReranker]:
    with FakeReranker() as running:
        yield running


@pytest.fixture
def reranker(server: FakeReranker) -> EmberdReranker:
    return EmberdReranker(model=MODEL, base_url=server.url)


@pytest.fixture
def store() -> InMemoryVectorStore:
    made = InMemoryVectorStore(EmberdEmbeddings(model=DEMO))
    made.add_texts(
        list(PASSAGES.values()), [{"name": name} for name in PASSAGES], ids=list(PASSAGES)
    )
    return made


def _scores(documents: Any) -> list[float]:
    return [document.metadata["relevance_score"] for document in documents]


def test_it_is_a_document_compressor(reranker: EmberdReranker) -> None:
    assert isinstance(reranker, BaseDocumentCompressor)


# ---------------------------------------------------------------- documents


def test_results_are_copies_and_the_documents_stay_as_they_were(reranker: EmberdReranker) -> None:
    class Page(Document):
        number: int = 0

    documents = [
        Page(page_content=text, id=name, metadata={"tags": [name], "score": 1}, number=3)
        for name, text in PASSAGES.items()
    ]
    before = copy.deepcopy(documents)
    found = reranker.compress_documents(tuple(documents), QUERY)
    for each in found:
        assert isinstance(each, Page)
        assert each.id is not None
        assert (each.page_content, each.number) == (PASSAGES[each.id], 3)
        assert each.metadata == {
            "tags": [each.id],
            "score": 1,
            "relevance_score": each.metadata["relevance_score"],
        }
        each.metadata["tags"].append("changed")
    assert documents == before


def test_a_score_of_an_earlier_reranker_is_replaced(
    reranker: EmberdReranker, server: FakeReranker
) -> None:
    documents = [Document(text, metadata={"relevance_score": 9}) for text in PASSAGES.values()]
    first = reranker.compress_documents(documents, QUERY)
    again = reranker.compress_documents(list(reversed(first)), QUERY)
    assert again == first
    assert all(0 <= score <= 1 for score in _scores(first))


def test_a_document_that_is_a_text_raises_an_error_with_its_place(reranker: EmberdReranker) -> None:
    mixed: list[Any] = [Document("a"), "b"]
    with pytest.raises(TextError, match="not Document") as caught:
        reranker.compress_documents(mixed, QUERY)
    assert caught.value.index == 1


async def test_what_is_no_list_of_documents_is_an_error(reranker: EmberdReranker) -> None:
    wrong: Any = None
    with pytest.raises(TextError):
        reranker.compress_documents(wrong, QUERY)
    with pytest.raises(TextError):
        await reranker.acompress_documents(wrong, QUERY)


async def test_metadata_that_cannot_be_copied_is_shared(reranker: EmberdReranker) -> None:
    metadata = {"lock": threading.Lock()}
    document = Document("a", metadata=metadata)
    (found,) = reranker.compress_documents([document], QUERY)
    (again,) = await reranker.acompress_documents([document], QUERY)
    for each in (found, again):
        assert each.metadata == {**metadata, "relevance_score": each.metadata["relevance_score"]}
    assert document.metadata == metadata


async def test_other_tasks_run_while_documents_are_copied(reranker: EmberdReranker) -> None:
    copied: list[int] = []

    class Counted:
        def __deepcopy__(self, memo: Any) -> int:
            copied.append(1)
            return 0

    seen = set()
    documents = [Document(f"text {n}", metadata={"counted": Counted()}) for n in range(200)]
    task = asyncio.create_task(reranker.acompress_documents(documents, QUERY))
    while not task.done():
        await asyncio.sleep(0)
        seen.add(len(copied))
    assert len(await task) == 200
    assert seen - {0, 200}


# ---------------------------------------------------------------- retrievers


async def test_a_compression_retriever_returns_the_best_of_what_was_retrieved(
    reranker: EmberdReranker, server: FakeReranker, store: InMemoryVectorStore
) -> None:
    retriever = ContextualCompressionRetriever(
        base_retriever=store.as_retriever(search_kwargs={"k": 3}),
        base_compressor=reranker.model_copy(update={"top_n": 2}),
    )
    found = retriever.invoke(QUERY)
    retrieved = store.similarity_search(QUERY, k=3)
    frame = rerank_frame(QUERY)
    assert {item for items in server.scored for item in items} >= {
        document.page_content.join(frame) for document in retrieved
    }
    expected = reranker.compress_documents(retrieved, QUERY)
    assert found == expected[:2]
    assert _scores(found) == sorted(_scores(expected), reverse=True)[:2]
    assert await retriever.ainvoke(QUERY) == found


def test_a_retriever_that_finds_nothing_returns_nothing(reranker: EmberdReranker) -> None:
    empty = InMemoryVectorStore(EmberdEmbeddings(model=DEMO)).as_retriever()
    retriever = ContextualCompressionRetriever(base_retriever=empty, base_compressor=reranker)
    assert retriever.invoke(QUERY) == []


async def test_it_is_a_step_of_a_compressor_pipeline(
    reranker: EmberdReranker, store: InMemoryVectorStore
) -> None:
    best = reranker.model_copy(update={"top_n": 1})
    pipeline = DocumentCompressorPipeline(transformers=[reranker, best])
    documents = store.similarity_search(QUERY, k=4)
    expected = best.compress_documents(documents, QUERY)
    assert pipeline.compress_documents(documents, QUERY, callbacks=[]) == expected
    assert await pipeline.acompress_documents(documents, QUERY, callbacks=[]) == expected


async def test_it_is_a_step_of_a_chain(
    reranker: EmberdReranker, store: InMemoryVectorStore
) -> None:
    def rank(given: dict[str, Any]) -> list[Document]:
        return reranker.compress_documents(given["documents"], given["query"])

    async def arank(given: dict[str, Any]) -> list[Document]:
        return await reranker.acompress_documents(given["documents"], given["query"])

    asked: Any = {"query": RunnableLambda(str), "documents": store.as_retriever()}
    chain = asked | RunnableLambda(rank, afunc=arank)
    expected = reranker.compress_documents(store.similarity_search(QUERY, k=4), QUERY)
    assert chain.invoke(QUERY) == expected
    assert await chain.ainvoke(QUERY) == expected


async def test_callbacks_see_the_reranked_documents(
    reranker: EmberdReranker, store: InMemoryVectorStore
) -> None:
    class Seen(BaseCallbackHandler):
        def __init__(self) -> None:
            self.ends: list[Any] = []

        def on_retriever_end(self, documents: Any, **_: Any) -> None:
            self.ends.append(documents)

    retriever = ContextualCompressionRetriever(
        base_retriever=store.as_retriever(), base_compressor=reranker
    )
    for is_async in (False, True):
        seen = Seen()
        config: Any = {"callbacks": [seen]}
        found = (
            await retriever.ainvoke(QUERY, config) if is_async else retriever.invoke(QUERY, config)
        )
        retrieved, reranked = seen.ends
        assert reranked == found
        assert {each.id for each in retrieved} == {each.id for each in reranked}
        assert all("relevance_score" not in each.metadata for each in retrieved)
