"""A new home for each test, which leaves nothing behind."""

from __future__ import annotations

from foreign import foreign, no_default_port, taken
from homes import home, manager, starts, stub

__all__ = ["foreign", "home", "manager", "no_default_port", "starts", "stub", "taken"]
