"""Any number of texts, in flat memory: ``iter_documents`` and its kin."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from emberd import Embedder, TextError, TextTooLongError
from emberd.client.batches import WINDOW_TEXTS
from fake_server import FakeServer, vector_of, vectors_of

MODEL = "test/model"
COUNT = 2 * WINDOW_TEXTS + 100


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _embedder(server: FakeServer, **settings: Any) -> Embedder:
    return Embedder(MODEL, base_url=server.url, **settings)


def _threads(embedder: Embedder, texts: Iterable[Any], **named: Any) -> list[Any]:
    return list(embedder.iter_documents(texts, **named))


def _tasks(embedder: Embedder, texts: Iterable[Any], **named: Any) -> list[Any]:
    async def collect() -> list[Any]:
        try:
            return [row async for row in embedder.aiter_documents(texts, **named)]
        finally:
            await embedder.aclose()

    return asyncio.run(collect())


both = pytest.mark.parametrize("collect", [_threads, _tasks])
Collect = Callable[..., list[Any]]


@both
def test_each_text_gives_its_vector_in_its_place(collect: Collect, server: FakeServer) -> None:
    texts = [f"text {number}" for number in range(COUNT)]
    rows = collect(_embedder(server), iter(texts))
    assert (np.stack(rows) == vectors_of(texts)).all()


@both
def test_nothing_gives_nothing(collect: Collect, server: FakeServer) -> None:
    assert collect(_embedder(server), iter(())) == []


def test_queries_have_their_own_template(server: FakeServer) -> None:
    embedder = _embedder(server, query_instruction="Q: {text}")
    (row,) = embedder.iter_queries(["a"])
    assert (row == vector_of("Q: a")).all()


def test_texts_are_taken_no_further_ahead_than_two_windows(server: FakeServer) -> None:
    taken = 0

    def texts() -> Iterator[str]:
        nonlocal taken
        while True:  # it has no end
            taken += 1
            yield f"text {taken}"

    rows = _embedder(server).iter_documents(texts())
    for number in range(1, 3 * WINDOW_TEXTS):
        next(rows)
        assert taken <= number + 3 * WINDOW_TEXTS
    rows.close()  # type: ignore[attr-defined]


def test_requests_of_the_next_window_go_before_the_last_of_this_one_are_back(
    server: FakeServer,
) -> None:
    embedder = _embedder(server, batch_size=WINDOW_TEXTS // 2, timeout=20)
    embedder.embed_query("a")  # what it asks about the server is asked now
    before = len(server.embedded)
    server.overlap = 3  # of which a window has two; nothing is answered before
    texts = [f"text {number}" for number in range(2 * WINDOW_TEXTS)]
    assert (np.stack(list(embedder.iter_documents(texts))) == vectors_of(texts)).all()
    # None was given up and sent again.
    assert len(server.embedded) == before + 4


def test_a_stream_that_is_left_leaves_nothing_behind(server: FakeServer) -> None:
    server.latency_s = 0.01
    embedder = _embedder(server, max_concurrency=1)
    rows = embedder.iter_documents(f"text {number}" for number in range(COUNT))
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert (embedder.embed_query("a") == vector_of("a")).all()


def _with_bad_ones(server: FakeServer) -> tuple[list[Any], dict[int, type[TextError]]]:
    server.context_tokens = 200
    texts: list[Any] = [f"text {number}" for number in range(WINDOW_TEXTS + 50)]
    texts[3] = None
    texts[70] = "half of \ud83d"
    texts[71] = "x" * 300
    texts[WINDOW_TEXTS + 7] = ""
    texts[-1] = "y" * 300
    wrong = {3: TextError, 70: TextError, 71: TextTooLongError, WINDOW_TEXTS + 7: TextError}
    return texts, {**wrong, len(texts) - 1: TextTooLongError}


@both
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_texts_that_cannot_be_embedded_are_set_aside_with_their_place(
    collect: Collect, server: FakeServer, has_tokenizer: bool
) -> None:
    server.has_tokenizer = has_tokenizer
    texts, wrong = _with_bad_ones(server)
    rows = collect(_embedder(server), iter(texts), set_aside=True)
    assert len(rows) == len(texts)
    assert {
        place: type(row) for place, row in enumerate(rows) if isinstance(row, Exception)
    } == wrong
    assert all(
        rows[place].index == place and f"Text {place} " in str(rows[place]) for place in wrong
    )
    good = [place for place in range(len(texts)) if place not in wrong]
    assert (np.stack([rows[place] for place in good]) == vectors_of(texts[p] for p in good)).all()


@both
@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_blank_texts_are_set_aside_only_where_their_tokens_cannot_be_asked_for(
    collect: Collect, server: FakeServer, has_tokenizer: bool
) -> None:
    server.has_tokenizer = has_tokenizer
    texts = [" " if place % 3 == 0 else f"text {place}" for place in range(WINDOW_TEXTS + 50)]
    texts[6] = "\t"
    rows = collect(_embedder(server), iter(texts), set_aside=True)
    for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
        if has_tokenizer or text.strip():
            assert (row == vectors_of([text])).all()
        else:
            assert isinstance(row, TextError)
            assert row.index == place
    assert len(server.to("/v1/tokenize")) <= 4 + 2  # and those of the verification


@both
def test_else_the_first_of_them_ends_the_stream(collect: Collect, server: FakeServer) -> None:
    texts, _ = _with_bad_ones(server)
    texts[3] = "fine"
    with pytest.raises(TextError, match="Text 70 holds the lone surrogate"):
        collect(_embedder(server), iter(texts))


@both
def test_an_error_names_the_place_in_the_whole_stream(collect: Collect, server: FakeServer) -> None:
    texts = [*(f"text {number}" for number in range(WINDOW_TEXTS)), "a", "x" * 2000]
    with pytest.raises(TextTooLongError, match=f"Text {WINDOW_TEXTS + 1} ") as caught:
        collect(_embedder(server), texts)
    assert caught.value.index == WINDOW_TEXTS + 1


@both
def test_a_text_that_the_server_refuses_by_itself_is_set_aside(
    collect: Collect, server: FakeServer
) -> None:
    server.refuses = "REFUSED"
    texts = ["a", "b", "this is REFUSED", *map(str, range(40))]
    rows = collect(_embedder(server), texts, set_aside=True)
    assert isinstance(rows[2], TextError)
    assert re.match(r"Text 2 \(.*\) was refused", str(rows[2]))
    assert (np.stack(rows[:2] + rows[3:]) == vectors_of(texts[:2] + texts[3:])).all()


@both
@pytest.mark.parametrize("wrong", ["one text", b"bytes", 7])
def test_one_text_is_not_taken_for_many(collect: Collect, server: FakeServer, wrong: Any) -> None:
    with pytest.raises(TextError, match="not a list of texts"):
        collect(_embedder(server), wrong)


async def test_texts_may_be_awaited(server: FakeServer) -> None:
    async def texts() -> AsyncIterator[str]:
        for number in range(WINDOW_TEXTS + 3):
            yield f"text {number}"

    embedder = _embedder(server)
    rows = [row async for row in embedder.aiter_documents(texts())]
    assert (np.stack(rows) == vectors_of(f"text {n}" for n in range(WINDOW_TEXTS + 3))).all()
    await embedder.aclose()
