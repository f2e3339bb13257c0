"""The tests of both frameworks share one server."""

from __future__ import annotations

from managed import stopped_at_the_end

__all__ = ["stopped_at_the_end"]
