"""The key, asked for before any route but the probes is reached."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from emberd.serving import wire

# By prefix, as SGLang has it: orchestrators probe and scrape without secrets.
_OPEN: Final = ("/health", "/ready", "/metrics")
_SCHEME: Final = b"bearer"


class KeyGuard:
    """ASGI middleware that answers 401 to a request without the key."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] != "http" or self._allows(scope):
            await self._app(scope, receive, send)
            return
        refusal = Response(
            wire.render_unauthorized(), HTTPStatus.UNAUTHORIZED, media_type=wire.JSON
        )
        await refusal(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if self._key is None or scope["method"] == "OPTIONS" or scope["path"].startswith(_OPEN):
            return True
        return hmac.compare_digest(_token(scope["headers"]), self._key)


def _token(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    return token if scheme.lower() == _SCHEME else b""
