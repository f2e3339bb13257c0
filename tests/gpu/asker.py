"""A process that wants one vector: waits for a line on its input, asks, and prints what it got.

``python asker.py MODEL DEVICE START_TIMEOUT`` with ``EMBERD_HOME`` set.
"""

from __future__ import annotations

import json
import sys
import time

from emberd import Embedder

TEXT = "one text"


def main(model: str, device: str, start_timeout: str) -> None:
    """Say that all is loaded; ask when told; print the answer as JSON."""
    embedder = Embedder(
        model,
        engine="sglang",
        device=device,
        start_timeout=float(start_timeout),
        idle_timeout=None,
    )
    print("loaded", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    vector = embedder.embed_query(TEXT)
    seconds = time.monotonic() - began
    server = embedder.ensure()
    answer = {"start_id": server.start_id, "started": server.started, "seconds": seconds}
    print(json.dumps({**answer, "vector": vector.tolist()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
