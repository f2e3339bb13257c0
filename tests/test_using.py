"""``Embedder.using``: some settings changed, for one call or for a while."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from emberd import Embedder
from emberd.errors import InstructionError, SettingError
from fake_server import MODEL, QWEN, FakeServer, vector_of


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def test_a_changed_setting_uses_the_same_server_and_connections(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, query_instruction="<{text}>")
    changed = embedder.using(query_instruction="({text})")
    assert (changed.embed_query("a") == vector_of("(a)")).all()
    assert (embedder.embed_query("a") == vector_of("<a>")).all()
    assert changed._client()._transport is embedder._client()._transport
    assert [request.path for request in server.requests].count("/v1/models") == 1
    assert embedder.settings.query_instruction == "<{text}>"
    embedder.close()


async def test_a_changed_setting_counts_asynchronously_too(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    changed = embedder.using(document_instruction="d: {text}", symmetric=True)
    assert (await changed.aembed_query("a") == vector_of("d: a")).all()
    assert (await embedder.aembed_query("a") == vector_of("a")).all()
    assert (await changed._aclient())._transport is (await embedder._aclient())._transport
    await embedder.aclose()


def test_a_change_is_checked_and_the_environment_has_no_say_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedder = Embedder(QWEN, dimensions=64)
    monkeypatch.setenv("EMBERD_DIMENSIONS", "128")
    assert embedder.using(dimensions=None).settings.dimensions is None
    assert embedder.using(truncate=True).settings.dimensions == 64
    with pytest.raises(SettingError, match="dimensions=31"):
        embedder.using(dimensions=31)
    with pytest.raises(InstructionError):
        embedder.using(query_instruction="query: ")


@pytest.mark.parametrize(
    "change", [{"model": "x"}, {"base_url": "http://h:1"}, {"api_key": "x"}, {"timeout": 3}]
)
def test_what_belongs_to_the_server_cannot_be_changed_for_a_call(change: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"\w+ cannot be changed for one call.*dimensions"):
        Embedder(QWEN).using(**change)


def test_a_setting_that_does_not_exist_is_named() -> None:
    for change in (Embedder(QWEN).using, Embedder(QWEN).replace):
        with pytest.raises(
            SettingError, match="Unknown setting 'dimension'. Known are:.*dimensions"
        ):
            change(dimension=64)


def test_a_length_that_was_not_trained_is_warned_of_once_for_each(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    with pytest.warns(UserWarning, match="dimensions=4"):
        embedder.using(dimensions=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embedder.using(dimensions=4).embed_query("a").shape == (4,)
    embedder.close()


def test_symmetric_for_one_call_does_not_change_what_documents_get() -> None:
    """It would put the queries' instruction before documents, and the index has not got it."""
    embedder = Embedder(QWEN, query_instruction="code")
    with pytest.raises(SettingError, match=r"query_instruction='\{text\}'"):
        embedder.using(symmetric=True)
    assert embedder.using(query_instruction="{text}").query_template == "{text}"
    both = embedder.using(symmetric=True, query_instruction="similarity")
    assert both.document_template == both.query_template


async def test_a_call_with_a_change_starts_no_thread_but_that_of_its_request(
    server: FakeServer,
) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    await embedder.aembed_query("a")
    started: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        if thread.name.startswith("emberd"):
            started.append(thread.name)
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", note)
        for number in range(3):
            await embedder.using(query_instruction=f"{number}: {{text}}").aembed_query("a")
    assert started == ["emberd-request"] * 3
    await embedder.aclose()


def test_a_replaced_embedder_has_the_other_settings_and_a_server_of_its_own(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(MODEL, base_url=server.url, query_instruction="<{text}>")
    monkeypatch.setenv("EMBERD_QUERY_INSTRUCTION", "({text})")
    other = embedder.replace(batch_size=3, base_url=f"{server.url}/v1/")
    assert other.settings == replace(embedder.settings, batch_size=3)
    with pytest.raises(SettingError, match="timeout=0"):
        embedder.replace(timeout=0)


def test_a_replaced_embedder_leaves_a_client_behind_where_it_is_to_use_another_server(
    server: FakeServer,
) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
        embedder = Embedder(MODEL, client=client)
        assert embedder.replace(batch_size=3)._given_client is client
        with FakeServer() as elsewhere:
            other = embedder.replace(base_url=elsewhere.url)
            assert (other.embed_query("a") == vector_of("a")).all()
            assert elsewhere.embedded
            other.close()
    assert server.requests == []
