"""Objects with changed settings: which key they have, and whether they verify a server again.

For ``Embedder`` and ``Reranker``, and for the classes of both frameworks over them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import openai
import pytest

from contract.rerankers import order
from emberd import Embedder, Reranker
from fake_reranker import MODEL as RERANKER
from fake_reranker import FakeReranker
from fake_server import MODEL, FakeServer
from langchain_emberd import EmberdEmbeddings, EmberdReranker
from llama_index.embeddings.emberd import EmberdEmbedding
from llama_index.postprocessor.emberd import EmberdRerank

KEY: Final = "made-up"


class _Labelled(EmberdEmbeddings):
    label: str = ""


@dataclass(frozen=True)
class Kind:
    """A class, and a change that concerns no setting of the server or the client."""

    of: Any
    model: str
    no_setting: dict[str, Any]

    def made(self, server: FakeServer, **settings: Any) -> Any:
        name = "model_name" if self.of is EmberdEmbedding else "model"
        given = {name: self.model, "base_url": server.url, **settings}
        return self.of(**given if self.model == RERANKER else {"query_instruction": "", **given})

    def changed(self, made: Any, changes: dict[str, Any]) -> Any:
        if isinstance(made, Embedder | Reranker):
            return made.replace(**changes)
        return made.model_copy(update=changes)


KINDS: Final = (
    Kind(Embedder, MODEL, {}),
    Kind(_Labelled, MODEL, {"label": "mine"}),
    Kind(EmberdEmbedding, MODEL, {"num_workers": 2}),
    Kind(Reranker, RERANKER, {"instruction": "code"}),
    Kind(EmberdReranker, RERANKER, {"top_n": 1}),
    Kind(EmberdRerank, RERANKER, {"top_n": 1}),
)


def wrapped(made: Any) -> Embedder | Reranker:
    """The framework-free object."""
    found = getattr(made, "embedder", None) or getattr(made, "reranker", None) or made
    assert isinstance(found, Embedder | Reranker)
    return found


def use(made: Any) -> None:
    """Send one text."""
    found = wrapped(made)
    if isinstance(found, Embedder):
        found.embed_query("a")
    elif made is found:
        found.scores("q", ["a"])
    else:
        order(made, "q", ["a"])


async def ause(made: Any) -> None:
    """The same, on the event loop."""
    found = wrapped(made)
    if isinstance(found, Embedder):
        await found.aembed_query("a")
    else:
        await found.ascores("q", ["a"])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.of.__name__)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def servers(kind: Kind) -> Iterator[tuple[FakeServer, FakeServer]]:
    """One that requires the key, and one that requires none."""
    of = FakeReranker if kind.model == RERANKER else FakeServer
    with ExitStack() as stack:
        yield stack.enter_context(of(api_key=KEY)), stack.enter_context(of())


def test_the_key_of_a_server_is_not_sent_to_another_one(
    kind: Kind, servers: tuple[FakeServer, FakeServer]
) -> None:
    first, other = servers
    made = kind.made(first, api_key=KEY)
    changed = kind.changed(made, {"base_url": other.url})
    use(changed)
    assert other.requests
    assert not any(KEY in request.headers.get("authorization", "") for request in other.requests)
    assert wrapped(changed).settings.api_key is None
    assert getattr(changed, "api_key", None) is None
    nowhere = kind.changed(made, {"base_url": None})
    assert wrapped(nowhere).settings.api_key is None, "it would be sent to what is found"


def test_a_key_is_kept_for_the_same_origin_and_replaced_by_a_given_one(
    kind: Kind, servers: tuple[FakeServer, FakeServer]
) -> None:
    first, other = servers
    made = kind.made(first, api_key=KEY)
    same = kind.changed(made, {"base_url": f"{first.url}/v1/"})
    use(same)
    given = kind.changed(made, {"base_url": other.url, "api_key": "own-key"})
    use(given)
    sent = {request.headers.get("authorization") for request in other.requests}
    assert "Bearer own-key" in sent
    assert f"Bearer {KEY}" not in sent


def test_a_change_that_concerns_no_server_verifies_none_again(
    kind: Kind, servers: tuple[FakeServer, FakeServer]
) -> None:
    server = servers[1]
    made = kind.made(server)
    before_use = kind.changed(made, kind.no_setting)
    use(made)
    after_use = kind.changed(made, kind.no_setting)
    for each in (before_use, after_use, kind.changed(after_use, kind.no_setting)):
        use(each)
        asyncio.run(ause(each))
    assert len(server.to("/v1/models")) == 1
    for name, value in kind.no_setting.items():
        assert getattr(after_use, name) == value
        assert getattr(made, name) != value


def test_a_change_that_concerns_no_server_keeps_a_given_client(
    kind: Kind, servers: tuple[FakeServer, FakeServer]
) -> None:
    server = servers[0]
    told = {"X-Team": "search"}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, default_headers=told) as client:
        of = Embedder if kind.model == MODEL else Reranker
        found = of(kind.model, client=client)
        if kind.of is not of:
            name = "from_embedder" if of is Embedder else "from_reranker"
            found = getattr(kind.of, name)(found)
        use(kind.changed(found, kind.no_setting))
    assert {request.headers.get("x-team") for request in server.requests} == {"search"}
