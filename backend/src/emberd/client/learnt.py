"""What the answers of a server teach about it, over all the jobs of a client."""

from __future__ import annotations

from dataclasses import dataclass, field

from emberd.client.protocol import Gone
from emberd.endpoint import Endpoint
from emberd.errors import ServerMismatchError


@dataclass(slots=True)
class Learnt:
    """What became known of endpoints while they were used; shared by threads.

    Attributes:
        named: The model that the first reply of each named.
        uncut: Those that refuse to cut vectors to fewer dimensions.
        limits: How many tokens a text may have, where one takes fewer than it states.
    """

    named: dict[Endpoint, str] = field(default_factory=dict)
    uncut: set[Endpoint] = field(default_factory=set)
    limits: dict[Endpoint, int] = field(default_factory=dict)

    def swapped(self, endpoint: Endpoint, model: str | None) -> Gone | None:
        """Return what it means that a reply names ``model``, when it is not what one named before.

        A server of somebody else's may be swapped for one of another model under its address,
        which nothing else tells where both have the same dimensions.
        """
        first = self.named.setdefault(endpoint, model) if model is not None else model
        if first == model:
            return None
        error = ServerMismatchError(
            f"{endpoint.url} gave vectors of {first} before and gives those of {model} now: "
            f"another server has taken its place. Serve {first} there again, or make a new "
            f"embedder and embed all texts again."
        )
        return Gone(error, reached=False)
