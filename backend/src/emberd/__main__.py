"""``python -m emberd``, the same as the command ``emberd``."""

from __future__ import annotations

import sys

from emberd.cli import main

if __name__ == "__main__":
    sys.exit(main())
