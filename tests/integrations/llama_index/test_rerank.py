"""``EmberdRerank`` in LlamaIndex's retrieval: query engines, nodes, events, dictionaries."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    EventPayload,
    LlamaDebugHandler,
)
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    IndexNode,
    MetadataMode,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from pydantic import PrivateAttr, SecretStr

from emberd import EmberdError, RejectedError, SettingError
from emberd.prompts import rerank_frame
from fake_reranker import MODEL, FakeReranker
from llama_index.embeddings.emberd import EmberdEmbedding
from llama_index.postprocessor.emberd import EmberdRerank
from managed import MODEL as DEMO
from managed import PASSAGES

QUERY = "Why is the Baltic almost fresh water?"


@pytest.fixture
def server() -> Iterator[FakeReranker]:
    with FakeReranker() as running:
        yield running


@pytest.fixture
def rerank(server: FakeReranker) -> EmberdRerank:
    return EmberdRerank(model=MODEL, base_url=server.url)


def _hits() -> list[NodeWithScore]:
    """Retrieved nodes with metadata; the best first."""
    return [
        NodeWithScore(
            node=TextNode(id_=name, text=text, metadata={"name": name}), score=1 - number / 10
        )
        for number, (name, text) in enumerate(PASSAGES.items())
    ]


def _names(found: list[NodeWithScore]) -> list[str]:
    return [hit.node.node_id for hit in found]


def _as_json(hits: list[NodeWithScore]) -> list[str]:
    return [hit.to_json() for hit in hits]


def test_it_is_a_postprocessor(rerank: EmberdRerank) -> None:
    assert isinstance(rerank, BaseNodePostprocessor)
    assert EmberdRerank.class_name() == "EmberdRerank"


# ---------------------------------------------------------------- nodes


def test_nodes_are_scored_with_their_metadata_and_are_not_changed(
    rerank: EmberdRerank, server: FakeReranker
) -> None:
    hits = _hits()
    before = _as_json(hits)
    found = rerank.postprocess_nodes(hits, query_str=QUERY)
    sent = {item for items in server.scored for item in items}
    frame = rerank_frame(QUERY)
    assert sent >= {hit.node.get_content(MetadataMode.EMBED).join(frame) for hit in hits}
    assert sorted(_names(found)) == sorted(PASSAGES)
    scores = [hit.get_score(raise_error=True) for hit in found]
    assert scores == sorted(scores, reverse=True)
    assert _as_json(hits) == before
    assert all(hit.node.metadata == {"name": hit.node.node_id} for hit in found)


def test_the_score_of_the_retriever_is_kept_on_request_and_in_no_text(
    rerank: EmberdRerank,
) -> None:
    keeping = rerank.model_copy(update={"keep_retrieval_score": True})
    hits = _hits()
    before = _as_json(hits)
    found = keeping.postprocess_nodes(hits, query_str=QUERY)
    assert _as_json(hits) == before
    retrieved = {hit.node.node_id: hit for hit in hits}
    for hit in found:
        original = retrieved[hit.node.node_id]
        assert hit.node.metadata == {"name": hit.node.node_id, "retrieval_score": original.score}
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert hit.node.get_content(mode) == original.node.get_content(mode)
    # The texts are the same, so a second reranking gives the same scores.
    again = keeping.postprocess_nodes(found, query_str=QUERY)
    assert [(hit.node.node_id, hit.score) for hit in again] == [
        (hit.node.node_id, hit.score) for hit in found
    ]
    assert [hit.node.metadata["retrieval_score"] for hit in again] == [hit.score for hit in found]


def test_nodes_keep_their_classes(rerank: EmberdRerank) -> None:
    class Hit(NodeWithScore):
        source: str = ""

    hits: list[NodeWithScore] = [
        Hit(node=IndexNode(text="a", index_id="i"), score=None, source="s"),
        NodeWithScore(node=TextNode(text="")),
    ]
    found = rerank.model_copy(update={"keep_retrieval_score": True}).postprocess_nodes(
        hits, query_str=QUERY
    )
    [index_hit] = [hit for hit in found if isinstance(hit, Hit)]
    assert isinstance(index_hit.node, IndexNode)
    assert (index_hit.source, index_hit.node.index_id) == ("s", "i")
    assert index_hit.node.metadata == {"retrieval_score": None}


def test_top_n_can_be_assigned_as_in_other_postprocessors(rerank: EmberdRerank) -> None:
    rerank.top_n = 2
    assert len(rerank.postprocess_nodes(_hits(), query_str=QUERY)) == 2
    rerank.top_n = 0
    with pytest.raises(SettingError, match="top_n=0"):
        rerank.postprocess_nodes(_hits(), query_str=QUERY)


@pytest.mark.parametrize("nodes", [[], _hits()], ids=["none", "four"])
async def test_a_missing_query_is_an_error(nodes: list[NodeWithScore]) -> None:
    rerank = EmberdRerank(model=MODEL, base_url="http://127.0.0.1:9")
    with pytest.raises(SettingError, match="query_bundle"):
        rerank.postprocess_nodes(nodes)
    with pytest.raises(ValueError, match="query_bundle"):
        await rerank.apostprocess_nodes(nodes)


# ---------------------------------------------------------------- query engines


@pytest.fixture
def index() -> VectorStoreIndex:
    nodes = [TextNode(id_=name, text=text) for name, text in PASSAGES.items()]
    return VectorStoreIndex(nodes, embed_model=EmberdEmbedding(model_name=DEMO))


async def test_a_query_engine_answers_from_the_best_of_what_was_retrieved(
    rerank: EmberdRerank, index: VectorStoreIndex
) -> None:
    few = rerank.model_copy(update={"top_n": 2})
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=3, node_postprocessors=[few])
    retrieved = index.as_retriever(similarity_top_k=3).retrieve(QUERY)
    expected = rerank.postprocess_nodes(retrieved, query_str=QUERY)[:2]
    for answer in (engine.query(QUERY), await engine.aquery(QUERY)):
        assert _names(answer.source_nodes) == _names(expected)
        assert [hit.score for hit in answer.source_nodes] == [hit.score for hit in expected]
        # MockLLM answers with the prompt, in which the best passage comes first.
        text = str(answer)
        first, second = (text.index(PASSAGES[name]) for name in _names(expected))
        assert first < second
        assert sum(passage in text for passage in PASSAGES.values()) == 2


async def test_a_retriever_query_engine_reranks_in_retrieve(
    rerank: EmberdRerank, index: VectorStoreIndex
) -> None:
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=4), llm=MockLLM(), node_postprocessors=[rerank]
    )
    bundle = QueryBundle(QUERY)
    found = engine.retrieve(bundle)
    assert _names(found) == _names(rerank.postprocess_nodes(_bare(_hits()), query_bundle=bundle))
    assert _names(await engine.aretrieve(bundle)) == _names(found)


def _bare(hits: list[NodeWithScore]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(id_=hit.node.node_id, text=hit.text)) for hit in hits]


def test_the_text_of_the_query_is_scored_and_not_what_replaces_it_for_embedding(
    rerank: EmberdRerank, server: FakeReranker
) -> None:
    """As HyDE's generated document does."""
    bundle = QueryBundle(QUERY, custom_embedding_strs=["a generated document"])
    rerank.postprocess_nodes(_hits(), query_bundle=bundle)
    assert all(f"<Query>: {QUERY}\n" in item for item in server.scored[-1])


# ---------------------------------------------------------------- events


class Seen(BaseEventHandler):
    """Collects the events of rerankers."""

    _events: list[Any] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Seen"

    @property
    def events(self) -> list[Any]:
        return self._events

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self._events.append(event)


@pytest.fixture
def seen() -> Iterator[Seen]:
    root, handler = get_dispatcher(), Seen()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


async def _ranked(
    rerank: EmberdRerank, hits: list[NodeWithScore], *, is_async: bool
) -> list[NodeWithScore]:
    bundle = QueryBundle(QUERY)
    if is_async:
        return await rerank.apostprocess_nodes(hits, bundle)
    return rerank.postprocess_nodes(hits, bundle)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("top_n", "told"), [(3, 3), (None, 4)])
async def test_instrumentation_gets_the_start_and_the_end(
    rerank: EmberdRerank, seen: Seen, is_async: bool, top_n: int | None, told: int
) -> None:
    rerank.top_n = top_n
    hits = _hits()
    found = await _ranked(rerank, hits, is_async=is_async)
    start, end = seen.events
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(start.query, QueryBundle)
    assert start.query.query_str == QUERY
    assert (start.top_n, start.model_name) == (told, MODEL)
    assert _as_json(start.nodes) == _as_json(hits)
    assert isinstance(end, ReRankEndEvent)
    assert _as_json(end.nodes) == _as_json(found)


@pytest.mark.parametrize("is_async", [False, True])
async def test_callbacks_get_the_start_and_the_end(rerank: EmberdRerank, is_async: bool) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    rerank.callback_manager = CallbackManager([handler])
    hits = _hits()
    found = await _ranked(rerank, hits, is_async=is_async)
    ((start, end),) = handler.get_event_pairs(CBEventType.RERANKING)
    assert start.payload == {
        EventPayload.NODES: hits,
        EventPayload.MODEL_NAME: MODEL,
        EventPayload.QUERY_STR: QUERY,
        EventPayload.TOP_K: 4,
    }
    assert end.payload == {EventPayload.NODES: found}


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_failure_ends_the_event_of_callbacks_with_its_error(
    rerank: EmberdRerank, server: FakeReranker, seen: Seen, is_async: bool
) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    rerank.callback_manager = CallbackManager([handler])
    server.refuses = "Marie Curie"
    with pytest.raises(RejectedError):
        await _ranked(rerank, _hits(), is_async=is_async)
    ((_, end),) = handler.get_event_pairs(CBEventType.RERANKING)
    assert isinstance((end.payload or {})[EventPayload.EXCEPTION], RejectedError)
    assert [type(event) for event in seen.events] == [ReRankStartEvent]


async def test_nothing_to_rank_is_no_event(seen: Seen) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    rerank = EmberdRerank(model=MODEL, base_url="http://127.0.0.1:9")
    rerank.callback_manager = CallbackManager([handler])
    for is_async in (False, True):
        assert await _ranked(rerank, [], is_async=is_async) == []
    assert seen.events == []
    assert handler.get_event_pairs(CBEventType.RERANKING) == []


# ---------------------------------------------------------------- dictionaries and pickles


def test_a_dictionary_leads_back_to_an_equal_object_without_the_key() -> None:
    made = EmberdRerank(
        model=MODEL,
        base_url="http://127.0.0.1:9",
        instruction="code",
        idle_timeout=None,
        top_n=4,
        keep_retrieval_score=True,
        api_key=SecretStr("sk-made-up"),
    )
    told = made.to_json()
    assert "sk-made-up" not in told
    assert json.loads(told)["class_name"] == "EmberdRerank"
    back = EmberdRerank.from_dict(json.loads(told))
    assert back.to_dict() == made.to_dict()
    assert back.api_key is None
    default = EmberdRerank()
    assert EmberdRerank.from_dict(default.to_dict()) == default


def test_a_handler_that_cannot_be_pickled_stays_with_the_object(
    rerank: EmberdRerank, caplog: pytest.LogCaptureFixture
) -> None:
    """BaseComponent deletes what cannot be pickled from the object itself."""
    handler = LlamaDebugHandler(print_trace_on_end=False)
    handler.lock = threading.Lock()  # type: ignore[attr-defined]
    rerank.callback_manager = manager = CallbackManager([handler])
    back = pickle.loads(pickle.dumps(rerank))
    assert rerank.callback_manager is manager
    assert back.callback_manager.handlers == []
    assert "callback_manager" in caplog.text
    assert _names(back.postprocess_nodes(_hits(), query_str=QUERY)) == _names(
        rerank.postprocess_nodes(_hits(), query_str=QUERY)
    )


def test_none_for_the_callback_manager_means_not_given() -> None:
    assert EmberdRerank(callback_manager=None).callback_manager is not None  # type: ignore[arg-type]


async def test_a_query_that_is_no_text_is_an_error_of_emberd(rerank: EmberdRerank) -> None:
    wrong: Any = QueryBundle(query_str=None)  # type: ignore[arg-type]
    with pytest.raises(EmberdError, match="not str"):
        rerank.postprocess_nodes(_hits(), wrong)
