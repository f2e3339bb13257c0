"""Copies, pickles and the printed form of an embedder."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from emberd import Embedder
from emberd.errors import (
    MissingKeyError,
)
from fake_server import MODEL, FakeServer, vector_of


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _again(embedder: Embedder) -> Embedder:
    data = pickle.dumps(embedder)
    assert b"secret" not in data
    again: Embedder = pickle.loads(data)
    return again


def test_a_pickle_attaches_again_on_the_other_side(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, query_instruction="<{text}>")
    embedder.embed_query("a")
    asyncio.run(embedder.aembed_query("a"))
    again = _again(embedder)
    assert again.settings == embedder.settings
    assert (again.embed_query("a") == vector_of("<a>")).all()
    for each in (again, embedder):
        each.close()


def test_a_pickle_carries_no_key_and_takes_one_from_the_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "secret"
    embedder = Embedder(MODEL, base_url=server.url, api_key="secret")
    lost = _again(embedder)
    with pytest.raises(MissingKeyError, match="Set EMBERD_API_KEY where it is unpickled"):
        lost.embed_query("a")
    with pytest.raises(MissingKeyError):
        asyncio.run(lost.aembed_query("a"))
    monkeypatch.setenv("EMBERD_API_KEY", "secret")
    found = _again(embedder)
    assert found.embed_query("a").shape == (16,)
    found.close()


def test_a_pickle_of_a_pickle_still_knows_that_its_key_was_lost(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, api_key="secret")
    with pytest.raises(MissingKeyError):
        _again(_again(embedder)).embed_query("a")


def test_a_changed_copy_of_a_pickle_still_knows_that_its_key_was_lost(server: FakeServer) -> None:
    server.api_key = "secret"
    again = _again(Embedder(MODEL, base_url=server.url, api_key="secret"))
    for changes in ({"dimensions": 8}, {"base_url": f"{server.url}/v1"}, {"timeout": 9.0}):
        with pytest.raises(MissingKeyError):
            again.replace(**changes).embed_query("a")
    found = again.replace(api_key="secret")
    assert found.embed_query("a").shape == (16,)
    found.close()
    assert not again.replace(base_url="http://127.0.0.1:9")._handle.key_is_missing
    assert not again.replace(base_url=None)._handle.key_is_missing


def test_a_pickle_of_one_with_a_client_names_the_missing_key(server: FakeServer) -> None:
    with openai.OpenAI(api_key="secret", base_url=f"{server.url}/v1") as client:
        with pytest.raises(MissingKeyError, match=server.url):
            _again(Embedder(MODEL, client=client)).embed_query("a")


def test_a_managed_pickle_needs_no_key() -> None:
    again = _again(Embedder(MODEL, api_key="secret"))
    assert again.settings.base_url is None
    assert not again._handle.key_is_missing


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_the_key_the_server_and_the_connections(
    server: FakeServer, copied: Any
) -> None:
    server.api_key = "secret"
    embedder = Embedder(MODEL, base_url=server.url, api_key="secret")
    embedder.ensure()
    asked = len(server.requests)
    twin = copied(embedder)
    assert twin.settings == embedder.settings
    assert (twin.embed_query("a") == vector_of("a")).all()
    assert len(server.requests) == asked + 1
    twin.close()
    embedder.close()


def test_printing_shows_what_was_set_and_no_secret() -> None:
    embedder = Embedder("a/b", base_url="http://host:1/v1", api_key="secret", dimensions=8)
    assert repr(embedder) == "Embedder(model='a/b', dimensions=8, base_url='http://host:1')"
