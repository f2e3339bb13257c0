"""The same text in the same role has the same vector in both frameworks."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import managed
from contract.frameworks import BOTH, LangChain, LlamaIndex
from emberd import Embedder, Settings
from managed import MODEL, PASSAGES, same

_TEXTS = [*PASSAGES.values(), "two\nlines", "深层嵌入 🙂"]
_SETTINGS: list[dict[str, Any]] = [
    {},
    {"dimensions": 100},
    {"query_instruction": "", "document_instruction": ""},
    {"query_instruction": "title: {text}", "document_instruction": "body: {text}"},
]

pytestmark = pytest.mark.filterwarnings("ignore:dimensions=.*was not trained:UserWarning")


@pytest.mark.parametrize("settings", _SETTINGS, ids=lambda given: ",".join(given) or "defaults")
async def test_both_frameworks_give_the_same_vectors(settings: dict[str, Any]) -> None:
    plain = Embedder(MODEL, **settings)
    documents, queries = plain.embed_documents(_TEXTS), plain.embed_queries(_TEXTS)
    for framework in (made(model=MODEL, **settings) for made in BOTH):
        assert same(framework.documents(_TEXTS), documents)
        assert same(await framework.adocuments(_TEXTS), documents)
        assert same([framework.query(text) for text in _TEXTS], queries)
        assert same([await framework.aquery(text) for text in _TEXTS], queries)


def test_roles_differ_unless_their_instructions_are_equal() -> None:
    """A framework that embeds queries as documents would pass the other tests."""
    for made in BOTH:
        usual, symmetric = made(model=MODEL), made(model=MODEL, query_instruction="passage: {text}")
        text = PASSAGES["sea"]
        assert np.dot(usual.query(text), usual.documents([text])[0]) < 0.999
        assert same(symmetric.query(text), symmetric.documents([text])[0])


def test_both_frameworks_use_one_server() -> None:
    urls = {made(model=MODEL).embedder.endpoint().url for made in BOTH}
    assert len(urls) == len(managed.live_servers()) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"model": "emberd/demo"},
        {"dimensions": 77},
        {"query_instruction": "code"},
        {"document_instruction": "title: {text}"},
        {"symmetric": True},
        {"base_url": "http://127.0.0.1:9/v1"},
        {"api_key": "made-up-key"},
        {"revision": "0123abc"},
        {"engine": "sglang"},
        {"device": "cpu"},
        {"context_tokens": 300},
        {"max_concurrency": 3},
        {"timeout": 4.5},
        {"start_timeout": 5.5},
        {"idle_timeout": None},
        {"truncate": True},
        {"server_dimensions": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_setting_reaches_the_embedder_from_both_frameworks(given: dict[str, Any]) -> None:
    expected = Settings.resolve(**given)
    assert expected != Settings()
    assert [made(**given).embedder.settings for made in BOTH] == [expected, expected]


def test_every_setting_is_a_field_of_both_frameworks() -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    plain = Settings()
    for name in names - {"batch_size", "show_progress"}:  # LlamaIndex has its own
        LlamaIndex(**{name: getattr(plain, name)})
    for name in names:
        LangChain(**{name: getattr(plain, name)})
