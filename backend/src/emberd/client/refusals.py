"""Errors for texts that a server does not take, or does not survive; and for other servers."""

from __future__ import annotations

from emberd.client.texts import excerpt
from emberd.endpoint import Endpoint
from emberd.errors import PoisonTextError, RejectedError, ServerMismatchError, TextError


def refused(place: int, error: RejectedError) -> TextError:
    """Return the error for a text that was refused when it went by itself.

    Args:
        place: Its place among the caller's texts.
        error: What the server said.
    """
    return TextError(f"Text {place} was refused: {error}", index=place)


def poison(place: int, text: str, deaths: int) -> PoisonTextError:
    """Return the error for a text that the server dies of.

    Args:
        place: Its place among the caller's texts.
        text: The text.
        deaths: How often the server died.
    """
    return PoisonTextError(
        f"The server died {deaths} times while it embedded text {place} ({excerpt(text)}), the "
        f"last time with nothing else in flight. Leave this text out, and report it with the "
        f"server's log (emberd logs).",
        index=place,
    )


def other_cache(cached: int, endpoint: Endpoint) -> ServerMismatchError:
    """Return the error for a cache with vectors of ``cached`` dimensions, unlike the server's."""
    return ServerMismatchError(
        f"The cache has vectors of {cached} dimensions for this model, and {endpoint.model} at "
        f"{endpoint.url} gives {endpoint.dimensions}. Look which of them is of another model, or "
        f"use another cache."
    )


def other_server(before: Endpoint, now: Endpoint) -> ServerMismatchError:
    """Return the error for a server that gives vectors of another length than the one before."""
    return ServerMismatchError(
        f"The server at {now.url} gives {now.dimensions} dimensions, the one before it gave "
        f"{before.dimensions}. Embed all texts again with one of them."
    )
