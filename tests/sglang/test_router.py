"""sglang-router in front of two real servers: one that emberd keeps, and one started by hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from emberd import Embedder
from emberd.errors import AuthenticationError, ServerMismatchError, TextTooLongError
from emberd.verified_manager import Manager
from real import by_hand, router
from real.by_hand import ByHand
from real.engines import EngineSide, Refer
from real.texts import TEXTS

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def router_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return router.install(tmp_path_factory.mktemp("router") / "environment")


@pytest.fixture(scope="module")
def beside(
    embedder: Embedder, sglang_python: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ByHand]:
    """A second server of ``tiny``, with the key of the one that emberd keeps."""
    folder = tmp_path_factory.mktemp("beside")
    key = str(embedder.endpoint().api_key)
    with by_hand.server(sglang_python, tiny, folder, "--api-key", key) as running:
        yield running


@pytest.fixture(scope="module")
def routed(
    router_python: str,
    embedder: Embedder,
    beside: ByHand,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The router's root."""
    kept = embedder.endpoint()
    workers = [kept.url, beside.url]
    with router.router(
        router_python, workers, tmp_path_factory.mktemp("routed"), kept.api_key
    ) as url:
        yield url


def test_the_vectors_are_the_models_whichever_server_answers(
    routed: str, embedder: Embedder, tiny: Path, refer: Refer
) -> None:
    through = Embedder(tiny, base_url=routed, api_key=embedder.endpoint().api_key, batch_size=4)
    texts = [text for text in TEXTS if text.strip()]
    vectors = through.embed_documents([*texts, " "])
    assert np.sum(vectors * refer([*texts, ""]).vectors, axis=1).min() >= 0.9995
    assert np.abs(vectors - embedder.embed_documents([*texts, " "])).max() < 1e-2


def test_both_servers_answer(routed: str, embedder: Embedder, beside: ByHand, tiny: Path) -> None:
    before = beside.log.read_text().count("POST /v1/embeddings")
    through = Embedder(tiny, base_url=routed, api_key=embedder.endpoint().api_key, batch_size=1)
    through.embed_documents([f"text {number}" for number in range(20)])
    assert 8 <= beside.log.read_text().count("POST /v1/embeddings") - before <= 14


def test_dimensions_are_cut_here_and_by_the_servers_alike(
    routed: str, embedder: Embedder, tiny: Path
) -> None:
    """One server refuses to cut and the other does not: the vectors are the same."""
    key, texts = embedder.endpoint().api_key, ["a", "b", "c"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        here, there = (
            Embedder(
                tiny, base_url=routed, api_key=key, dimensions=32, server_dimensions=by_server
            ).embed_documents(texts)
            for by_server in (False, True)
        )
    assert here.shape == there.shape == (3, 32)
    assert np.abs(here - there).max() < 1e-2


def test_an_over_long_text_is_named_or_cut(routed: str, embedder: Embedder, tiny: Path) -> None:
    key, texts = embedder.endpoint().api_key, ["a", "a long word " * 3000]
    with pytest.raises(TextTooLongError) as caught:
        Embedder(tiny, base_url=routed, api_key=key).embed_documents(texts)
    assert caught.value.index == 1
    cut = Embedder(tiny, base_url=routed, api_key=key, truncate=True).embed_documents(texts)
    alone = Embedder(
        tiny, base_url=embedder.endpoint().url, api_key=key, truncate=True
    ).embed_documents(texts)
    assert np.sum(cut * alone, axis=1).min() > 0.999


def test_a_listed_router_is_found_and_used(
    routed: str,
    embedder: Embedder,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBERD_DISCOVER", routed)
    key = embedder.endpoint().api_key
    manager = Manager(tmp_path / "home")
    server = Embedder(tiny, manager=manager, api_key=key).ensure()
    assert (server.origin, server.endpoint.url) == ("found", routed)
    manager.stop()


def test_it_wants_its_key(routed: str, tiny: Path) -> None:
    with pytest.raises(AuthenticationError, match="answered 401"):
        Embedder(tiny, base_url=routed).ensure()


def test_a_router_of_two_models_is_refused(
    router_python: str,
    embedder: Embedder,
    sglang_python: str,
    sglang_side: EngineSide,
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    # Another training of the same shape: nothing but the names tells them apart.
    sglang_side.make_tiny(folder / "another", layers=1)
    kept = embedder.endpoint()
    key = str(kept.api_key)
    with (
        by_hand.server(sglang_python, folder / "another", folder, "--api-key", key) as other,
        router.router(router_python, [kept.url, other.url], folder, key) as url,
        pytest.raises(ServerMismatchError, match="to several models"),
    ):
        Embedder(tiny, base_url=url, api_key=key).ensure()
