"""Callers of a gateway, which count what they lose."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx

import waiting
from fake_server import QWEN

CALLERS: Final = 4


class Load:
    """Callers that send one request after the other, half of them on a new connection each.

    Args:
        url: The root of the gateway.
        key: Its key.
        host: The name by which clients address it.

    Attributes:
        failures: What was not answered with 200.
        answered: How many requests were.
    """

    def __init__(self, url: str, key: str, host: str) -> None:
        self._url = url
        self._headers = {"authorization": f"Bearer {key}", "host": host}
        self._end = threading.Event()
        self._pool = ThreadPoolExecutor(CALLERS)
        self.failures: list[str] = []
        self.answered = 0

    def __enter__(self) -> Load:
        """Start the callers, and wait for their first answers."""
        self._callers = [self._pool.submit(self._call, number) for number in range(CALLERS)]
        waiting.until(lambda: self.answered > CALLERS)
        return self

    def __exit__(self, *_: object) -> None:
        """Let each caller finish its request."""
        self._end.set()
        for each in self._callers:
            each.result(60)
        self._pool.shutdown()

    def goes_on(self) -> None:
        """Wait until more requests have been answered or have failed."""
        before = self.answered + len(self.failures)
        waiting.until(lambda: self.answered + len(self.failures) > before + 2 * CALLERS)

    def _call(self, number: int) -> None:
        client = self._client()
        for count in itertools.count():
            if self._end.is_set():
                break
            if number % 2:
                client.close()
                client = self._client()
            body = {"model": QWEN, "input": f"{number} {count}"}
            try:
                reply = client.post("/v1/embeddings", json=body)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                time.sleep(0.05)
                continue
            if reply.status_code == 200:
                self.answered += 1
            else:
                self.failures.append(f"{reply.status_code} {reply.text[:200]}")
        client.close()

    def _client(self) -> httpx.Client:
        # Without certificates, whose loading takes longer than the requests.
        return httpx.Client(
            base_url=self._url, headers=self._headers, timeout=60, trust_env=False, verify=False
        )
