"""What the comparison shares with the tests of the real engines."""

from __future__ import annotations

from managed import stopped_at_the_end
from real.engines import engines_of_this_machine

__all__ = ["engines_of_this_machine", "stopped_at_the_end"]
