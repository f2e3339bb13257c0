"""What the server writes to its standard error: never a key, never a text."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Final

from emberd.errors import EmberdError

_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


def configure() -> None:
    """Send this package's lines, and the web server's warnings, to standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_FORMAT)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def describe(error: BaseException) -> str:
    """Return what is known of ``error`` without a piece of somebody's document.

    The text of an error that is not ours may quote what it failed on, so only its type and the
    lines of code that it came through are told.
    """
    if isinstance(error, EmberdError):
        return str(error)
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}, raised at\n{frames}"
