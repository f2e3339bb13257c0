"""``python -m emberd.cli``."""

from __future__ import annotations

import sys

from emberd.cli import main

if __name__ == "__main__":
    sys.exit(main())
