"""Homes of their own, and a manager in one."""

from __future__ import annotations

from foreign import taken
from homes import home, manager

__all__ = ["home", "manager", "taken"]
