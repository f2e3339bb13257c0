"""How much of an answer is read from a connection at a time.

httpcore asks for 64 KiB, and each piece goes through five layers of it and of httpx. Twice as much
halves that; pieces from 256 KiB on are slower again, because the allocator takes them from the
kernel each time and gives them back (docs/performance.md has the figures).
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, Final

PIECE_BYTES: Final = 128 * 1024


def abind(stream: Any) -> None:
    """Have ``stream``, an asynchronous network stream of httpcore's, read large pieces."""
    stream.read = functools.partial(_aread, weakref.ref(stream))


async def _aread(of: weakref.ref[Any], max_bytes: int, *more: Any, **named: Any) -> Any:
    # By a weak reference: the stream holds this function, and is to be freed without a collection.
    stream: Any = of()
    return await type(stream).read(stream, max(max_bytes, PIECE_BYTES), *more, **named)
