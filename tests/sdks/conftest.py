"""Clients in other packages and languages, against a gateway whose servers record what they get.

Their pins clash with those of the frameworks, so they have an environment of their own
(``make test-sdks``).
"""

from __future__ import annotations

from gateway.conftest import _faked, faked

__all__ = ["_faked", "faked"]
