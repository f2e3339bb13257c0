"""What a server must be before its first use, asked with urllib and through either client."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from emberd import Embedder, Manager
from emberd.catalog import EMBED, RERANK
from emberd.client.clients import AsyncClient, Client
from emberd.client.verify import verify
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    ServerMismatchError,
    ServerUnavailableError,
    TextTooLongError,
)
from emberd.settings import ServerSpec, Settings
from emberd.system import listeners
from emberd.system.listeners import Listener
from fake_server import MODEL, QWEN, FakeServer, vectors_of
from http_server import reply


def _by_urllib(
    server: FakeServer, spec: ServerSpec, api_key: str | None = None, timeout_s: float = 5
) -> Endpoint:
    return verify(server.url, api_key, spec, timeout_s=timeout_s)


def _by_threads(
    server: FakeServer, spec: ServerSpec, api_key: str | None = None, timeout_s: float = 5
) -> Endpoint:
    place = Endpoint(server.url, "?", 0, api_key=api_key)
    client = Client(lambda: place, Settings.resolve(timeout=timeout_s))
    try:
        return client.inspect(place, spec)
    finally:
        client.close()


def _by_tasks(
    server: FakeServer, spec: ServerSpec, api_key: str | None = None, timeout_s: float = 5
) -> Endpoint:
    place = Endpoint(server.url, "?", 0, api_key=api_key)

    async def resolve() -> Endpoint:
        return place

    return asyncio.run(
        AsyncClient(resolve, Settings.resolve(timeout=timeout_s)).inspect(place, spec)
    )


@pytest.mark.parametrize("given", ["base_url", "client", "found", "environment"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_first_use_sends_no_more_texts_in_a_request_than_the_batch_size(
    given: str, asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path / "home"))
    with _qwen(most_texts=2) as server:
        more: dict[str, Any] = {"base_url": server.url, "batch_size": 2}
        if given == "client":
            kind, name = (
                (openai.AsyncOpenAI, "async_client") if asynchronous else (openai.OpenAI, "client")
            )
            more[name] = kind(base_url=f"{server.url}/v1", api_key="-", max_retries=0)
        elif given == "found":
            del more["base_url"]
            monkeypatch.setenv("EMBERD_DISCOVER", server.url)
        elif given == "environment":
            del more["batch_size"]
            monkeypatch.setenv("EMBERD_BATCH_SIZE", "2")
        texts = ["a", "b", "c"]

        async def use() -> None:
            assert (await Embedder(QWEN, **more).aembed_documents(texts)).shape == (3, 1024)
            if "async_client" in more:
                await more["async_client"].close()

        if asynchronous:
            asyncio.run(use())
        else:
            assert Embedder(QWEN, **more).embed_documents(texts).shape == (3, 1024)
            if "client" in more:
                more["client"].close()


def test_a_manager_takes_the_batch_size_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _qwen(most_texts=2) as server:
        with pytest.raises(ServerMismatchError, match="at most 2 texts"):
            Manager(tmp_path / "home").ensure(ServerSpec(QWEN), base_url=server.url)
        monkeypatch.setenv("EMBERD_BATCH_SIZE", "2")
        found = Manager(tmp_path / "home").ensure(ServerSpec(QWEN), base_url=server.url)
        assert found.endpoint.url == server.url


Verifier = Callable[..., Endpoint]
every = pytest.mark.parametrize("ask", [_by_urllib, _by_threads, _by_tasks])


def _qwen(**knobs: Any) -> FakeServer:
    return FakeServer(**{"model": QWEN, "dimensions": 1024, "context_tokens": 32768, **knobs})


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[OSError | None]:
    """What the next looks for a listener give instead: an error, or None for no listener."""
    given: list[OSError | None] = []
    find = listeners.find

    def look(url: str) -> Listener | None:
        if not given:
            return find(url)
        if (told := given.pop(0)) is not None:
            raise told
        return None

    monkeypatch.setattr(listeners, "find", look)
    return given


@pytest.mark.parametrize("when", [0, 1])
def test_a_listener_that_cannot_be_read_is_an_error_and_not_left_unchecked(
    looks: list[OSError | None], when: int
) -> None:
    with _qwen(api_key="key") as server:
        looks += [*[None] * when, OSError(errno.EMFILE, "Too many open files")]
        with pytest.raises(ServerUnavailableError):
            verify(server.url, "key", ServerSpec(model=QWEN))
        assert bool(server.requests) == bool(when)


def test_a_server_that_listens_after_the_first_look_is_pinned_and_verified_again(
    looks: list[OSError | None],
) -> None:
    with _qwen() as server:
        looks.append(None)
        found = verify(server.url, None, ServerSpec(model=QWEN))
        assert found.listener == listeners.find(server.url)
        assert found.listener is not None
        assert len(server.to("/v1/models")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_server_whose_connections_another_user_accepts_is_refused_with_both_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As nginx with workers of another user: nothing tells its workers from a stranger."""
    with _qwen(api_key="key") as server:
        here = listeners.find(server.url)
        assert here is not None
        # Root may accept as another user, so the listener is one of a user.
        of_user = replace(here, uid=64_201)
        ends = iter(range(10))

        def ask(_address: object, _port: int, client: object = None) -> Listener:
            return of_user if client is None else replace(of_user, uid=64_202, inode=next(ends) + 1)

        monkeypatch.setattr(listeners, "_has_netlink", lambda: True)
        monkeypatch.setattr(listeners, "_ask_kernel", ask)
        with pytest.raises(ServerUnavailableError) as caught:
            verify(server.url, "key", ServerSpec(model=QWEN))
        assert "64201" in str(caught.value)
        assert "64202" in str(caught.value)
        assert server.requests == []


@every
def test_a_right_server_is_described(ask: Verifier) -> None:
    with _qwen(api_key="key") as server:
        found = ask(server, ServerSpec(model=QWEN), "key")
        here = listeners.find(server.url)
        pinned = here if ask is _by_urllib else None  # a client handed in makes its connections
        assert found == Endpoint(server.url, QWEN, 1024, 32768, "key", "sglang", pinned)
        assert "key" not in repr(found).replace("api_key", "")


@every
@pytest.mark.parametrize(
    ("knobs", "found"),
    [
        ({"fault": "short"}, "1023 dimensions; Qwen/Qwen3-Embedding-0.6B has 1024"),
        ({"fault": "nan"}, "norm nan"),
        ({"fault": "infinite"}, "norm inf"),
        ({"fault": "long_norm"}, "norm 3 instead of 1"),
        ({"fault": "html"}, "page of HTML"),
        ({"fault": "missing"}, "0 vectors for 1 texts"),
        ({"fault": "words"}, "returned an invalid embedding"),
        ({"model": "BAAI/bge-m3"}, "serves BAAI/bge-m3, but Qwen/Qwen3-Embedding-0.6B was"),
        ({"is_generation": True}, "generates text with Qwen/Qwen3-Embedding-0.6B"),
        ({"has_models": False, "has_model_info": False}, "does not say which model it serves"),
        ({"end_of_text": 2}, "appends token 2 instead of the end-of-text token 151643"),
        ({"end_of_text": None}, "Its tokenizer is out of date"),
        ({"usage_off_by": -1}, "the end-of-text token may be missing"),
    ],
)
def test_a_wrong_server_is_a_mismatch_that_says_what_was_found(
    ask: Verifier, knobs: dict[str, Any], found: str
) -> None:
    with _qwen(**knobs) as server, pytest.raises(ServerMismatchError, match=found) as caught:
        ask(server, ServerSpec(model=QWEN))
    assert server.url in str(caught.value)


@every
def test_a_server_that_is_too_slow_is_said_to_be_slow(ask: Verifier) -> None:
    with _qwen(fault="hang") as server:
        with pytest.raises(
            ServerUnavailableError, match=r"did not answer within 0\.\d+ s"
        ) as caught:
            ask(server, ServerSpec(model=QWEN), timeout_s=0.3)
    assert "Start the server" not in str(caught.value)


@every
@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_a_tokenizer_may_say_so_in_several_ways(
    ask: Verifier, status: int
) -> None:
    with _qwen(has_tokenizer=False, status_without_route=status) as server:
        assert ask(server, ServerSpec(model=QWEN)).dimensions == 1024


@every
@pytest.mark.parametrize("status", [401, 403])
def test_a_gateway_may_close_every_route_but_models_and_embeddings(
    ask: Verifier, status: int
) -> None:
    optional = ("/model_info", "/get_model_info", "/v1/tokenize", "/server_info")
    with _qwen(api_key="key", closed=dict.fromkeys(optional, status)) as server:
        assert ask(server, ServerSpec(model=QWEN), "key").dimensions == 1024


@every
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_noticed_that_a_server_computes_on_a_cpu(ask: Verifier, device: str) -> None:
    with _qwen(device=device) as server:
        assert ask(server, ServerSpec(model=QWEN)).on_cpu == (device == "cpu")


@every
@pytest.mark.parametrize("path", ["/v1/models", "/v1/embeddings"])
def test_a_closed_route_that_is_needed_is_an_authentication_error(ask: Verifier, path: str) -> None:
    with _qwen(closed={path: 403}) as server, pytest.raises(AuthenticationError):
        ask(server, ServerSpec(model=QWEN), "key")


@every
def test_where_no_models_are_listed_a_closed_model_info_is_an_authentication_error(
    ask: Verifier,
) -> None:
    with _qwen(has_models=False, closed={"/model_info": 401}) as server:
        with pytest.raises(AuthenticationError):
            ask(server, ServerSpec(model=QWEN))


@every
def test_no_redirect_is_followed_with_the_key(ask: Verifier) -> None:
    with _qwen(api_key="key") as elsewhere, _qwen(api_key="key") as server:
        server.answer_first(307, location=f"{elsewhere.url}/v1/embeddings")
        with pytest.raises(ServerMismatchError, match="answered 307"):
            ask(server, ServerSpec(model=QWEN), "key")
        assert elsewhere.requests == []


def test_a_key_that_no_header_carries_is_not_printed() -> None:
    with _qwen() as server:
        for key in ("sk-secret\nx", "sk-secr\u20act"):
            with pytest.raises(ServerUnavailableError, match="cannot be sent") as caught:
                _by_urllib(server, ServerSpec(model=QWEN), key)
            assert "secr" not in str(caught.value)


@every
@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"data": [{"index": 0, "embedding": [1%s]}]}'])
def test_what_cannot_be_read_is_a_mismatch(ask: Verifier, body: bytes) -> None:
    with _qwen() as server:
        server.first.append(reply(200, body.replace(b"%s", b"0" * 400)))
        with pytest.raises(ServerMismatchError, match="returned an invalid embedding"):
            ask(server, ServerSpec(model=QWEN))


@every
@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_server_that_does_not_embed_is_a_mismatch(ask: Verifier, status: int) -> None:
    with _qwen() as server:
        server.answer_first(status)
        with pytest.raises(ServerMismatchError, match=f"answered {status}: try later"):
            ask(server, ServerSpec(model=QWEN))


@every
@pytest.mark.parametrize("task", [EMBED, RERANK])
def test_a_server_that_fails_is_to_be_one_of_the_task(ask: Verifier, task: str) -> None:
    with _qwen(closed={"/v1/models": 500}) as server:
        with pytest.raises(ServerMismatchError) as caught:
            ask(server, ServerSpec(model=QWEN, task=task))
    assert ("reranker" in str(caught.value)) == (task == RERANK)


@every
@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("answered", [1, 6])
def test_a_server_that_embeds_but_refuses_a_test_request_is_told_what_to_accept(
    ask: Verifier, status: int, answered: int
) -> None:
    with _qwen(limit_after=answered, status_of_limit=status) as server:
        with pytest.raises(ServerMismatchError, match="accept") as caught:
            ask(server, ServerSpec(model=QWEN))
        assert f"answered {status}" in str(caught.value)
        assert "as an embedding server" not in str(caught.value)


@every
def test_a_server_that_is_not_ready_is_unavailable(ask: Verifier) -> None:
    with _qwen() as server:
        server.answer_first(503)
        with pytest.raises(ServerUnavailableError, match="answered 503 .* not ready"):
            ask(server, ServerSpec(model=QWEN))


@every
@pytest.mark.parametrize("key", [None, "wrong-secret"])
def test_a_server_that_wants_another_key_says_so(ask: Verifier, key: str | None) -> None:
    with _qwen(api_key="right") as server:
        with pytest.raises(AuthenticationError, match="EMBERD_API_KEY") as caught:
            ask(server, ServerSpec(model=QWEN), key)
    assert "secret" not in str(caught.value)


@every
@pytest.mark.parametrize("fault", ["reset", "down"])
def test_a_server_that_does_not_answer_is_unavailable(ask: Verifier, fault: str) -> None:
    with _qwen(fault=fault) as server:
        if fault == "down":
            server.die()
        with pytest.raises(ServerUnavailableError, match="No response from"):
            ask(server, ServerSpec(model=QWEN))


@every
@pytest.mark.parametrize(
    "missing",
    [{"has_model_info": False}, {"has_tokenizer": False}, {"has_models": False}],
    ids=str,
)
def test_servers_of_other_kinds_need_not_have_every_route(
    ask: Verifier, missing: dict[str, bool]
) -> None:
    with _qwen(**missing) as server:
        assert ask(server, ServerSpec(model=QWEN)).dimensions == 1024


@every
def test_a_server_behind_a_router_need_not_state_its_context(ask: Verifier) -> None:
    with _qwen(context_tokens=None) as server:
        assert ask(server, ServerSpec(model=QWEN)).context_tokens is None


@pytest.mark.parametrize(
    ("wanted", "served"),
    [
        ("/models/Qwen3-Embedding-0.6B", QWEN),
        (QWEN, "/models/qwen3-embedding-0.6b/"),
        ("Qwen3-Embedding-0.6B", QWEN),
    ],
)
def test_a_folder_stands_for_the_model_it_is_named_like(wanted: str, served: str) -> None:
    with _qwen(model=served) as server:
        assert _by_urllib(server, ServerSpec(model=wanted)).model == served


def test_any_dimensions_will_do_for_a_model_that_nobody_described() -> None:
    with FakeServer(dimensions=5, end_of_text=None) as server:
        assert _by_urllib(server, ServerSpec(model=MODEL)).dimensions == 5


def test_a_server_whose_vectors_have_several_lengths_is_a_mismatch() -> None:
    class Uneven(FakeServer):
        def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
            self.dimensions += 1
            return super()._reply(body, inputs)

    with Uneven(dimensions=4, end_of_text=None) as server:
        with pytest.raises(ServerMismatchError, match="vectors of 5 and of 6 dimensions"):
            _by_urllib(server, ServerSpec(model=MODEL))


def test_floats_are_accepted() -> None:
    with _qwen(floats=True) as server:
        assert _by_urllib(server, ServerSpec(model=QWEN)).dimensions == 1024


def test_a_model_served_under_another_name_is_known_by_its_path() -> None:
    class Renamed(FakeServer):
        def _models(self, request: Any, connection: Any) -> bytes:
            return reply(200, {"data": [{"id": "embedder", "owned_by": "sglang"}]})

    with Renamed(model=QWEN, dimensions=1024) as server:
        assert _by_urllib(server, ServerSpec(model=QWEN)).model == "embedder"


@pytest.mark.parametrize(
    ("wanted", "served"),
    [
        (QWEN, "mycompany/Qwen3-Embedding-0.6B"),
        ("mycompany/Qwen3-Embedding-0.6B", QWEN),
        ("mycompany/demo", "emberd/demo"),
        ("emberd/demo", "/models/demo"),
    ],
)
def test_a_model_of_somebody_else_with_the_same_last_name_is_another(
    wanted: str, served: str
) -> None:
    with FakeServer(model=served, dimensions=1024) as server:
        with pytest.raises(ServerMismatchError, match=f"{wanted} was requested"):
            _by_urllib(server, ServerSpec(model=wanted))


def test_a_server_elsewhere_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with _qwen() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(ServerMismatchError):  # it knows no absolute path
            verify("http://embeddings.invalid", None, ServerSpec(model=QWEN), timeout_s=5)
        assert proxy.requests[0].path == "http://embeddings.invalid/v1/models"


def test_proxies_are_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with _qwen() as server:
        assert _by_urllib(server, ServerSpec(model=QWEN)).dimensions == 1024


@every
@pytest.mark.parametrize(
    ("auto_truncate", "context"), [(False, 32_768), (True, 32_763), (None, 32_763)]
)
def test_a_server_that_cuts_texts_by_itself_is_asked_for_none_that_it_would_cut(
    ask: Verifier, auto_truncate: bool | None, context: int
) -> None:
    with _qwen(auto_truncate=auto_truncate) as server:
        found = ask(server, ServerSpec(model=QWEN))
        assert (found.context_tokens, found.server) == (context, "sglang")


@pytest.mark.parametrize("auto_truncate", [True, None])
def test_a_text_that_the_server_would_cut_is_cut_here_with_its_end_or_named(
    auto_truncate: bool | None,
) -> None:
    texts = ["a", "b" * 1200, "c" * 994, "d" * 993]
    with _qwen(context_tokens=1000) as server:
        server.auto_truncate = auto_truncate
        embedder = Embedder(QWEN, base_url=server.url)
        for given, tokens in ((texts[:2], 1201), (texts[2:], 995)):
            with pytest.raises(TextTooLongError) as caught:
                embedder.embed_documents(given)
            assert (caught.value.tokens, caught.value.limit) == (tokens, 994)
        server.auto_truncate = True
        cutting = Embedder(QWEN, base_url=server.url, truncate=True)
        expected = vectors_of(["a", "b" * 993, "c" * 993, "d" * 993], 1024)
        assert np.abs(cutting.embed_documents(texts) - expected).max() < 1e-6
