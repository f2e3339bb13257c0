"""Servers of other kinds as base_url: what works, what is refused, and how it is said."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberd import Embedder
from emberd.client.verify import verify
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    RejectedError,
    ServerMismatchError,
    ServerUnavailableError,
    TextError,
    TextTooLongError,
)
from emberd.probe import TEI
from emberd.settings import ServerSpec
from fake_server import END_OF_TEXT, QWEN, FakeServer, vectors_of
from http_server import Request, reply
from other_servers import (
    Generator,
    Infinity,
    LlamaCpp,
    Mixed,
    Reranker,
    Router,
    ShortOfMemory,
    Tei,
    Vllm,
)

DIMENSIONS = 1024
KINDS: list[type[FakeServer]] = [Router, Vllm, LlamaCpp]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)

Serve = Callable[..., FakeServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of a kind with a model of the catalog."""
    with ExitStack() as started:

        def start(kind: type[FakeServer], **knobs: Any) -> FakeServer:
            usual = {"model": QWEN, "dimensions": DIMENSIONS, "context_tokens": 1000}
            return started.enter_context(kind(**{**usual, **knobs}))

        yield start


def embedder(server: FakeServer, **settings: Any) -> Embedder:
    return Embedder(QWEN, base_url=server.url, **settings)


def found_at(server: FakeServer, model: str = QWEN) -> Endpoint:
    return verify(server.url, None, ServerSpec(model=model), timeout_s=5)


@every_kind
def test_its_vectors_are_the_models(serve: Serve, kind: type[FakeServer]) -> None:
    texts = ["one", "two, longer", "向量"]
    vectors = embedder(serve(kind)).embed_documents(texts)
    assert np.abs(vectors - vectors_of(texts, DIMENSIONS)).max() < 1e-6


@every_kind
def test_an_empty_text_is_the_end_of_text_and_white_space_is_itself(
    serve: Serve, kind: type[FakeServer]
) -> None:
    server = serve(kind)
    texts = ["a", "", " ", "\x1c\n", "\u200b"]
    vectors = embedder(server).embed_documents(texts)
    assert np.abs(vectors - vectors_of(texts, DIMENSIONS)).max() < 1e-6
    sent = [given for batch in server.embedded for given in batch]
    assert [END_OF_TEXT] in sent
    assert (" " in sent) == (kind is not Router)  # what SGLang refuses, the others take


@every_kind
def test_a_text_is_sent_as_the_reference_tokenizer_normalises_it(
    serve: Serve, kind: type[FakeServer]
) -> None:
    vectors = embedder(serve(kind)).embed_documents(["cafe\u0301", "\u2000"])
    assert np.abs(vectors - vectors_of(["café", "\u2002"], DIMENSIONS)).max() < 1e-6


@pytest.mark.parametrize("knows_special", [True, False])
def test_special_tokens_are_sent_to_llama_cpp_as_their_ids(
    serve: Serve, knows_special: bool
) -> None:
    server = serve(LlamaCpp)
    server.knows_special = knows_special  # type: ignore[attr-defined]
    embedder(server).embed_documents(["a", "b<|im_end|>c<|endoftext|>"])
    ids = [*b"b", 151_645, *b"c", END_OF_TEXT, END_OF_TEXT]
    assert [ids] in server.embedded


def test_what_llama_cpp_takes_for_a_special_token_is_sent_as_the_tokens_of_the_text(
    serve: Serve,
) -> None:
    """It finds ``</s>``, an ordinary token of Qwen3's vocabulary that no text is split into."""
    server = serve(LlamaCpp)
    texts = ["a", "<s>struck</s>", "</s>", "</s><|im_end|>"]
    vectors = embedder(server).embed_documents(texts)
    assert np.abs(vectors[:3] - vectors_of(texts[:3], DIMENSIONS)).max() < 1e-6
    sent = [given for batch in server.embedded for given in batch]
    assert [*b"</s>", 151_645, END_OF_TEXT] in sent


def test_a_text_that_an_unknown_server_would_trim_is_named(serve: Serve) -> None:
    server = serve(Infinity)
    asking = embedder(server)
    assert asking.endpoint().trims
    texts = ["a", "def f():\n    pass\n", "\u200bb", "c d"]
    with pytest.raises(TextError) as caught:
        asking.embed_documents(texts)
    assert caught.value.index == 1
    _, aside, *_ = found = [*asking.iter_documents(texts, set_aside=True)]
    assert isinstance(aside, TextError)
    kept = [vector for vector in found if not isinstance(vector, TextError)]
    expected = vectors_of([texts[0], *texts[2:]], DIMENSIONS)
    assert np.abs(np.stack(kept) - expected).max() < 1e-6
    sent = [given for batch in server.embedded for given in batch]
    assert texts[1] not in sent


def test_a_server_that_takes_one_text_in_a_request_is_seen_to_trim(serve: Serve) -> None:
    server = serve(Infinity)
    server.most_texts = 1
    assert embedder(server, batch_size=1).endpoint().trims


def test_white_space_that_neither_the_server_nor_the_model_reads_is_no_error(serve: Serve) -> None:
    model = {"model": "BAAI/bge-small-en-v1.5", "dimensions": 384, "context_tokens": 512}
    server = serve(Infinity, **model)
    vectors = Embedder(server.model, base_url=server.url).embed_documents(["a \n", "a"])
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6


def test_a_text_that_may_be_cut_is_sent_if_that_is_wanted_and_the_first_token_counts(
    serve: Serve,
) -> None:
    model = {"model": "BAAI/bge-small-en-v1.5", "dimensions": 384, "context_tokens": 512}
    server = serve(Infinity, **model)
    text = "word " * 200
    with pytest.raises(TextTooLongError):
        Embedder(server.model, base_url=server.url).embed_documents([text])
    asking = Embedder(server.model, base_url=server.url, truncate=True)
    assert asking.embed_documents([text]).shape == (1, 384)


class _Limited(Infinity):
    """Keeps white space, refuses long texts, and first answers some of such requests otherwise."""

    trims = cuts = False
    statuses: tuple[int, ...] = ()

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        given = request.body["input"]
        if self.statuses and any(text != text.strip() or len(text) > 1000 for text in given):
            status, *rest = self.statuses
            self.statuses = tuple(rest)
            return reply(status, {"error": "not this one"})
        return super()._embeddings(request, connection)


@pytest.mark.parametrize(
    ("statuses", "may_trim"),
    [((422,), False), ((429,), False), ((500,), False), ((429, 429), True), ((500, 503), True)],
)
def test_only_an_answer_shows_that_white_space_is_not_removed(
    serve: Serve, statuses: tuple[int, ...], may_trim: bool
) -> None:
    server = serve(_Limited)
    server.statuses = statuses  # type: ignore[attr-defined]
    asking = embedder(server)
    if not may_trim:
        assert asking.embed_documents([" a"]).shape == (1, DIMENSIONS)
        return
    with pytest.warns(UserWarning, match=str(statuses[-1])):
        asking.ensure()
    with pytest.raises(TextError) as caught:
        asking.embed_documents([" a"])
    assert asking.endpoint().notes[0] in str(caught.value)
    assert embedder(server).embed_documents([" a"]).shape == (1, DIMENSIONS)


@pytest.mark.parametrize(("statuses", "may_cut"), [((429,), False), ((429, 500), True)])
def test_only_an_answer_shows_that_texts_are_not_cut(
    serve: Serve, statuses: tuple[int, ...], may_cut: bool
) -> None:
    """The model ignores white space at the ends of a text, so that is not tried."""
    model = {"model": "BAAI/bge-small-en-v1.5", "dimensions": 384, "context_tokens": 512}
    server = serve(_Limited, **model)
    server.statuses = statuses  # type: ignore[attr-defined]
    asking = Embedder(server.model, base_url=server.url)
    if not may_cut:
        assert asking.embed_documents(["b" * 509]).shape == (1, 384)
        return
    with pytest.warns(UserWarning, match=str(statuses[-1])):
        asking.ensure()
    with pytest.raises(TextTooLongError) as caught:
        asking.embed_documents(["b" * 509])
    assert asking.endpoint().notes[0] in str(caught.value)


def test_a_server_that_limits_the_rate_before_it_shows_whether_it_adds_prompts_is_unavailable(
    serve: Serve,
) -> None:
    """It may be a proxy in front of emberd's gateway: each text would get its prompt twice."""
    server = serve(Infinity)
    server.limit_after = 1
    with pytest.raises(ServerUnavailableError, match="429"):
        embedder(server).endpoint()


def test_an_unknown_server_that_keeps_white_space_is_sent_it(serve: Serve) -> None:
    server = serve(Infinity)
    server.trims = False  # type: ignore[attr-defined]
    texts = ["a\n", " b"]
    vectors = embedder(server).embed_documents(texts)
    assert np.abs(vectors - vectors_of(texts, DIMENSIONS)).max() < 1e-6


@pytest.mark.parametrize("truncate", [False, True])
def test_a_text_that_an_unknown_server_may_cut_is_named(serve: Serve, truncate: bool) -> None:
    """It has no route that counts the tokens of a text, and says nothing of what it cuts."""
    server = serve(Infinity)
    asking = embedder(server, truncate=truncate)
    assert asking.endpoint().cuts
    texts = ["a", "b" * 40_000, "c" * 10_000]
    with pytest.raises(TextTooLongError) as caught:
        asking.embed_documents(texts)
    assert (caught.value.index, caught.value.tokens, caught.value.limit) == (1, None, 32_767)
    first, aside, last = asking.iter_documents(texts, set_aside=True)
    assert isinstance(aside, TextTooLongError)
    assert not isinstance(first, TextError)
    assert not isinstance(last, TextError)
    sent = [given for batch in server.embedded for given in batch]
    assert texts[1] not in sent


@pytest.mark.parametrize("cuts", [True, False])
def test_whether_an_unknown_server_cuts_is_tried_for_a_model_of_short_texts(
    serve: Serve, cuts: bool
) -> None:
    server = serve(Infinity, model="BAAI/bge-small-en-v1.5", dimensions=384, context_tokens=512)
    server.cuts = cuts  # type: ignore[attr-defined]
    asking = Embedder(server.model, base_url=server.url)
    assert asking.endpoint().cuts == cuts
    errors = [*asking.iter_documents(["b" * 508, "b" * 509, "b" * 600], set_aside=True)]
    assert not isinstance(errors[0], TextError)
    # The model reads 512 tokens; a text of 508 bytes has at most 511, and one of 600 may have more.
    assert isinstance(errors[1], TextTooLongError) == cuts
    assert isinstance(errors[2], TextError)


@pytest.mark.parametrize("file", ["sentence_bert_config.json", "tokenizer_config.json"])
def test_a_text_that_sentence_transformers_would_cut_is_refused_where_the_server_may_cut(
    serve: Serve, tmp_path: Path, file: str
) -> None:
    folder = _folder(tmp_path / "model", "short")
    name = "max_seq_length" if file.startswith("sentence") else "model_max_length"
    (folder / file).write_text(f'{{"{name}": 256}}')
    instructions: dict[str, Any] = {"query_instruction": "", "document_instruction": ""}
    texts = ["b" * 252, "b" * 253]
    refused = []
    for kind in (Infinity, FakeServer):
        server = serve(kind, model=os.fspath(folder), dimensions=16, context_tokens=512)
        asking = Embedder(server.model, base_url=server.url, **instructions)
        found = asking.iter_documents(texts, set_aside=True)
        refused.append([isinstance(each, TextTooLongError) for each in found])
    assert refused == [[False, True], [False, False]]


def test_llama_cpp_is_sent_no_text_that_an_unknown_tokenizer_may_have_to_normalise(
    serve: Serve,
) -> None:
    instructions: dict[str, Any] = {"query_instruction": "", "document_instruction": ""}
    server = serve(LlamaCpp, model="some/model", dimensions=16, end_of_text=None)
    asking = Embedder(server.model, base_url=server.url, **instructions)
    with pytest.raises(TextError, match="Text 1 is not in") as caught:
        asking.embed_documents(["caf\u00e9", "cafe\u0301"])
    assert caught.value.index == 1
    kept, aside = asking.iter_documents(["caf\u00e9", "cafe\u0301"], set_aside=True)
    assert isinstance(aside, TextError)
    assert not isinstance(kept, TextError)
    (aside,) = asking.iter_documents(["cafe\u0301"], set_aside=True)
    assert isinstance(aside, TextError)
    other = serve(Vllm, model="some/model", dimensions=16, end_of_text=None)
    asking = Embedder(other.model, base_url=other.url, **instructions)
    assert asking.embed_documents(["cafe\u0301"]).shape == (1, 16)


@every_kind
def test_special_tokens_are_left_to_the_tokenizers_of_transformers(
    serve: Serve, kind: type[FakeServer]
) -> None:
    server = serve(kind)
    embedder(server).embed_documents(["a <|im_end|> b"])
    assert (["a <|im_end|> b"] in server.embedded) == (kind is not LlamaCpp)


@every_kind
def test_it_says_what_it_is_and_how_much_it_takes(serve: Serve, kind: type[FakeServer]) -> None:
    said: dict[type[FakeServer], tuple[str, int | None]] = {
        Router: ("local", None),  # a router states no context
        Vllm: ("vllm", 1000),
        LlamaCpp: ("llamacpp", 1000),
    }
    endpoint = found_at(serve(kind))
    assert (endpoint.server, endpoint.context_tokens) == said[kind]


@every_kind
def test_vectors_are_cut_here_where_the_server_does_not_cut_them(
    serve: Serve, kind: type[FakeServer]
) -> None:
    server = serve(kind)
    cut = embedder(server, dimensions=64).embed_documents(["a", "b"])
    by_server = embedder(server, dimensions=64, server_dimensions=True).embed_documents(["a", "b"])
    assert by_server.shape == (2, 64)
    assert np.abs(by_server - cut).max() < 1e-6


def test_a_server_that_refused_to_cut_is_not_asked_again(serve: Serve) -> None:
    server = serve(Vllm)
    asking = embedder(server, dimensions=64, server_dimensions=True)
    asking.ensure()
    verified = len(server.to("/v1/embeddings"))
    asking.embed_query("a")
    asking.embed_query("b")
    asked = [r.body.get("dimensions") for r in server.to("/v1/embeddings")[verified:]]
    assert asked == [64, None, None]


def test_another_refusal_is_raised_although_dimensions_were_asked_for(serve: Serve) -> None:
    server = serve(FakeServer)
    asking = embedder(server, dimensions=64, server_dimensions=True)
    asking.ensure()
    server.answer_first(400, 400)
    with pytest.raises(RejectedError, match="try later"):
        asking.embed_query("a")


@every_kind
def test_an_over_long_text_is_named(serve: Serve, kind: type[FakeServer]) -> None:
    context = 1000 if kind is not Router else 32_768
    with pytest.raises(TextTooLongError) as caught:
        embedder(serve(kind, context_tokens=context)).embed_documents(["a", "b" * 40_000])
    assert caught.value.index == 1
    assert caught.value.limit == context - 1


@every_kind
def test_an_over_long_text_is_cut_before_its_end_of_text(
    serve: Serve, kind: type[FakeServer]
) -> None:
    server = serve(kind)
    vectors = embedder(server, truncate=True).embed_documents(["a", "b" * 40_000])
    assert vectors.shape == (2, DIMENSIONS)
    cut = [given for batch in server.embedded for given in batch if isinstance(given, list)]
    # To what a router's server takes, its first refusal says; the others state it.
    assert cut[-1] == [*b"b" * 998, END_OF_TEXT]


def test_a_text_that_is_cut_during_a_call_is_embedded_once(serve: Serve) -> None:
    """Counted twice, the call would end without the vector of the text that is answered last."""

    class Slow(Router):
        def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
            if texts[-1] in request.body["input"]:
                time.sleep(0.3)
            return super()._embeddings(request, connection)

    texts = ["b" * 1500, *(f"text {number:02}" for number in range(16))]
    server = serve(Slow)
    asking = embedder(server, truncate=True, batch_size=4, max_concurrency=2)
    vectors = asking.embed_documents(texts)
    assert np.abs(vectors[1:] - vectors_of(texts[1:], DIMENSIONS)).max() < 1e-6
    cut = [given for batch in server.embedded for given in batch if isinstance(given, list)]
    assert cut == [[*b"b" * 998, END_OF_TEXT]]


def test_a_text_that_fills_the_context_of_a_router_exactly_is_counted_with_its_end(
    serve: Serve,
) -> None:
    """The router counts without the end-of-text token: 32,767 bytes are 32,768 tokens."""
    server = serve(Router, context_tokens=32_768)
    asking = embedder(server)
    asking.ensure()
    verified = len(server.embedded)
    with pytest.raises(TextTooLongError) as caught:
        asking.embed_documents(["b" * 32_767])
    assert caught.value.tokens == 32_768
    assert len(server.embedded) == verified


class _Bert(Router):
    """A router in front of an encoder: its tokenizer omits the tokens around a text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def _ids(self, given: str | list[int]) -> list[int]:
        return given if isinstance(given, list) else [101, *given.encode(), 102]

    def _tokenize(self, request: Any, connection: Any) -> bytes:
        text = request.body["prompt"].encode()
        return reply(200, {"tokens": [*self.before, *text, *self.after]})


class _XlmRoberta(FakeServer):
    def _ids(self, given: str | list[int]) -> list[int]:
        return given if isinstance(given, list) else [0, *given.encode(), 2]


def _encoder(serve: Serve, **knobs: Any) -> _Bert:
    usual = {"model": "BAAI/bge-small-en-v1.5", "dimensions": 384, "context_tokens": 512}
    return serve(_Bert, **{**usual, **knobs})  # type: ignore[return-value]


def test_a_router_that_counts_without_the_tokens_around_a_text_serves_an_encoder(
    serve: Serve,
) -> None:
    server = _encoder(serve)
    asking = Embedder(server.model, base_url=server.url, truncate=True)
    assert asking.embed_documents(["a" * 509, "b" * 600]).shape == (2, 384)
    sent = [given for batch in server.embedded for given in batch]
    assert "a" * 509 in sent
    assert [101, *b"b" * 509, 102] in sent
    with pytest.raises(TextTooLongError) as caught:
        Embedder(server.model, base_url=server.url).embed_documents(["c" * 510])
    assert caught.value.tokens == 512


def test_counts_that_never_matched_what_a_server_read_are_not_compared_with_it(
    serve: Serve,
) -> None:
    class Silent(_Bert):
        """It states usage only once it is verified."""

        before, after = (101,), (102,)
        tells = False

        def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
            whole = super()._reply(body, inputs)
            return whole if self.tells else {**whole, "usage": None}

    server = serve(
        Silent, model="BAAI/bge-small-en-v1.5", dimensions=384, context_tokens=512, usage_off_by=1
    )
    asking = Embedder(server.model, base_url=server.url)
    asking.ensure()
    server.tells = True  # type: ignore[attr-defined]
    assert asking.embed_documents(["a" * 509]).shape == (1, 384)
    with pytest.raises(BadReplyError, match="read 3 tokens"):
        asking.embed_documents([""])  # sent as two ids


def test_a_tokenizer_that_starts_texts_otherwise_is_named(serve: Serve) -> None:
    server = _encoder(serve, usage_off_by=5)
    server.before, server.after = (7,), (102,)
    with pytest.raises(ServerMismatchError, match="without the tokens"):
        found_at(server, server.model)


def test_no_text_is_longer_than_the_model_has_positions(serve: Serve) -> None:
    """SGLang states 8194 for XLM-RoBERTa, whose first two positions no token has."""
    server = serve(_XlmRoberta, model="BAAI/bge-m3", context_tokens=8194)
    with pytest.raises(TextTooLongError) as caught:
        Embedder(server.model, base_url=server.url).embed_documents(["a" * 8191])
    assert caught.value.limit == 8191


def test_a_text_that_is_sent_as_ids_is_not_cut_unasked(serve: Serve) -> None:
    server = serve(LlamaCpp)
    asking = embedder(server)
    asking.ensure()
    server.context_tokens = 400  # 1000 when it was verified
    with pytest.raises(TextTooLongError) as caught:
        asking.embed_documents(["a</s>", "b" * 700 + "</s>"])
    assert (caught.value.index, caught.value.tokens) == (1, 705)


def test_a_server_that_takes_less_than_it_states_is_asked_for_less(serve: Serve) -> None:
    server = serve(ShortOfMemory)
    asking = embedder(server, truncate=True)
    texts = ["a", "b" * 700, "c" * 500, "d" * 300]
    assert asking.embed_documents(texts).shape == (4, DIMENSIONS)
    cut = [given for batch in server.embedded for given in batch if isinstance(given, list)]
    assert sorted(map(len, cut)) == [399, 399]
    refused = len(server.requests)
    asking.embed_documents(["e" * 700])
    assert [r.path for r in server.requests[refused:]] == ["/v1/tokenize", "/v1/embeddings"]


def test_the_text_that_is_too_long_for_less_than_it_states_is_named(serve: Serve) -> None:
    with pytest.raises(TextTooLongError) as caught:
        embedder(serve(ShortOfMemory)).embed_documents(["a", "b", "c" * 500, "d"])
    assert (caught.value.index, caught.value.tokens, caught.value.limit) == (2, 501, 399)


def test_a_router_without_servers_is_not_ready(serve: Serve) -> None:
    server = serve(Router)
    said = b'{"error":{"type":"Service Unavailable","code":"no_available_workers","message":"No'
    server.first.append(reply(503, said + b' available workers"}}'))
    with pytest.raises(ServerUnavailableError, match="503 .No available workers.: it is not ready"):
        found_at(server)


def test_a_router_of_several_models_is_refused(serve: Serve) -> None:
    with pytest.raises(ServerMismatchError, match="to several models") as caught:
        found_at(serve(Mixed))
    assert "/models/another" in str(caught.value)
    assert QWEN in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "knobs", "found"),
    [
        (Generator, {}, f"generates text with {QWEN}; it is not an embedding server"),
        (Router, {"is_generation": True}, f"generates text with {QWEN}"),
        (Reranker, {}, rf"serves {QWEN} \(BertForSequenceClassification\) for the task classify"),
        (Vllm, {"model": "BAAI/bge-m3"}, f"serves BAAI/bge-m3, but {QWEN} was requested"),
        (LlamaCpp, {"model": "/models/a.gguf"}, "serves /models/a.gguf, but"),
        (Vllm, {"end_of_text": 2}, "appends token 2"),
        (LlamaCpp, {"end_of_text": None}, "out of date|may be missing"),
    ],
)
def test_what_is_no_such_server_is_refused_with_what_was_found(
    serve: Serve, kind: type[FakeServer], knobs: dict[str, Any], found: str
) -> None:
    with pytest.raises(ServerMismatchError, match=found):
        found_at(serve(kind, **knobs))


def test_a_llama_cpp_server_of_text_says_what_it_lacks(serve: Serve) -> None:
    server = serve(LlamaCpp)
    server.embeds = False  # type: ignore[attr-defined]
    with pytest.raises(ServerMismatchError, match="answered 501: This server does not support"):
        found_at(server)


@pytest.mark.parametrize(
    "served",
    [
        "/root/.cache/huggingface/hub/models--Qwen--Qwen3-Embedding-0.6B/snapshots/c54f2e6e",
        "/models/Qwen3-Embedding-0.6B",
    ],
)
def test_a_folder_that_is_named_after_the_model_is_that_model(serve: Serve, served: str) -> None:
    assert found_at(serve(Vllm, model=served, named="house/embedder")).model == "house/embedder"


def test_the_cached_files_of_another_organisation_are_another_model(serve: Serve) -> None:
    served = "/cache/hub/models--house--Qwen3-Embedding-0.6B/snapshots/c54f2e6e"
    with pytest.raises(ServerMismatchError):
        found_at(serve(Vllm, model=served))


def _folder(path: Path, words: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(f'{{"hidden_size": 16, "about": "{words}"}}')
    return path


@pytest.mark.parametrize("kind", [FakeServer, Router, Vllm], ids=lambda kind: kind.__name__)
def test_a_folder_elsewhere_is_known_by_its_files(
    serve: Serve, tmp_path: Path, kind: type[FakeServer]
) -> None:
    mine = _folder(tmp_path / "mine" / "checkpoint-500", "mine")
    link = tmp_path / "current"
    link.symlink_to(mine)
    copy = _folder(tmp_path / "copy", "mine")
    for served in (mine, link, copy):
        server = serve(kind, model=os.fspath(served), dimensions=16)
        assert found_at(server, os.fspath(mine)).model == os.fspath(served)
    others = _folder(tmp_path / "others" / "checkpoint-500", "of another training")
    server = serve(kind, model=os.fspath(others), dimensions=16)
    with pytest.raises(ServerMismatchError, match=f"serves {others}, but {mine} was requested"):
        found_at(server, os.fspath(mine))


def test_a_folder_inside_a_container_is_known_by_its_name(serve: Serve, tmp_path: Path) -> None:
    mine = _folder(tmp_path / "tiny", "mine")
    server = serve(Vllm, model="/models/tiny", dimensions=16)
    assert found_at(server, os.fspath(mine)).model == "/models/tiny"
    with pytest.raises(ServerMismatchError):
        found_at(serve(Vllm, model="/models/other", dimensions=16), os.fspath(mine))


def test_the_path_that_was_loaded_counts_more_than_the_name_it_is_served_under(
    serve: Serve, tmp_path: Path
) -> None:
    mine = _folder(tmp_path / "mine" / "tiny", "mine")
    others = _folder(tmp_path / "others" / "x", "of another training")
    server = serve(Vllm, model=os.fspath(others), named="tiny", dimensions=16)
    with pytest.raises(ServerMismatchError):
        found_at(server, os.fspath(mine))


# ---------------------------------------------------------------- Text Embeddings Inference


def test_tei_is_used_with_what_it_says_of_itself(serve: Serve) -> None:
    server = serve(Tei, api_key="key", context_tokens=300)
    texts = ["one", "two, longer", "向量", " ", "\ttabs\n", "<|im_end|>"]
    asking = Embedder(QWEN, base_url=server.url, api_key="key")
    vectors = asking.embed_documents(texts)
    assert np.abs(vectors - vectors_of(texts, DIMENSIONS)).max() < 1e-6
    endpoint = asking.endpoint()
    assert (endpoint.server, endpoint.context_tokens, endpoint.most_texts) == (TEI, 300, 32)
    assert endpoint.counts_exactly
    assert not endpoint.trims


@pytest.mark.parametrize("served_as", [None, "embeddings"])
def test_a_name_that_tei_serves_a_model_under_is_sent_to_it(
    serve: Serve, served_as: str | None
) -> None:
    server = serve(Tei)
    server.served_as = served_as  # type: ignore[attr-defined]
    assert found_at(server).model == (served_as or QWEN)


def test_an_old_tei_serves_a_model_under_its_own_name(serve: Serve) -> None:
    server = serve(Tei)
    server.without = ("served_model_name",)  # type: ignore[attr-defined]
    assert found_at(server).model == QWEN


@pytest.mark.parametrize(
    ("knobs", "found"),
    [
        ({"model": "BAAI/bge-m3"}, f"serves BAAI/bge-m3, but {QWEN} was requested"),
        ({"kind": {"classifier": {"id2label": {}}}}, "as classifier; it is not an embedding"),
        ({"kind": {"reranker": {"id2label": {}}}}, "as reranker; it is not an embedding"),
        ({"pooling": "splade"}, "pools with splade"),
        ({"pooling": "mean"}, "pools with mean"),
        ({"end_of_text": 2}, "appends token 2"),
        ({"usage_off_by": 1}, "counted"),
        ({"closed": {"/tokenize": 403}}, "/tokenize is missing or closed"),
        ({"without": ("auto_truncate",)}, "no valid auto_truncate"),
        ({"without": ("max_input_length",)}, "no valid max_input_length"),
        ({"most_in_request": 0}, "no valid max_client_batch_size"),
    ],
)
def test_a_tei_that_may_give_other_vectors_is_refused(
    serve: Serve, knobs: dict[str, Any], found: str
) -> None:
    server = serve(Tei)
    for name, value in knobs.items():
        setattr(server, name, value)
    with pytest.raises(ServerMismatchError, match=found):
        found_at(server)


@pytest.mark.parametrize("is_shown", [True, False])
def test_a_tei_that_puts_its_own_prompt_before_texts_is_refused(
    serve: Serve, is_shown: bool
) -> None:
    """No similarities are printed for this model, so nothing else would show it."""
    server = serve(Tei, model="some/model", dimensions=16)
    server.prompt = "query: "  # type: ignore[attr-defined]
    server.prompt_is_shown = is_shown  # type: ignore[attr-defined]
    with pytest.raises(ServerMismatchError):
        found_at(server, server.model)
    server.prompt = ""  # type: ignore[attr-defined]
    assert found_at(server, server.model).server == TEI


def test_a_tei_that_requires_a_key_says_so(serve: Serve) -> None:
    with pytest.raises(AuthenticationError):
        found_at(serve(Tei, api_key="key"))


@pytest.mark.parametrize("cuts", [True, False])
@pytest.mark.parametrize("truncate", [True, False])
def test_a_text_that_tei_would_cut_is_named_before_any_is_embedded(
    serve: Serve, cuts: bool, truncate: bool
) -> None:
    server = serve(Tei, context_tokens=300)
    server.cuts = cuts  # type: ignore[attr-defined]
    asking = embedder(server, truncate=truncate)
    asking.ensure()
    verified = len(server.embedded)
    with pytest.raises(TextTooLongError) as caught:
        asking.embed_documents(["a", "b" * 299])
    assert (caught.value.index, caught.value.tokens, caught.value.limit) == (1, 300, 299)
    assert "truncate" not in str(caught.value)  # it never cuts a text for this server
    assert len(server.embedded) == verified
    texts = ["a", "b" * 298]  # it may have as many tokens as the context, less one
    vectors = asking.embed_documents(texts)
    assert np.abs(vectors - vectors_of(texts, DIMENSIONS)).max() < 1e-6


@pytest.mark.parametrize("truncate", [False, True])
def test_a_text_that_tei_refuses_to_count_is_not_sent(serve: Serve, truncate: bool) -> None:
    """It counts no text of more than 250 characters a token, and cuts one without an error."""
    server = serve(Tei, context_tokens=300)
    server.characters_a_token = 1  # type: ignore[attr-defined]
    asking = embedder(server, truncate=truncate)
    asking.ensure()
    verified = len(server.embedded)
    with pytest.raises(TextTooLongError) as caught:
        asking.embed_documents(["a", "b" * 301])
    assert caught.value.index == 1
    assert "truncate" not in str(caught.value)
    assert "reports" not in str(caught.value)  # it says how many tokens it takes
    assert len(server.embedded) == verified


def test_a_text_that_may_be_too_long_is_not_sent_to_a_tei_that_closed_its_tokenizer(
    serve: Serve,
) -> None:
    server = serve(Tei, context_tokens=300)
    asking = embedder(server)
    asking.ensure()
    server.closed["/tokenize"] = 403
    with pytest.raises(TextTooLongError) as caught:
        asking.embed_documents(["a", "b" * 298])
    assert caught.value.tokens is None


def test_tei_is_sent_no_more_texts_in_a_request_than_it_takes(serve: Serve) -> None:
    server = serve(Tei)
    server.most_in_request = 4  # type: ignore[attr-defined]
    texts = [f"text {number}" for number in range(11)]
    asking = embedder(server, max_concurrency=1)
    assert np.abs(asking.embed_documents(texts) - vectors_of(texts, DIMENSIONS)).max() < 1e-6
    server.latency_s = 0.1
    with ThreadPoolExecutor(8) as threads:  # calls whose texts share requests
        rows = [*threads.map(asking.embed_documents, [texts[:2]] * 16)]
    assert np.abs(np.stack(rows) - vectors_of(texts[:2], DIMENSIONS)).max() < 1e-6
    assert max(map(len, server.embedded)) == 4


def test_tei_is_sent_no_token_ids(serve: Serve) -> None:
    """It makes text of them, in which a character may be another one."""
    server = serve(Tei)
    asking = embedder(server)
    with pytest.raises(TextError) as caught:
        asking.embed_documents(["a", ""])
    assert caught.value.index == 1
    kept, aside = asking.iter_documents(["a", ""], set_aside=True)
    assert isinstance(aside, TextError)
    assert not isinstance(kept, TextError)
    assert all(isinstance(given, str) for batch in server.embedded for given in batch)


class _BecomesTei(FakeServer):
    """Dies when it first gets token ids, and comes back at its address as TEI."""

    is_armed = False

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        if self.is_armed and isinstance(request.body["input"][0], list):
            self.is_armed = False
            port = self.port
            self.die()
            self.__class__ = type("_Tei", (Tei,), {})
            self.revive(port)
            raise ConnectionError
        return super()._embeddings(request, connection)


def test_a_text_that_was_cut_for_another_server_is_counted_again_for_tei(serve: Serve) -> None:
    server = serve(_BecomesTei)
    asking = embedder(server, truncate=True)
    asking.ensure()
    server.is_armed = True  # type: ignore[attr-defined]
    with pytest.raises(TextTooLongError):
        asking.embed_documents(["b" * 2000])
    assert isinstance(server, Tei)
