"""Readiness of a starting server, found out without blocking the supervisor."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import examined
import waiting
from emberd.manager.health import poll_readiness
from emberd.system import listeners


def _watch(url: str, *, has_ready: bool) -> Iterator[bool]:
    listener = listeners.find(url)
    assert listener is not None
    return poll_readiness(url, listener, has_ready=has_ready)


def test_a_slow_health_route_does_not_block_and_is_requested_once_at_a_time() -> None:
    asked, answer = threading.Semaphore(0), threading.Event()
    paths: list[str] = []

    def reply(path: str) -> tuple[int, bytes]:
        paths.append(path)
        asked.release()
        answer.wait()
        return 200, b""

    with examined.answering(reply) as url:
        readiness = _watch(url, has_ready=False)
        try:
            assert not next(readiness)
            asked.acquire()
            # The request for /health has no answer yet.
            assert not any(next(readiness) for _ in range(5))
            assert paths == ["/health"]
        finally:
            answer.set()
        waiting.until(lambda: next(readiness))
        assert paths.count("/health") == 1


def test_a_server_that_gets_healthy_later_is_ready_then() -> None:
    statuses = {"/health": 503}
    with examined.answering(lambda path: (statuses[path], b"")) as url:
        readiness = _watch(url, has_ready=False)
        for _ in range(3):
            assert not next(readiness)
        statuses["/health"] = 200
        waiting.until(lambda: next(readiness))


def test_a_server_with_a_ready_route_is_not_asked_for_its_health() -> None:
    paths: list[str] = []
    statuses = [503, 200]

    def reply(path: str) -> tuple[int, bytes]:
        paths.append(path)
        return statuses.pop(0), b""

    with examined.answering(reply) as url:
        readiness = _watch(url, has_ready=True)
        assert [next(readiness), next(readiness)] == [False, True]
    assert paths == ["/ready", "/ready"]


def test_a_server_that_is_gone_is_not_ready() -> None:
    with examined.answering(lambda path: (200, b"")) as url:
        readiness = _watch(url, has_ready=True)
        assert next(readiness)
    assert not next(readiness)
