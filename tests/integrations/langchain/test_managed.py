"""``EmberdEmbeddings`` at work, with the server that emberd found or started."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os

import numpy as np
import pytest
from langchain_core.vectorstores import InMemoryVectorStore

import managed
from langchain_emberd import EmberdEmbeddings
from managed import DIMENSIONS, MODEL, PASSAGES, QUERIES, same


@pytest.fixture
def embeddings() -> EmberdEmbeddings:
    return EmberdEmbeddings(model=MODEL)


def test_a_vector_store_finds_what_was_put_in(embeddings: EmberdEmbeddings) -> None:
    store = InMemoryVectorStore(embeddings)
    store.add_texts(list(PASSAGES.values()), ids=list(PASSAGES))
    assert {query: store.similarity_search(query, k=1)[0].id for query in QUERIES} == QUERIES


async def test_a_vector_store_finds_it_asynchronously_too(embeddings: EmberdEmbeddings) -> None:
    store = InMemoryVectorStore(embeddings)
    await store.aadd_texts(list(PASSAGES.values()), ids=list(PASSAGES))
    found = [(await store.asimilarity_search(query, k=1))[0].id for query in QUERIES]
    assert found == list(QUERIES.values())


async def test_both_ways_give_the_same_vectors(embeddings: EmberdEmbeddings) -> None:
    texts = list(PASSAGES.values())
    documents = embeddings.embed_documents(texts)
    query = embeddings.embed_query(texts[0])
    assert same(documents, await embeddings.aembed_documents(texts))
    assert same(query, await embeddings.aembed_query(texts[0]))
    assert not same(query, documents[0]), "a query is not a document"


def test_vectors_have_norm_one_in_each_dimension() -> None:
    with pytest.warns(UserWarning, match="not trained"):
        short = EmberdEmbeddings(model=MODEL, dimensions=64).embed_query("a text")
    native = EmberdEmbeddings(model=MODEL).embed_query("a text")
    assert (len(native), len(short)) == (DIMENSIONS, 64)
    assert np.linalg.norm(native) == pytest.approx(1, abs=1e-6)
    head = np.array(native[:64]) / np.linalg.norm(native[:64])
    assert same(short, head)


@pytest.mark.parametrize("text", ["", " \n\t", "a\nb\r\nc", "中文 🙂 עברית", "{text} %s {0}"])
def test_texts_of_every_shape_are_embedded(embeddings: EmberdEmbeddings, text: str) -> None:
    (vector,) = embeddings.embed_documents([text])
    assert len(vector) == len(embeddings.embed_query(text)) == DIMENSIONS


def test_threads_share_an_object_and_get_their_own_answers(embeddings: EmberdEmbeddings) -> None:
    texts = [f"{number} bottles" for number in range(12)]
    expected = embeddings.embed_documents(texts)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda text: embeddings.embed_documents([text])[0], texts))
    assert same(got, expected)


def test_one_object_works_in_one_event_loop_after_another(embeddings: EmberdEmbeddings) -> None:
    first = asyncio.run(embeddings.aembed_query("again"))
    assert same(asyncio.run(embeddings.aembed_query("again")), first)


def test_spawned_workers_attach_to_the_one_server(
    embeddings: EmberdEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embeddings.embed_query("a worker's text")
    url = embeddings.endpoint().url
    monkeypatch.setenv("PYTHONPATH", managed.environment()["PYTHONPATH"])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.map(_in_worker, [embeddings] * 4, chunksize=1)
    assert {answer[1] for answer in answers} == {url}
    assert os.getpid() not in {answer[0] for answer in answers}
    assert all(same(vector, expected) for _, _, vector in answers)


def test_a_progress_bar_shows_how_far_documents_are(capsys: pytest.CaptureFixture[str]) -> None:
    shown = EmberdEmbeddings(model=MODEL, show_progress_bar=True, batch_size=2)
    shown.embed_documents(list(PASSAGES.values()))
    output = capsys.readouterr()
    assert "embedding" in output.err
    assert "100%" in output.err
    assert output.out == ""


def test_the_endpoint_suits_any_openai_client(embeddings: EmberdEmbeddings) -> None:
    from openai import OpenAI

    at = embeddings.endpoint()
    with OpenAI(base_url=at.base_url, api_key=at.api_key, max_retries=0) as client:
        reply = client.embeddings.create(model=at.model, input="query: plain")
    vector = np.array(reply.data[0].embedding)
    assert same(embeddings.embed_query("plain"), vector / np.linalg.norm(vector))


def _in_worker(embeddings: EmberdEmbeddings) -> tuple[int, str, list[float]]:
    vector = embeddings.embed_query("a worker's text")
    return os.getpid(), embeddings.endpoint().url, vector
