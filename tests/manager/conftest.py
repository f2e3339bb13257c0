"""A home of its own for each test, and nothing left of it afterwards."""

from __future__ import annotations

from foreign import foreign, no_default_port, taken
from homes import home, manager, starts, stub

__all__ = ["foreign", "home", "manager", "no_default_port", "starts", "stub", "taken"]
