"""A client without emberd: what servers see of other programs."""

from __future__ import annotations

import errno
import socket
from urllib.parse import urlsplit

import httpx

from emberd import probe
from emberd.manager import Server


def embed(server: Server, text: str) -> httpx.Response:
    """Ask for one vector."""
    return httpx.post(
        f"{server.endpoint.base_url}/embeddings",
        json={"input": text, "model": server.endpoint.model},
        headers={"Authorization": f"Bearer {server.endpoint.api_key}"},
        timeout=30,
    )


def in_flight(server: Server) -> bool:
    """Return whether the server says that it is working on something."""
    activity = probe.activity(server.endpoint.url, server.endpoint.api_key)
    return activity is not None and activity.in_flight > 0


def refuses(server: Server) -> bool:
    """Return whether the server has closed its port: its last thread is gone.

    While a killed process ends, requests may fail although the kernel still accepts connections.
    """
    address = urlsplit(server.endpoint.url)
    with socket.socket() as connection:
        connection.settimeout(1)
        return connection.connect_ex((address.hostname, address.port)) == errno.ECONNREFUSED
