"""The process of the server.

Run as::

    python -m emberd.serving --encoder demo --host 127.0.0.1 --port 30000

emberd itself gives it a socket that already listens (``--fd``), so that no other process can take
the port.

The key that clients must send comes in the environment variable ``EMBERD_SERVER_KEY``: command
lines are for everybody on the machine to read. SIGTERM drains: requests that were taken are
answered, then the process exits with 0. A second SIGTERM, or one while the model is loading,
ends it at once.
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
from collections.abc import Sequence
from types import FrameType
from typing import Final

import uvicorn

from emberd.catalog import DEMO_MODEL
from emberd.env import SERVER_KEY
from emberd.serving import MODULE, encoders, logs
from emberd.serving.app import create_app
from emberd.serving.encoder import Checkpoint
from emberd.serving.service import Identity, Phase, Service

EXIT_FAILED: Final = 1
EXIT_NO_PORT: Final = 3

# Longer than clients keep an idle connection: the side that closes first must not be the one
# that a request is on its way to.
_KEEP_ALIVE_S: Final = 75
# All answers are computed when this begins to count; only their last bytes are still to go.
_FLUSH_S: Final = 10

_log = logging.getLogger("emberd.serving")


class _Server(uvicorn.Server):
    """uvicorn, but a signal first drains the service while the port stays open for probes."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the service has nothing left to do."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once when there is nothing to lose, or asked twice."""
        if self._loop is None or self._service.phase is not Phase.READY:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            return
        self._loop.call_soon_threadsafe(self._service.drain)

    def leave(self) -> None:
        """Close the port and end ``serve``."""
        self.should_exit = True


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes; return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if (given.encoder == encoders.DEMO) != (given.model_path is None):
        parser.error(f"--model-path goes with --encoder {encoders.TRANSFORMERS}, which needs it")
    # Taken out, so that no child of this process and no dump of os.environ has it.
    key = os.environ.pop(SERVER_KEY, None)
    logs.configure()
    listener = _listen(given.host, given.port) if given.fd is None else _inherit(given.fd)
    if listener is None:
        return EXIT_NO_PORT
    identity = Identity(
        model=given.served_model_name or given.model_path or DEMO_MODEL,
        weight_version=given.weight_version,
        cut_any=not given.refuse_untrained_dimensions,
        revision=given.revision,
    )
    encoder = encoders.create(given.encoder, _checkpoint(given))
    return _serve(Service(encoder, identity), listener, key)


def _checkpoint(given: argparse.Namespace) -> Checkpoint | None:
    if given.model_path is None:
        return None
    return Checkpoint(
        model=given.model_path,
        revision=given.revision,
        device=given.device,
        dtype=given.dtype,
        context_tokens=given.context_tokens,
    )


def _serve(service: Service, listener: socket.socket, key: str | None) -> int:
    config = uvicorn.Config(
        app=create_app(service, key),
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    server = _Server(config, service)
    service.when_done(server.leave)
    server.run(sockets=[listener])
    return EXIT_FAILED if service.phase is Phase.FAILED else os.EX_OK


def _listen(host: str, port: int) -> socket.socket | None:
    # Before the model is loaded: a port that is taken shows at once, and progress can be asked.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only where it is: otherwise the body
    # of each reply waits 40 ms for the acknowledgement of its headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "address already in use" if taken else error.strerror
        _log.error("cannot listen on %s port %d: %s", host, port, reason)
        listener.close()
        return None
    _log.info("listening on %s port %d", host, listener.getsockname()[1])
    return listener


def _inherit(descriptor: int) -> socket.socket | None:
    try:
        listener = socket.socket(fileno=descriptor)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, "it does not listen")
    except OSError as error:
        _log.error("cannot serve on descriptor %d: %s", descriptor, error.strerror)
        return None
    listener.set_inheritable(False)
    _log.info("listening on port %d", listener.getsockname()[1])
    return listener


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Serve an embedding model over HTTP, as SGLang does.",
        epilog=f"The key that clients must send is read from {SERVER_KEY}.",
        allow_abbrev=False,
    )
    parser.add_argument("--encoder", choices=encoders.NAMES, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--port", type=int, help="0 for any that is free")
    place.add_argument("--fd", type=int, help="descriptor of a socket that listens already")
    parser.add_argument("--served-model-name", help="what /v1/models says; the model's own name")
    parser.add_argument("--weight-version", default="default", help="shown by /model_info")
    parser.add_argument(
        "--refuse-untrained-dimensions",
        action="store_true",
        help="answer 400 to dimensions when the model was not trained to be cut",
    )
    _add_checkpoint(parser)
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model of --encoder transformers")
    group.add_argument("--model-path", help="a name on the hub, or a folder")
    group.add_argument("--revision", help="a commit, branch or tag on the hub")
    group.add_argument("--device", help="cpu, cuda or mps; the best that is there")
    group.add_argument("--dtype", help="bfloat16 or float32; what the device computes well")
    group.add_argument(
        "--context-tokens", type=int, help="the longest text that must fit; the model's own limit"
    )


if __name__ == "__main__":
    sys.exit(main())
