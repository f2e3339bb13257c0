"""One call of ``embed``, through threads or through tasks: most claims hold for both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal
from unittest import mock

from emberd.client import loopback
from emberd.client.clients import AsyncClient, Client
from emberd.client.retry import RetryPolicy
from emberd.client.vectors import Floats
from emberd.endpoint import Endpoint
from emberd.prompts import Template
from emberd.settings import Settings
from fake_server import MODEL

Kind = Literal["threads", "tasks", "remote tasks"]
"""The last sends as to a server on another machine."""

KINDS: Final[tuple[Kind, ...]] = ("threads", "tasks")
WITH_REMOTE: Final[tuple[Kind, ...]] = (*KINDS, "remote tasks")

QUICK: Final = RetryPolicy(first_s=0.001, longest_s=0.002, busy_s=60, connect_tries=3)

Reconnect = Callable[[Endpoint], Endpoint]


def embed(
    kind: Kind,
    endpoint: Endpoint,
    texts: Sequence[Any],
    *,
    template: Template = "{text}",
    reconnect: Reconnect | None = None,
    on_done: Callable[[int], None] | None = None,
    policy: RetryPolicy = QUICK,
    callbacks: dict[str, Any] | None = None,
    **settings: Any,
) -> Floats:
    resolved = Settings.resolve(**{"model": MODEL, "timeout": 5, **settings})
    options = {"policy": policy, **(callbacks or {})}
    if kind == "threads":
        client = Client(lambda: endpoint, resolved, reconnect=reconnect, **options)
        try:
            return client.embed(texts, template, on_done)
        finally:
            client.close()

    async def ask() -> Endpoint:
        return endpoint

    async def areconnect(lost: Endpoint) -> Endpoint:
        assert reconnect is not None
        return reconnect(lost)

    client_of_loop = AsyncClient(
        ask, resolved, reconnect=areconnect if reconnect else None, **options
    )
    suits = loopback.suits if kind == "tasks" else lambda _: False
    with mock.patch.object(loopback, "suits", suits):
        return asyncio.run(client_of_loop.embed(texts, template, on_done))
