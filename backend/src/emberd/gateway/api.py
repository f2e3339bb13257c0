"""The routes of the gateway, its memory budget, and its drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from http import HTTPStatus
from typing import Any, Final, TypeVar

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from emberd import tracing
from emberd.errors import RequestError
from emberd.gateway import api_bodies, page
from emberd.gateway.access import PAGE, Access
from emberd.gateway.api_bodies import ErrorReply
from emberd.gateway.metrics import GatewayMetrics
from emberd.gateway.served_models import ServedModels
from emberd.serving import bodies, exchange
from emberd.serving.bodies import EmbeddingRequest, RefusedError
from emberd.serving.connections import Connections
from emberd.serving.telemetry import describe_error

MOST_MEMORY_BYTES: Final = 512 * 1024 * 1024
"""For the bodies and replies of all requests in flight."""

NO_ROUTE: Final = "no_route"
"""The code of errors about the path or the method of a request."""

# Of the body itself: its texts as Python strings, in their template, in the request to a server.
_BODY_COPIES: Final = 4
# Of the object of a string, which begins and ends with a quote.
_QUOTE_BYTES: Final = 32
# Of what is put beside each text: at most 4 bytes for a character of a Python string, and the
# constant parts of a template.
_CHARACTER_BYTES: Final = 4
_TEMPLATE_CHARACTERS: Final = 512
# Of a number of a native vector: 4 in the matrix and 4 in a row.
_NUMBER_BYTES: Final = 8
# Of a number of a reply: its text twice, in the row and in the reply.
_BASE64_BYTES: Final = 12
_DIGITS_BYTES: Final = 48
_DOCUMENT_BYTES: Final = 256
# About 10 ms of work, as digits and as base64.
_SLOW_DIGITS: Final = 100_000
_SLOW_BASE64: Final = 5_000_000
# Cohere's two versions, and the one of servers without versions.
_RERANK_PATHS: Final = ("/v1/rerank", "/v2/rerank", "/rerank")
# Clients that are between two requests get this long to learn that the connection will be closed.
_LINGER_S: Final = 2.0
_POLL_S: Final = 0.05

T = TypeVar("T")

_log = logging.getLogger("emberd.gateway")

_Answer = Callable[[Request, "_Call"], Awaitable[Response]]


class _Call:
    """One request, until the client has been sent the whole reply.

    Attributes:
        model: The model that it named, for the metrics; empty until it is found.
        reserved: Bytes that it has of the memory budget.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.model = ""
        self.reserved = 0

    def reserve(self, count: int) -> None:
        """Take memory from the budget until the reply is sent.

        Raises:
            RefusedError: Other requests have it.
        """
        self._gateway.reserve(self, count)

    def reserve_prompts(self, count: int, characters: int) -> None:
        """Take memory for prompts that have ``characters`` besides their text.

        Raises:
            RefusedError: Other requests have it, or it is more than there is.
        """
        size = count * (characters + _TEMPLATE_CHARACTERS) * _CHARACTER_BYTES
        if size > MOST_MEMORY_BYTES:
            raise RefusedError(
                f"{count} prompts with {characters} characters of query or task each are too "
                f"large. Send fewer texts at a time, or shorten what is added to each.",
                status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        self.reserve(size)

    async def body(self, request: Request) -> bytes:
        """Return the body of the request; memory is taken as it arrives."""
        body = await exchange.read_body(request, lambda count: self.reserve(_BODY_COPIES * count))
        self.reserve(body.count(b'"') * _QUOTE_BYTES)
        return body


class Gateway:
    """The served models, and the requests in flight. Lives on one event loop.

    Args:
        models: The models.
        connections: The connections of the process.
        preloads: Whether the servers of all models are started before it is ready.

    Attributes:
        stop_listening: Called when the drain begins.
        on_ready: Called when ``/ready`` says so.
        on_done: Called when the drain ends, or a server cannot be started before it is ready.
        failure: Why that server cannot be started.
    """

    def __init__(
        self, models: ServedModels, connections: Connections, *, preloads: bool = False
    ) -> None:
        self._models = models
        self._connections = connections
        self.metrics = GatewayMetrics(models.tasks)
        self.is_draining = False
        self.is_ready = not preloads
        self.failure: Exception | None = None
        self._in_flight = 0
        self._reserved = 0
        self.stop_listening: Callable[[], None] = lambda: None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_done: Callable[[], None] = lambda: None
        self.metrics.in_flight.set_function(lambda: self._in_flight)
        self.metrics.reserved.set_function(lambda: self._reserved)

    def app(self, keys: Collection[str], hosts: Collection[str]) -> ASGIApp:
        """Return the ASGI application; see ``Access`` for the arguments."""
        routes = [
            Route("/v1/embeddings", self._handled("embeddings", self._embed), methods=["POST"]),
            Route("/v1/models", self._models_route),
            Route("/v1/models/{name:path}", self._handled("models", self._model)),
            Route("/servers", self._handled("servers", self._servers)),
            Route(PAGE, page.respond),
            Route("/health", _health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
        ]
        rerank = self._handled("rerank", self._rerank)
        routes += [Route(path, rerank, methods=["POST"]) for path in _RERANK_PATHS]
        app = Starlette(
            routes=routes,
            lifespan=self._running,
            exception_handlers={HTTPException: _no_route},  # type: ignore[dict-item]  # of its kind
        )
        return Access(app, keys, hosts, self.metrics, lambda: self.is_draining)

    @property
    def can_drain(self) -> bool:
        """Whether a signal drains; the second one ends the process at once."""
        return not self.is_draining

    def drain(self) -> None:
        """Accept no connection; answer what arrives on the open ones, then finish."""
        self.is_draining = True
        _log.info("draining: %d requests in flight", self._in_flight)
        self.stop_listening()
        until = time.monotonic() + _LINGER_S
        # Later: connections that were just accepted are not counted yet.
        asyncio.get_running_loop().call_later(_POLL_S, self._finish, until)

    @contextlib.contextmanager
    def call(self) -> Iterator[_Call]:
        """Yield a request, which is in flight until the end of the block."""
        call = _Call(self)
        self._in_flight += 1
        try:
            yield call
        finally:
            self._in_flight -= 1
            self._reserved -= call.reserved

    def reserve(self, call: _Call, count: int) -> None:
        """Take ``count`` bytes from the memory budget for a request.

        While no other request has any, it is admitted, however large it is.

        Raises:
            RefusedError: Other requests have the memory.
        """
        others = self._reserved - call.reserved
        if others and self._reserved + count > MOST_MEMORY_BYTES:
            raise RefusedError(
                "The requests in flight take all memory that the gateway has for them. Try again, "
                "or send fewer texts at a time.",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
            )
        self._reserved += count
        call.reserved += count

    def _finish(self, until: float) -> None:
        """Finish if nothing is open; otherwise look again soon."""
        if self._in_flight or (self._connections.count and time.monotonic() < until):
            asyncio.get_running_loop().call_later(_POLL_S, self._finish, until)
        else:
            self.on_done()

    @contextlib.asynccontextmanager
    async def _running(self, _: Starlette) -> AsyncIterator[None]:
        preparing = asyncio.create_task(self._prepare())
        yield
        preparing.cancel()
        await self._models.close()

    async def _prepare(self) -> None:
        """Start the servers that must run before it is ready."""
        try:
            if not self.is_ready:
                await self._models.preload()
        except Exception as error:  # noqa: BLE001 - whatever it is, the process ends with it
            self.failure = error
            self.on_done()
            return
        self.is_ready = True
        self.on_ready()

    def _handled(self, route: str, answer: _Answer) -> Callable[[Request], Awaitable[ASGIApp]]:
        """Return a handler that counts, and turns each error into a reply."""

        async def handle(request: Request) -> ASGIApp:
            arrived = time.monotonic()
            with contextlib.ExitStack() as stack:
                call = stack.enter_context(self.call())
                # Its end is not in another task or context, as that of the reply may be.
                with tracing.remote_parent(request.headers):
                    response = await self._answered(request, call, answer)
                self.metrics.requests.labels(route, call.model, response.status_code).inc()
                self.metrics.seconds.labels(route).observe(time.monotonic() - arrived)
                return _reply(response, stack.pop_all())

        return handle

    async def _answered(self, request: Request, call: _Call, answer: _Answer) -> Response:
        try:
            return await answer(request, call)
        except ClientDisconnect:
            return Response(status_code=exchange.CLIENT_CLOSED_REQUEST)
        except Exception as error:  # noqa: BLE001 - every request gets a reply
            reply = ErrorReply.of(error)
            if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                # The message of an error about texts may quote one.
                is_quoting = isinstance(error, RequestError)
                shown = type(error).__name__ if is_quoting else describe_error(error)
                _log.error("a request for %r failed: %s", call.model, shown)
            response = exchange.json_response(reply.body, reply.status)
            response.headers.update(reply.headers)
            return response

    async def _embed(self, request: Request, call: _Call) -> Response:
        body = await call.body(request)
        parsed = api_bodies.parse_embed(request.headers.get("content-type", ""), body)
        call.model, model, named = self._models.embedder(parsed.model)
        asked = named.joined(parsed.asked)
        native, count = model.native_dimensions, len(parsed.texts)
        per_number = _BASE64_BYTES if parsed.base64 else _DIGITS_BYTES
        width = min(asked.dimensions or native, native)
        call.reserve_prompts(count, len(asked.task or ""))
        call.reserve(count * (native * _NUMBER_BYTES + width * per_number))
        work = model.embed(parsed.texts, asked)
        vectors, tokens = await _unless_disconnected(request, work)
        self._count(call.model, asked.role or "document", len(parsed.texts), tokens)
        form = EmbeddingRequest(base64=parsed.base64)
        # In a thread only if it takes long: changing threads takes longer than one vector.
        if vectors.size > (_SLOW_BASE64 if parsed.base64 else _SLOW_DIGITS):
            content = await asyncio.to_thread(
                bodies.render_embeddings, parsed.model, vectors, tokens, form
            )
        else:
            content = bodies.render_embeddings(parsed.model, vectors, tokens, form)
        return Response(content, media_type=bodies.JSON)

    async def _rerank(self, request: Request, call: _Call) -> Response:
        body = await call.body(request)
        parsed = api_bodies.parse_rerank(request.headers.get("content-type", ""), body)
        call.model, model, named = self._models.reranker(parsed.model)
        call.reserve(len(parsed.documents) * _DOCUMENT_BYTES + len(body) * parsed.returns_documents)
        asked = named.joined(parsed.asked)
        characters = len(parsed.query) + len(asked.task or "")
        call.reserve_prompts(len(parsed.documents), characters)
        work = model.rerank(parsed.query, parsed.documents, parsed.top_n, asked)
        ranked, tokens = await _unless_disconnected(request, work)
        self._count(call.model, "pair", len(parsed.documents), tokens)
        return exchange.json_response(api_bodies.ranking(parsed, ranked, tokens))

    def _count(self, model: str, role: str, texts: int, tokens: int) -> None:
        self.metrics.texts.labels(model, role).inc(texts)
        self.metrics.tokens.labels(model).inc(tokens)

    async def _models_route(self, _: Request) -> Response:
        return exchange.json_response({"object": "list", "data": [*self._models.entries()]})

    async def _model(self, request: Request, _: _Call) -> Response:
        return exchange.json_response(self._models.entry(request.path_params["name"]))

    async def _servers(self, _: Request, __: _Call) -> Response:
        # In a thread: it reads files, and may wait for a lost record.
        overview = await asyncio.to_thread(page.overview, self._models, self.metrics)
        return exchange.json_response(overview)

    async def _ready(self, _: Request) -> Response:
        is_ready = self.is_ready and not self.is_draining
        return Response(status_code=HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _metrics(self, _: Request) -> Response:
        content = await asyncio.to_thread(self.metrics.render)
        return Response(content, media_type=CONTENT_TYPE_LATEST)


def _reply(response: Response, stack: contextlib.ExitStack) -> ASGIApp:
    """Return what sends a reply, and closes ``stack`` once the client has been sent all of it."""

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        with stack:
            await response(scope, receive, send)
            await exchange.sent(scope)

    return reply


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``, which begins after the whole body was read.

    Raises:
        ClientDisconnect: The client disconnected, which cancels it.
    """
    result = await exchange.unless_disconnected(request, work)
    if result is None:
        raise ClientDisconnect
    return result


async def _health(_: Request) -> Response:
    return Response()


async def _no_route(_: Request, error: HTTPException) -> Response:
    reply: Any = ErrorReply.saying(error.detail, error.status_code, NO_ROUTE)
    response = exchange.json_response(reply.body, error.status_code)
    response.headers.update(error.headers or {})
    return response
