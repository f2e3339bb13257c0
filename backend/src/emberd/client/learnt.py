"""What the answers of a server teach about it, over all the jobs of a client."""

from __future__ import annotations

from dataclasses import dataclass, field

from emberd.settings import Endpoint


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
