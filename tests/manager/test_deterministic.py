"""Whether a server computes deterministically is a constraint that it must report to meet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from emberd import Embedder, probe
from emberd.errors import NoEngineError, ServerMismatchError, ServerUnavailableError, StartError
from emberd.manager import discovery
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from fake_server import QWEN, FakeServer
from homes import Starts, Stub
from http_server import Answer, reply

SPEC = ServerSpec(QWEN, deterministic=True)
AS_REPORTED = [None, False, "true", True]


@dataclass
class Reporting(FakeServer):
    """An external server, with what it reports; None if it reports nothing."""

    model: str = QWEN
    dimensions: int = 1024
    reported: Any = None

    def routes(self) -> dict[str, Answer]:
        """Return the routes of a server that has ``/server_info``."""
        told = {} if self.reported is None else {"enable_deterministic_inference": self.reported}
        return super().routes() | {"/server_info": lambda *_: reply(200, told)}


def test_a_running_server_without_it_continues_and_another_is_started_beside_it(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub(faults="deterministic")
    first = manager.ensure(spec)
    wanted = replace(spec, deterministic=True)
    second = manager.ensure(wanted)
    assert second.endpoint.url != first.endpoint.url
    assert probe.is_ready(first.endpoint.url)
    assert manager.ensure(wanted).endpoint == second.endpoint
    assert manager.ensure(spec).endpoint in (first.endpoint, second.endpoint)
    assert starts() == 2


def test_a_running_server_with_it_is_used_by_those_who_do_not_need_it(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub(faults="deterministic")
    first = manager.ensure(replace(spec, deterministic=True))
    assert manager.ensure(spec).endpoint == first.endpoint
    assert starts() == 1


def test_a_started_server_that_does_not_report_it_is_not_used(manager: Manager, stub: Stub) -> None:
    with pytest.raises(StartError, match="deterministic=True"):
        manager.ensure(replace(stub(), deterministic=True))


@pytest.mark.parametrize("reported", AS_REPORTED)
def test_an_external_server_must_report_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, no_default_port: None, reported: Any
) -> None:
    monkeypatch.setattr(discovery, "_processes", lambda: iter(()))
    with Reporting(reported=reported) as server:
        monkeypatch.setenv("EMBERD_DISCOVER", server.url)
        manager = Manager(home)
        if reported is True:
            assert manager.ensure(SPEC).origin == "found"
            assert manager.ensure(SPEC).endpoint.url == server.url  # from its record
        else:
            with pytest.raises(NoEngineError, match="deterministic=True is required"):
                manager.ensure(SPEC)
        assert manager.ensure(replace(SPEC, deterministic=False)).origin == "found"


def _break_off(*_: Any) -> bytes:
    raise ConnectionError


@pytest.mark.parametrize("status", [401, 403, 429, 503, None])
def test_a_route_that_does_not_answer_does_not_mean_that_the_server_lacks_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, no_default_port: None, status: int | None
) -> None:
    @dataclass
    class Closed(Reporting):
        """It computes deterministically, but no client can find that out."""

        def routes(self) -> dict[str, Answer]:
            answer = _break_off if status is None else lambda *_: reply(status, {})
            return super().routes() | {probe.SERVER_INFO: answer}

    with Closed() as server:
        assert probe.is_deterministic(server.url) is None
        embedder = Embedder(QWEN, base_url=server.url, deterministic=True)
        with pytest.raises(ServerUnavailableError, match=probe.SERVER_INFO):
            embedder.embed_query("a")
        monkeypatch.setattr(discovery, "_processes", lambda: iter(()))
        monkeypatch.setenv("EMBERD_DISCOVER", server.url)
        with pytest.raises(NoEngineError, match=probe.SERVER_INFO):
            Manager(home).ensure(SPEC)


@pytest.mark.parametrize("reported", AS_REPORTED)
def test_a_given_server_must_report_it(reported: Any) -> None:
    with Reporting(reported=reported) as server:
        assert Embedder(QWEN, base_url=server.url).embed_query("a").shape == (1024,)
        embedder = Embedder(QWEN, base_url=server.url, deterministic=True)
        if reported is True:
            assert embedder.embed_query("a").shape == (1024,)
        else:
            with pytest.raises(ServerMismatchError, match="--enable-deterministic-inference"):
                embedder.embed_query("a")
