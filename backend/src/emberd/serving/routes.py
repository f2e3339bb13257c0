"""The routes, and the check of the key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any, Final

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from emberd import __version__
from emberd.serving import bodies, exchange
from emberd.serving.connections import admit
from emberd.serving.encoder import Scorer, TokenEncoder
from emberd.serving.service import Phase, Service
from emberd.serving.telemetry import describe_error

_HEALTH_TIMEOUT_S: Final = 20.0
# By prefix, as in SGLang: orchestrators probe and scrape without secrets.
_OPEN_PATHS: Final = ("/health", "/ready", "/metrics")

_log = logging.getLogger("emberd.serving")

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def create_app(service: Service, key: str | None) -> ASGIApp:
    """Return the ASGI application.

    Args:
        service: The served model.
        key: The key that clients must send; None for none.
    """
    answers = _Routes(service)
    routes = [
        Route("/v1/embeddings", _handled(answers.embeddings), methods=["POST"]),
        Route("/v1/score", _handled(answers.score), methods=["POST"]),
        Route("/v1/tokenize", _handled(answers.tokenize), methods=["POST"]),
        Route("/v1/models", _handled(answers.models)),
        Route("/v1/models/{name:path}", _handled(answers.model)),
        Route("/ready", answers.ready),
        Route("/metrics", answers.metrics),
    ]
    routes += [Route(path, answers.health) for path in ("/health", "/health_generate")]
    for name, handler in (("model_info", answers.model_info), ("server_info", answers.server_info)):
        routes += [Route(path, _handled(handler)) for path in (f"/{name}", f"/get_{name}")]
    handlers: Mapping[Any, Any] = {HTTPException: _no_route}
    app = Starlette(
        routes=routes, lifespan=lambda _: service.running(), exception_handlers=handlers
    )
    return _KeyAuth(app, key)


class _KeyAuth:
    """ASGI middleware that answers 401 to a request without the key, except on probe routes.

    A connection without the key is closed after one answer.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._keys = [key.encode()] if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._keys is None or exchange.has_key(scope, self._keys):
            if admit(scope):
                return await self._app(scope, receive, send)
            full = exchange.json_response(
                {"error": "Too many connections"}, HTTPStatus.SERVICE_UNAVAILABLE
            )
            full.headers["retry-after"] = "1"
            return await full(scope, receive, exchange.closing(send))
        if scope["method"] == "OPTIONS" or scope["path"].startswith(_OPEN_PATHS):
            return await self._app(scope, receive, exchange.closing(send))
        _log.warning("a request without the key was refused")
        refusal = exchange.json_response({"error": "Unauthorized"}, HTTPStatus.UNAUTHORIZED)
        return await refusal(scope, receive, exchange.closing(send, receive))


def _handled(handler: _Handler) -> _Handler:
    """Answer refusals with their bodies, and any other error with a 500 that reveals nothing."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=exchange.CLIENT_CLOSED_REQUEST)
        except bodies.RefusedError as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 - every request gets a reply
            _log.error("a request failed: %s", describe_error(error))
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            refusal = bodies.RefusedError(
                "Internal server error", status=status, kind="InternalServerError"
            )
        return exchange.json_response(refusal.body, refusal.status)

    return answer


class _Routes:
    """The handlers of one service's routes."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def embeddings(self, request: Request) -> Response:
        with self._service.request():
            self._require(is_scorer=False)
            body = await exchange.read_body(request)
            parsed = bodies.parse_embeddings(request.headers.get("content-type", ""), body)
            return await self._computed(request, self._service.embed(parsed))

    async def score(self, request: Request) -> Response:
        with self._service.request():
            self._require(is_scorer=True)
            body, labels = await exchange.read_body(request), self._service.encoder.dimensions
            parsed = bodies.parse_score(request.headers.get("content-type", ""), body, labels)
            return await self._computed(request, self._service.score(parsed))

    def _require(self, *, is_scorer: bool) -> None:
        if isinstance(self._service.encoder, Scorer) != is_scorer:
            does = "scores prompts (/v1/score)" if not is_scorer else "embeds texts"
            raise bodies.RefusedError(f"Model '{self._service.model.name}' {does} only.")

    async def _computed(self, request: Request, work: Awaitable[bytes]) -> Response:
        content = await exchange.unless_disconnected(request, work)
        if content is None:
            self._service.metrics.aborted.inc()
            raise ClientDisconnect
        return Response(content, media_type=bodies.JSON)

    async def tokenize(self, request: Request) -> Response:
        self._service.require_ready()
        encoder = self._service.encoder
        if not isinstance(encoder, TokenEncoder):
            raise bodies.RefusedError(
                f"Model '{self._service.model.name}' has no tokenizer to ask.",
                status=HTTPStatus.NOT_FOUND,
            )
        body = await exchange.read_body(request)
        prompt, special = bodies.parse_tokenize(request.headers.get("content-type", ""), body)
        texts = [prompt] if isinstance(prompt, str) else prompt
        ids = await asyncio.to_thread(
            lambda: [encoder.tokenize(text, special_tokens=special) for text in texts]
        )
        counts = [len(each) for each in ids]
        one = isinstance(prompt, str)
        return exchange.json_response(
            {
                "tokens": ids[0] if one else ids,
                "count": counts[0] if one else counts,
                "max_model_len": self._service.encoder.context_tokens,
            }
        )

    async def models(self, _: Request) -> Response:
        return exchange.json_response({"object": "list", "data": [self._entry()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._service.model.name:
            raise bodies.UnknownModelError(name)
        return exchange.json_response(self._entry())

    def _entry(self) -> dict[str, Any]:
        name = self._service.model.name
        return {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "emberd",
            "root": name,
            "parent": None,
            "max_model_len": self._service.encoder.context_tokens,
        }

    async def model_info(self, _: Request) -> Response:
        encoder, model = self._service.encoder, self._service.model
        return exchange.json_response(
            {
                "model_path": model.name,
                "served_model_name": model.name,
                "tokenizer_path": model.name,
                # As SGLang says of a reranker.
                "is_generation": isinstance(encoder, Scorer),
                "weight_version": model.weight_version,
                "embedding": {"task": "none"}
                if isinstance(encoder, Scorer)
                else {
                    "task": "embed",
                    "pooling": encoder.pooling,
                    "normalize": True,
                    "dimensions": encoder.dimensions,
                    "supports_dimensions": True,
                },
            }
        )

    async def server_info(self, _: Request) -> Response:
        encoder, model = self._service.encoder, self._service.model
        return exchange.json_response(
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
                "enable_deterministic_inference": model.deterministic,
            }
        )

    async def ready(self, _: Request) -> Response:
        is_ready = self._service.phase is Phase.READY
        return Response(status_code=HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def health(self, request: Request) -> Response:
        if self._service.phase is Phase.READY:
            try:
                async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                    await self._service.check_health()
            except Exception as error:  # noqa: BLE001 - any failure means unhealthy
                _log.error("the health probe failed: %s", describe_error(error))
                return Response(status_code=HTTPStatus.SERVICE_UNAVAILABLE)
        return await self.ready(request)

    async def metrics(self, _: Request) -> Response:
        return Response(self._service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _no_route(_: Request, error: HTTPException) -> Response:
    content = bodies.to_json({"detail": error.detail})
    return Response(content, error.status_code, error.headers, bodies.JSON)
