"""SGLang of each supported version, as far as its answers were recorded in ``sglang_routes``.

Statuses and bodies are the real server's; ``real/record_routes.py`` says how they were obtained.
Vectors and token ids of good answers are computed as ``FakeServer`` does.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from emberd.engines.sglang import support
from fake_server import QWEN, FakeServer
from http_server import Request, reply

KEY: Final = "the-right-key"
_FOLDER: Final = Path(__file__).parent / "sglang_routes"
VERSIONS: Final = tuple(support.VERSIONS)
WITHOUT_READY: Final = tuple(name for name in VERSIONS if not support.VERSIONS[name].has_ready)
_COMPUTED: Final = ("POST /v1/embeddings", "POST /v1/tokenize")


@cache
def recording(version: str) -> dict[str, Any]:
    """Return what was recorded of one version."""
    content: dict[str, Any] = json.loads((_FOLDER / f"{version}.json").read_text("utf-8"))
    return content


@dataclass
class RecordedSglang(FakeServer):
    """A server of a version; with ``api_key=KEY`` or without a key, starting or ready."""

    model: str = QWEN
    dimensions: int = 1024
    context_tokens: int | None = 8192
    version: str = "0.5.23"
    phase: str = "ready"

    def _respond(self, request: Request, connection: socket.socket) -> bytes:
        server = recording(self.version)["with_key" if self.api_key else "without_key"]
        routes = server[self.phase]
        route = f"{request.method} {request.path}"
        by_key = routes.get(route) or routes["GET /no-such-route"]
        entry = by_key.get("any") or by_key[self._kind(request)]
        if entry["status"] == 200 and route in _COMPUTED:
            return self.routes()[request.path](request, connection)
        return reply(entry["status"], self._body(entry["body"]))

    def _kind(self, request: Request) -> str:
        sent = request.headers.get("authorization")
        if sent is None or self.api_key is None:
            return "none"
        return "right" if sent == f"Bearer {self.api_key}" else "wrong"

    def _body(self, body: Any) -> bytes:
        lines = "\n".join([*body, ""]) if isinstance(body, list) else body
        text = lines if isinstance(lines, str) else json.dumps(lines)
        return text.replace("<model>", self.model).encode()
