from __future__ import annotations

import inspect
from typing import Any

from emberd.client.clients import AsyncClient, Client
from emberd.client.loopback import LoopbackSession
from emberd.client.transport import AsyncSession, AsyncTransport, Session, Transport


def _signatures(client: type) -> dict[str, list[Any]]:
    return {
        name: [
            (parameter.name, parameter.kind, parameter.default)
            for parameter in inspect.signature(method).parameters.values()
        ]
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if name == "__init__" or not name.startswith("_")
    }


def test_both_clients_have_the_same_interface() -> None:
    assert _signatures(Client) == _signatures(AsyncClient)


def test_both_transports_have_the_same_interface() -> None:
    threads = _signatures(Transport)
    # What belongs to a loop is reset with the loop's things.
    for name in ("before_fork", "after_fork_in_parent", "after_fork_in_child", "ready"):
        del threads[name]
    assert threads == _signatures(AsyncTransport)
    # A thread is given what can end its request from another one; a task is cancelled.
    assert _signatures(Session)["send"][:2] == _signatures(AsyncSession)["send"][:2]
    assert _signatures(Session)["send_here"] == _signatures(LoopbackSession)["send_here"]


def test_all_that_the_asynchronous_client_does_is_awaited() -> None:
    public = [
        method
        for name, method in inspect.getmembers(AsyncClient, inspect.isfunction)
        if not name.startswith("_") and name != "using"  # which sends nothing
    ]
    assert {method.__name__ for method in public if not inspect.iscoroutinefunction(method)} == {
        "stream"  # whose windows are awaited
    }
