"""Waiting for a gateway that starts the server of its model for the first request.

It is verified again and again until then. In ``system``: the manager waits for a given address, and
the handle of a server for a given client.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from emberd.errors import ServerUnavailableError
from emberd.system.bounded_http import bounded

T = TypeVar("T")

_PAUSE_S: Final = 1.0  # a gateway may answer at once that it still starts the server
_LEAST_S: Final = 2 * _PAUSE_S  # for another try: the pause, and as long for the verification


def await_gateway(verify: Callable[[], T], timeout_s: float) -> T:
    """Return what ``verify`` returns; all tries together take ``timeout_s`` at most.

    Raises:
        ServerUnavailableError: It does not answer, or still starts the server at the end.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            with bounded(end_s - time.monotonic()):
                return verify()
        except ServerUnavailableError as error:
            _check(error, end_s)
        time.sleep(_PAUSE_S)


async def await_gateway_on_loop(verify: Callable[[], Awaitable[T]], timeout_s: float) -> T:
    """Do as ``await_gateway``, on the running event loop."""
    end_s = time.monotonic() + timeout_s
    while True:
        try:
            with bounded(end_s - time.monotonic()):
                return await verify()
        except ServerUnavailableError as error:
            _check(error, end_s)
        await asyncio.sleep(_PAUSE_S)


def _check(error: ServerUnavailableError, end_s: float) -> None:
    """Raise ``error`` unless another try may succeed in time."""
    if not error.is_starting or end_s - time.monotonic() < _LEAST_S:
        raise error
