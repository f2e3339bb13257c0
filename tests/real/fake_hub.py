"""A model hub on loopback that has nothing to give, and says why as the real one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

GATED: Final = "somebody/gated"
NO_REVISION: Final = "somebody/no-revision"
GONE: Final = "somebody/gone"

# Repository -> status, and the two headers from which the hub's client makes its error.
_ANSWERS: Final = {
    GATED: (403, "GatedRepo", f"Access to model {GATED} is restricted."),
    NO_REVISION: (404, "RevisionNotFound", "Invalid rev id"),
    GONE: (401, "RepoNotFound", "Repository not found"),
}


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        repository = next((name for name in _ANSWERS if name in self.path), GONE)
        status, code, message = _ANSWERS[repository]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, *args: Any) -> None:
        """Keep the output of the tests clean."""


@contextmanager
def serve_hub() -> Iterator[str]:
    """Yield the URL (for ``HF_ENDPOINT``) of a hub that lives as long as the context."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
