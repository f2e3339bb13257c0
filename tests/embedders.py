"""Embedders whose manager returns a fake server."""

from __future__ import annotations

import asyncio
from typing import Any

from emberd import Embedder, ServerSpec
from emberd.client.verify import verify
from emberd.manager import Server
from fake_server import MODEL, FakeServer


class FakeManager:
    """Returns a fake server, and records its calls."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.asked: list[dict[str, Any]] = []
        self.uses: list[Server] = []
        self.suspicions: list[Server] = []
        self.on_lost: Exception | None = None

    def is_current(self, server: Server) -> bool:
        return True

    def ensure(self, spec: ServerSpec, **options: Any) -> Server:
        self.asked.append({"spec": spec, **options})
        if options["lost"] is not None and self.on_lost is not None:
            raise self.on_lost
        if not self.server.is_listening:
            self.server.revive()
        found = verify(self.server.url, None, spec, timeout_s=5)
        return Server(found, "own", "it runs", start_id="n", folder="f")

    def used(self, server: Server) -> None:
        self.uses.append(server)

    def report_unresponsive(self, server: Server) -> None:
        self.suspicions.append(server)


def managed(server: FakeServer, **settings: Any) -> tuple[Embedder, FakeManager]:
    """Return an embedder, and the manager that finds its server."""
    manager = FakeManager(server)
    return Embedder(MODEL, manager=manager, **{"timeout": 5, **settings}), manager  # type: ignore[arg-type]


def embed(embedder: Embedder, twin: str, texts: list[str]) -> Any:
    """Embed documents by a method of threads, or by its asynchronous twin."""
    if twin == "threads":
        return embedder.embed_documents(texts)
    return asyncio.run(embedder.aembed_documents(texts))
