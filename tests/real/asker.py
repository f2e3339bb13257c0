"""A process that wants one vector, and with a reranker one score, and says where they came from.

``python -m real.asker MODEL [RERANKER]`` with ``EMBERD_HOME`` set prints JSON for each: the
server's URL, its start_id, whether this process started it, and the numbers.
"""

from __future__ import annotations

import json
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from emberd import Embedder, Reranker

QUERY: Final = "one text"
DOCUMENT: Final = "another text"
_OPTIONS: Final[dict[str, Any]] = {"engine": "sglang", "device": "cpu", "start_timeout": 300.0}


def _ask(user: Embedder | Reranker) -> dict[str, Any]:
    if isinstance(user, Embedder):
        numbers = user.embed_query(QUERY)
    else:
        numbers = user.scores(QUERY, [DOCUMENT])
    server = user.ensure()
    said = {"url": server.endpoint.url, "start_id": server.start_id, "started": server.started}
    return {**said, "numbers": numbers.tolist()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # random weights may prefer the wrong document
    users: list[Embedder | Reranker] = [Embedder(sys.argv[1], **_OPTIONS)]
    users += [Reranker(model, **_OPTIONS) for model in sys.argv[2:]]
    with ThreadPoolExecutor(len(users)) as pool:
        for answer in pool.map(_ask, users):
            print(json.dumps(answer))
