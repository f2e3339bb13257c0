"""The program of the keeper process: ``python -m emberd.keeper FOLDER NONCE DESCRIPTOR``.

It stands outside ``manager`` because it joins what must not know each other: the keeping of a
server, and the client that asks it for a first embedding.
"""

from __future__ import annotations

import os
import sys

from emberd.client.verify import verify
from emberd.manager import keeper

if __name__ == "__main__":
    # No interpreter shutdown: a probe's thread may still wait for a server that is gone.
    code = keeper.main(sys.argv[1:], verify)
    sys.stderr.flush()
    os._exit(code)
