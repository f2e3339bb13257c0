"""A home and a manager for the tests against recorded servers."""

from __future__ import annotations

from foreign import no_default_port
from homes import home, manager

__all__ = ["home", "manager", "no_default_port"]
