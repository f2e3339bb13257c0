"""Errors for single texts that a server does not take, or does not survive."""

from __future__ import annotations

from emberd.client.texts import excerpt
from emberd.errors import PoisonTextError, RejectedError, TextError


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
