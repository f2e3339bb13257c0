"""What the record of a gateway says of it, besides what every record contains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """What a gateway in the background is.

    Attributes:
        request: Id of the request that it was started for.
        arguments: Arguments of ``emberd serve``.
        models: The models that it serves.
        addresses: Where it was to listen, as text to compare.
        urls: Its addresses, once it listens.
        pid: Its process; None while there is none.
        restarts: How often its process ended and was replaced.
        refused: Id of the last request to replace it that failed; empty if there is none.
        refusal: Why that failed.
    """

    request: str
    arguments: tuple[str, ...]
    models: tuple[str, ...]
    addresses: str = ""
    urls: tuple[str, ...] = ()
    pid: int | None = None
    restarts: int = 0
    refused: str = ""
    refusal: str = ""
