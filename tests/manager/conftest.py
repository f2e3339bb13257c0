"""A home of its own for each test, and nothing left of it afterwards."""

from __future__ import annotations

from homes import home, manager, starts, stub

__all__ = ["home", "manager", "starts", "stub"]
