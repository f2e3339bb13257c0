"""A process that wants one vector, and says where it came from.

``python -m real.asker MODEL`` with ``EMBERD_HOME`` set prints the server's URL, its start_id, and
whether this process started it, as JSON.
"""

from __future__ import annotations

import json
import sys

from emberd import Embedder

if __name__ == "__main__":
    embedder = Embedder(sys.argv[1], engine="sglang", device="cpu", start_timeout=300.0)
    vector = embedder.embed_query("one text")
    server = embedder.ensure()
    said = {"url": server.endpoint.url, "start_id": server.start_id, "started": server.started}
    json.dump({**said, "vector": vector.tolist()}, sys.stdout)
