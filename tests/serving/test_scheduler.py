"""Requests take turns, share batches, and fail separately."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import numpy as np
import pytest

from emberd.errors import BadReplyError
from emberd.serving.service import Scheduler
from emberd.serving.telemetry import Metrics
from fake_encoder import FakeEncoder


@contextlib.asynccontextmanager
async def scheduling(
    encoder: FakeEncoder, *, deterministic: bool = False
) -> AsyncIterator[Scheduler]:
    """Run a scheduler."""
    scheduler = Scheduler(encoder, Metrics("test/fake"), deterministic=deterministic)
    running = asyncio.create_task(scheduler.run())
    try:
        yield scheduler
    finally:
        encoder.open.set()
        running.cancel()


def _ask(scheduler: Scheduler, encoder: FakeEncoder, texts: list[str]) -> asyncio.Task[np.ndarray]:
    return asyncio.create_task(scheduler.embed(encoder.prepare(texts)))


async def _entered(encoder: FakeEncoder) -> None:
    assert await asyncio.to_thread(encoder.entered.wait, 5)
    encoder.entered.clear()


def _texts(name: str, count: int) -> list[str]:
    return [f"{name}{n}" for n in range(count)]


async def test_a_request_of_many_batches_gets_its_vectors_in_order() -> None:
    encoder = FakeEncoder()
    async with scheduling(encoder) as scheduler:
        vectors = await _ask(scheduler, encoder, _texts("a", 11))
    assert [len(batch) for batch in encoder.batches] == [4, 4, 3]
    np.testing.assert_array_equal(vectors, [encoder.vector(text) for text in _texts("a", 11)])


async def test_a_deterministic_scheduler_encodes_each_text_by_itself_and_requests_take_turns() -> (
    None
):
    encoder = FakeEncoder()
    async with scheduling(encoder, deterministic=True) as scheduler:
        both = [_ask(scheduler, encoder, _texts(name, 3)) for name in "ab"]
        vectors = np.concatenate(await asyncio.gather(*both))
    assert encoder.batches == [["a0"], ["b0"], ["a1"], ["b1"], ["a2"], ["b2"]]
    expected = [encoder.vector(text) for text in [*_texts("a", 3), *_texts("b", 3)]]
    np.testing.assert_array_equal(vectors, expected)


async def test_a_batch_holds_no_more_tokens_than_the_encoder_takes() -> None:
    encoder = FakeEncoder()
    texts = ["w " * 30, "w " * 30, "w " * 5, "w " * 5, "w " * 60, "w"]
    async with scheduling(encoder) as scheduler:
        await _ask(scheduler, encoder, texts)
    sizes = [[len(text.split()) for text in batch] for batch in encoder.batches]
    assert sizes == [[30], [30, 5, 5], [60], [1]]


async def test_small_requests_share_a_batch() -> None:
    encoder = FakeEncoder()
    encoder.open.clear()
    async with scheduling(encoder) as scheduler:
        first = _ask(scheduler, encoder, ["first"])
        await _entered(encoder)
        rest = [_ask(scheduler, encoder, [name]) for name in "abcde"]
        await asyncio.sleep(0)
        encoder.open.set()
        got = await asyncio.gather(first, *rest)
    assert encoder.batches == [["first"], ["a", "b", "c", "d"], ["e"]]
    np.testing.assert_array_equal(np.concatenate(got[1:]), [encoder.vector(n) for n in "abcde"])


async def test_a_small_request_waits_for_one_batch_of_a_large_one() -> None:
    encoder = FakeEncoder()
    encoder.open.clear()
    async with scheduling(encoder) as scheduler:
        large = _ask(scheduler, encoder, _texts("large", 400))
        await _entered(encoder)
        small = _ask(scheduler, encoder, ["small"])
        await asyncio.sleep(0)
        encoder.open.set()
        await asyncio.wait({small})
        assert not large.done()
        large.cancel()
    assert encoder.batches[1][0] == "small"


async def test_two_large_requests_advance_in_turns() -> None:
    encoder = FakeEncoder()
    encoder.open.clear()
    async with scheduling(encoder) as scheduler:
        left = _ask(scheduler, encoder, _texts("a", 12))
        await _entered(encoder)
        right = _ask(scheduler, encoder, _texts("b", 12))
        await asyncio.sleep(0)
        encoder.open.set()
        await asyncio.gather(left, right)
    assert [batch[0][0] for batch in encoder.batches] == ["a", "b", "a", "b", "a", "b"]


async def test_cancelled_request_is_not_encoded() -> None:
    encoder = FakeEncoder()
    encoder.open.clear()
    async with scheduling(encoder) as scheduler:
        abandoned = _ask(scheduler, encoder, _texts("gone", 100))
        await _entered(encoder)
        abandoned.cancel()
        other = _ask(scheduler, encoder, ["other"])
        await asyncio.sleep(0)
        encoder.open.set()
        await other
    assert encoder.batches == [_texts("gone", 4), ["other"]]


@pytest.mark.parametrize("flaw", [math.nan, math.inf, 0.0, 0.9])
async def test_a_flawed_vector_fails_its_own_request_only(flaw: float) -> None:
    encoder = FakeEncoder()
    vector = encoder.vector
    encoder.vector = lambda text: vector(text) * (flaw if text == "bad" else 1)  # type: ignore[method-assign]
    encoder.open.clear()
    async with scheduling(encoder) as scheduler:
        first = _ask(scheduler, encoder, ["first"])
        await _entered(encoder)
        bad, good = _ask(scheduler, encoder, ["x", "bad"]), _ask(scheduler, encoder, ["good"])
        await asyncio.sleep(0)
        encoder.open.set()
        await first
        with pytest.raises(BadReplyError, match="not finite and unit"):
            await bad
        np.testing.assert_array_equal(await good, [vector("good")])
    assert encoder.batches[1] == ["x", "bad", "good"]


async def test_encoder_error_fails_the_batch_and_the_server_continues() -> None:
    encoder = FakeEncoder()
    encoder.fatal = {"fatal"}
    async with scheduling(encoder) as scheduler:
        with pytest.raises(MemoryError):
            await _ask(scheduler, encoder, ["fatal"])
        assert (await _ask(scheduler, encoder, ["next"])).shape == (1, 8)


async def test_too_few_rows_from_the_encoder_fail_the_request() -> None:
    encoder = FakeEncoder()
    encoder.encode = lambda batch: np.zeros((1, 8), dtype=np.float32)  # type: ignore[method-assign]
    async with scheduling(encoder) as scheduler:
        with pytest.raises(BadReplyError, match=r"shape \(1, 8\)"):
            await _ask(scheduler, encoder, ["a", "b"])
