"""The gateway of ``emberd serve``: one stable address with the API of OpenAI, and Cohere's rerank.

::

    names           model names and fields of a request: model, role, task, dimensions
    api_bodies      request and reply bodies, and errors in OpenAI's shape
    served_models   the served models: an Embedder or a Reranker each
    access          who may ask: key, Host, Origin, user at the other end of a Unix socket
    addresses       the listening sockets, and the key
    metrics         Prometheus metrics
    page            the page for browsers on this machine (page.html)
    api             the routes, the memory budget, the drain
    run             the process
    background_gateway  a gateway in the background: start, replacement, status, stop
    gateway_supervisor  its supervisor

It embeds with ``Embedder`` and scores with ``Reranker``: servers, prompts, checks, cache and
coalescing are theirs. The HTTP parts that emberd's own server has too are in ``serving``.
"""

from __future__ import annotations

from typing import Final

DEFAULT_HOST: Final = "127.0.0.1"
"""The address of the gateway's TCP socket."""

DEFAULT_PORT: Final = 7475
"""Its port: below those that Linux gives to clients, and not in common use."""
