"""How much of the campaign runs: a bounded part by default, all of it with FAULTS_SCALE=full."""

from __future__ import annotations

import os


def scale(small: int, full: int) -> int:
    """Return ``full`` for the whole campaign, else ``small``."""
    return full if os.environ.get("FAULTS_SCALE") == "full" else small
