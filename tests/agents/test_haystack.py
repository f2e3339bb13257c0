"""The recipe for Haystack, and the prefixes of Haystack's embedders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from agents.recipes import BOATS, BREAD, QWEN_TEMPLATE, TWO_LINES, Recipe, Sent
from emberd import Embedder
from managed import same


@pytest.fixture(scope="session", autouse=True)
def _silent() -> Iterator[None]:
    """Keep Haystack from reporting; it reads this at its import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        yield


def _pipeline(made: Any) -> Any:
    """Return a pipeline that searches two documents, whose vectors the recipe made."""
    from haystack import Pipeline
    from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    documents = [made.Document(content=text) for text in (BREAD, BOATS)]
    store.write_documents(made.EmberdDocumentEmbedder().run(documents)["documents"])
    pipeline = Pipeline()
    pipeline.add_component("query", made.EmberdTextEmbedder())
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=1))
    pipeline.connect("query.embedding", "retriever.query_embedding")
    return pipeline


def _found(pipeline: Any) -> str:
    answer = pipeline.run({"query": {"text": TWO_LINES}})
    content: str = answer["retriever"]["documents"][0].content
    return content


@contextmanager
def _own(kind: str, template: str, embedder: Embedder) -> Iterator[Any]:
    """Yield one of Haystack's own embedders with the settings of the page, and close it."""
    from haystack.components import embedders
    from haystack.utils import Secret

    server = embedder.endpoint()
    own = getattr(embedders, kind)(
        api_base_url=server.base_url,
        api_key=Secret.from_token(server.api_key or "none"),
        model=server.model,
        prefix=template.removesuffix("{text}"),
    )
    try:
        yield own
    finally:
        own.close()


def test_a_pipeline_of_the_recipe_finds_the_document(recipe: Recipe) -> None:
    assert _found(_pipeline(recipe("Haystack"))) == BREAD


def test_a_pipeline_read_from_yaml_finds_it_too(recipe: Recipe) -> None:
    pipeline = _pipeline(recipe("Haystack"))
    again = type(pipeline).loads(pipeline.dumps(), allowed_modules=["emberd.adapters.haystack"])
    assert _found(again) == BREAD


def test_each_component_sends_its_role(recipe: Recipe, sent_to_demo: Sent) -> None:
    _found(_pipeline(recipe("Haystack")))
    # The others are those of verifications.
    sent = [text for text in sent_to_demo() if text.startswith(("passage: ", "query: "))]
    assert sent == [f"passage: {BREAD}", f"passage: {BOATS}", f"query: {TWO_LINES}"]


def test_qwen_gets_its_templates_to_the_byte(recipe: Recipe, sent_to_qwen: Sent) -> None:
    _found(_pipeline(recipe("Haystack")))
    assert {BREAD, BOATS, QWEN_TEMPLATE.replace("{text}", TWO_LINES)} <= set(sent_to_qwen())


def test_its_own_embedders_send_templates_to_the_byte_by_their_prefix(sent_to_demo: Sent) -> None:
    from haystack import Document

    # Qwen's form, newline included; the fake server takes no text that is not in a list.
    embedder = Embedder(query_instruction=QWEN_TEMPLATE)
    with _own("OpenAITextEmbedder", embedder.query_template, embedder) as own:
        own.run(TWO_LINES)
    with _own("OpenAIDocumentEmbedder", embedder.document_template, embedder) as own:
        own.progress_bar = False
        own.run([Document(content=BREAD)])
    assert sent_to_demo()[-2:] == [QWEN_TEMPLATE.replace("{text}", TWO_LINES), f"passage: {BREAD}"]


def test_its_own_embedders_get_the_vectors_that_emberd_gets() -> None:
    embedder = Embedder()
    with _own("OpenAITextEmbedder", embedder.query_template, embedder) as own:
        vector = own.run(TWO_LINES)["embedding"]
    assert same(vector, embedder.embed_query(TWO_LINES))
