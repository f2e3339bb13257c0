"""The process of ``emberd serve``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emberd.embedder import Embedder
from emberd.gateway import addresses
from emberd.gateway.addresses import Addresses
from emberd.gateway.api import Gateway
from emberd.gateway.served_models import ServedModels
from emberd.reranker import Reranker
from emberd.serving import telemetry
from emberd.serving.asgi_process import DrainingServer
from emberd.serving.connections import Connections

_log = logging.getLogger("emberd.gateway")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How the gateway is reached.

    Attributes:
        addresses: Where it listens.
        key: The key of its clients; None for one from a file.
        key_file: A file with a key in each line; None for one in the gateway's folder.
        hosts: Names that requests may have as ``Host``.
        preloads: Whether the servers of all models are started before it is ready.
        takes_over: Whether another gateway answers on the same sockets until this one is ready.
        ready_descriptor: Where a byte is written once it is ready; None if no process waits.
    """

    addresses: Addresses
    key: str | None = None
    key_file: Path | None = None
    hosts: tuple[str, ...] = ()
    preloads: bool = False
    takes_over: bool = False
    ready_descriptor: int | None = None


def run(users: Sequence[Embedder | Reranker], options: GatewayOptions) -> None:
    """Serve models until SIGTERM or SIGINT, and answer what is in flight then.

    Args:
        users: An embedder or a reranker for each model.
        options: How the gateway is reached.

    Raises:
        SettingError: An option cannot be used.
        StateFolderError: Others can write to a folder of the gateway.
        EmberdError: A server that is to be started before it is ready cannot be started.
    """
    if options.ready_descriptor is not None:
        os.set_inheritable(options.ready_descriptor, False)
    telemetry.configure_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each request
    models = ServedModels(users)
    folder = options.addresses.folder
    keys, source = addresses.read_keys(folder, options.key, options.key_file)
    with addresses.listening(options.addresses) as listening:
        if options.preloads and options.takes_over:
            # Before it accepts a connection: the other gateway has its servers.
            asyncio.run(_preloaded(models))
        connections = Connections()
        answers_meanwhile = options.preloads and not options.takes_over
        gateway = Gateway(models, connections, preloads=answers_meanwhile)
        server = DrainingServer(gateway.app(keys, options.hosts), gateway, connections)

        def stop_listening() -> None:
            listening.release()  # first: no client connects to a socket that is being closed
            server.stop_listening()

        def say_ready() -> None:
            if options.ready_descriptor is not None:
                os.write(options.ready_descriptor, b"1")
                os.close(options.ready_descriptor)

        gateway.stop_listening = stop_listening
        gateway.on_ready = say_ready
        for listener in listening.sockets:
            _log.info("listening on %s", addresses.shown(listener))
            if (page := addresses.page(listener)) is not None:
                _log.info("page for browsers on this machine: %s", page)
        _log.info("serving %s", ", ".join(user.settings.model for user in users))
        _log.info("clients over TCP need the key in %s", source)
        server.run(sockets=listening.sockets)
        if gateway.failure is not None:
            raise gateway.failure


async def _preloaded(models: ServedModels) -> None:
    """Start the servers, on an event loop of their own: connections belong to one."""
    try:
        await models.preload()
    finally:
        await models.close()
