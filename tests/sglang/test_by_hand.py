"""Servers that somebody started by hand: found, verified, used, and alive when we are done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from emberd import Embedder
from emberd.errors import ServerMismatchError, TextTooLongError
from emberd.manager.discovery import DEFAULT_PORT
from emberd.verified_manager import Manager
from real import by_hand
from real.by_hand import ByHand
from real.engines import EngineSide, Refer, embedder_for

_KEY: Final = "a-key-of-the-users-own"
_ROOM_TOKENS: Final = 1_024
_SOME: Final = ["one text", "another text, a little longer", "向量"]


@pytest.fixture(scope="module")
def on_30000(
    sglang_python: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ByHand]:
    """``tiny`` without a key and without the matryoshka override, on the default port."""
    folder = tmp_path_factory.mktemp("by-hand")
    # The plain command: that is what most servers on this port were started with.
    with by_hand.server(sglang_python, tiny, folder, port=DEFAULT_PORT, forked=False) as running:
        yield running


@pytest.fixture(scope="module")
def other(sglang_side: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other") / "another-model"
    return sglang_side.make_tiny(folder, layers=1, hidden=64)


@pytest.fixture(scope="module")
def elsewhere(
    sglang_python: str, other: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ByHand]:
    """Another model, with a key, under another name, on some port."""
    folder = tmp_path_factory.mktemp("elsewhere")
    named = ("--served-model-name", "house/embedder", "--api-key", _KEY)
    # The last of two counts: less room than the model's context.
    room = ("--max-total-tokens", str(_ROOM_TOKENS))
    with by_hand.server(sglang_python, other, folder, *named, *room) as running:
        yield running


def test_a_server_on_port_30000_is_found_used_and_left_alive(
    on_30000: ByHand, tiny: Path, tmp_path: Path, refer: Refer
) -> None:
    manager = Manager(tmp_path / "home")
    embedder = embedder_for(tiny, manager)
    server = embedder.ensure()
    assert (server.origin, server.endpoint.url) == ("found", on_30000.url)
    vectors = embedder.embed_documents(_SOME)
    assert np.sum(vectors * refer(_SOME).vectors, axis=1).min() > 0.9995
    # Without the override it refuses dimensions; emberd cuts here.
    with pytest.warns(UserWarning, match="dimensions=32"):
        cut = embedder_for(tiny, manager, dimensions=32).embed_documents(_SOME)
    head = vectors[:, :32] / np.linalg.norm(vectors[:, :32], axis=1, keepdims=True)
    assert np.abs(cut - head).max() < 1e-4
    manager.stop()
    assert on_30000.is_alive


def test_a_listed_server_with_a_key_and_another_name_is_found_used_and_left_alive(
    elsewhere: ByHand, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_DISCOVER", elsewhere.url)
    manager = Manager(tmp_path / "home")
    embedder = embedder_for(other, manager, api_key=_KEY)
    server = embedder.ensure()
    assert (server.origin, server.endpoint.url) == ("found", elsewhere.url)
    assert server.endpoint.model == "house/embedder"
    assert embedder.embed_documents(_SOME).shape == (3, 64)
    assert _KEY not in (tmp_path / "home").joinpath(server.folder or "", "record.json").read_text()
    manager.stop()
    assert elsewhere.is_alive


def test_a_text_that_a_server_has_no_room_for_is_an_error_and_does_not_wait_for_ever(
    elsewhere: ByHand, other: Path
) -> None:
    there = Embedder(other, base_url=elsewhere.url, api_key=_KEY)
    assert there.endpoint().context_tokens == _ROOM_TOKENS
    long = " ".join(f"word{i}" for i in range(500))
    with pytest.raises(TextTooLongError, match=f"{_ROOM_TOKENS - 1} are allowed"):
        there.embed_documents([long])
    assert there.embed_documents([long[: len(long) // 4]]).shape == (1, 64)


def test_a_server_of_another_model_is_refused_with_what_it_serves(
    elsewhere: ByHand, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Embedder(tiny, base_url=elsewhere.url, api_key=_KEY)
    with pytest.raises(ServerMismatchError, match=r"serves house/embedder, but .*tiny-qwen3"):
        there.embed_query("a")
    monkeypatch.setenv("EMBERD_DISCOVER", elsewhere.url)
    assert elsewhere.is_alive
