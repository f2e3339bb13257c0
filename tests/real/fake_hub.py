"""A model hub on loopback that has nothing to give, and says why as the real one does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from http_server import HttpServer, Request, reply

GATED: Final = "somebody/gated"
NO_REVISION: Final = "somebody/no-revision"
GONE: Final = "somebody/gone"

# Repository -> status, and the two headers from which the hub's client makes its error.
_ANSWERS: Final = {
    GATED: (403, "GatedRepo", f"Access to model {GATED} is restricted."),
    NO_REVISION: (404, "RevisionNotFound", "Invalid rev id"),
    GONE: (401, "RepoNotFound", "Repository not found"),
}


def _answer(request: Request, _: socket.socket) -> bytes:
    repository = next((name for name in _ANSWERS if name in request.path), GONE)
    status, code, message = _ANSWERS[repository]
    return reply(status, b"", {"X-Error-Code": code, "X-Error-Message": message})


@contextmanager
def serve_hub() -> Iterator[str]:
    """Yield the URL (for ``HF_ENDPOINT``) of a hub that lives as long as the context."""
    with HttpServer(_answer) as server:
        yield server.url
