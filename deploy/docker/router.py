"""The start of sglang's router, with the key from the variable SGLANG_KEY.

The router takes its key only as an argument, which every user of the machine could read with ps.
"""

from __future__ import annotations

import os
import sys

from sglang_router.launch_router import main

if key := os.environ.pop("SGLANG_KEY", ""):
    sys.argv += ["--api-key", key]
main()
