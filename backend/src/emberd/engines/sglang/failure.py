"""What a known failure of SGLang is: how its log tells it, and what to say of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SHORTER: Final = (
    "ask for shorter texts, `--context-tokens 8192` (`context_tokens=8192`): all memory is then "
    "planned anew"
)
"""What needs less memory. Never a size of the KV cache: one that is smaller than the context makes
long texts wait for ever, and emberd plans it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One way in which a server fails.

    Attributes:
        name: What it is called in ``docs/failures.md``.
        mark: Found in the log of a server that failed like this, and of no other that stands
            behind it in the table. Its named groups are values for ``cause`` and ``advice``.
        cause: What happened, in one sentence. ``{...}`` is a group of ``mark``, or ``model`` or
            ``port`` from the server's settings.
        advice: What to type or to change.
        source: Where the wording comes from, as file and line below the packages' root, when no
            run of ours has produced the failure; None when one has, whose log is kept.
        port_taken: It lost the HTTP port to somebody else.
        killed: Somebody from outside killed it: nothing of its own is known to be wrong.
    """

    name: str
    mark: re.Pattern[str]
    cause: str
    advice: str
    source: str | None = None
    port_taken: bool = False
    killed: bool = False

    @property
    def proven(self) -> bool:
        """Whether a real run has produced it, and not its wording alone is known."""
        return self.source is None
