"""The application of Dockerfile.app: which of the lines of stdin answers the question?

EMBERD_BASE_URL and EMBERD_API_KEY name the server: a gateway, an SGLang server, or a router.
"""

from __future__ import annotations

import sys

import numpy as np

from emberd import Embedder


def main() -> None:
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and its argument
        raise SystemExit("usage: app.py QUESTION < LINES")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise SystemExit("There is no line on stdin to choose from.")
    embedder = Embedder()
    scores = embedder.embed_documents(lines) @ embedder.embed_query(sys.argv[1])
    print(lines[int(np.argmax(scores))])


if __name__ == "__main__":
    main()
