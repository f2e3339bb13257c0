"""Readiness, verification, discovery, ``status`` and ``doctor`` against each version of SGLang."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import examined
from emberd import Embedder, probe
from emberd.cli import shown_servers, status
from emberd.client import tokenizer
from emberd.client.verify import verify
from emberd.doctor import servers
from emberd.doctor.findings import Level
from emberd.errors import AuthenticationError, NoEngineError
from emberd.manager import State, discovery
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from fake_server import QWEN, vectors_of
from recorded_sglang import KEY, VERSIONS, WITHOUT_READY, RecordedSglang, recording

pytestmark = pytest.mark.usefixtures("no_default_port", "_no_processes")
SPEC = ServerSpec(model=QWEN)
UNKNOWN = "/no-such-route"

Serve = Callable[..., RecordedSglang]
every_version = pytest.mark.parametrize("version", VERSIONS)
any_key = pytest.mark.parametrize("key", [KEY, None], ids=["with_key", "without_key"])


@pytest.fixture
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out servers that happen to run on the machine of the tests."""
    monkeypatch.setattr(discovery, "_processes", lambda: iter(()))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts recorded servers."""
    with ExitStack() as started:
        yield lambda version, key, **knobs: started.enter_context(
            RecordedSglang(version=version, api_key=key, **knobs)
        )


def test_every_supported_version_is_recorded() -> None:
    recorded = {path.stem for path in Path(__file__).parent.glob("*.json")}
    assert recorded == set(VERSIONS)


@every_version
@any_key
def test_a_server_becomes_ready_when_its_warm_up_ends(
    serve: Serve, version: str, key: str | None
) -> None:
    server = serve(version, key, phase="starting")
    assert not probe.is_ready(server.url)
    server.phase = "ready"
    assert probe.is_ready(server.url)
    assert probe.is_healthy(server.url)


@every_version
@any_key
def test_no_key_is_sent_to_find_out_whether_it_is_ready(
    serve: Serve, version: str, key: str | None
) -> None:
    server = serve(version, key)
    probe.is_ready(server.url)
    assert server.requests
    assert not any("authorization" in request.headers for request in server.requests)


@every_version
def test_health_is_asked_for_only_where_there_is_no_ready_route(serve: Serve, version: str) -> None:
    server = serve(version, KEY)
    assert probe.readiness(server.url) is (None if version in WITHOUT_READY else True)
    assert server.to("/health") == []
    assert probe.is_ready(server.url)
    assert bool(server.to("/health")) == (version in WITHOUT_READY)


@pytest.mark.parametrize("refused", [401, 403, 404, 405, 501])
def test_any_refusal_of_the_ready_route_leads_to_health(refused: int) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        return (200 if path == "/health" else refused), b""

    with examined.answering(answer) as url:
        assert probe.is_ready(url)


@pytest.mark.parametrize("refused", [401, 404])
def test_a_server_without_either_route_is_not_ready(refused: int) -> None:
    with examined.answering(lambda path: (refused, b"")) as url:
        assert not probe.is_ready(url)


@pytest.mark.parametrize("failed", [500, 502, 503])
def test_a_server_that_says_it_is_not_ready_is_believed(failed: int) -> None:
    def answer(path: str) -> tuple[int, bytes]:
        return (200 if path == "/health" else failed), b""

    with examined.answering(answer) as url:
        assert not probe.is_ready(url)


@every_version
@any_key
def test_it_is_verified_with_its_key(serve: Serve, version: str, key: str | None) -> None:
    found = verify(serve(version, key).url, key, SPEC, timeout_s=5)
    assert (found.model, found.dimensions, found.server) == (QWEN, 1024, "sglang")
    assert found.context_tokens == 8192


@every_version
@pytest.mark.parametrize("given", [None, "a-wrong-key"])
def test_a_missing_or_wrong_key_is_an_authentication_error(
    serve: Serve, version: str, given: str | None
) -> None:
    with pytest.raises(AuthenticationError) as caught:
        verify(serve(version, KEY).url, given, SPEC, timeout_s=5)
    assert "a-wrong-key" not in str(caught.value)


@every_version
@any_key
def test_its_vectors_arrive_through_an_embedder(
    serve: Serve, version: str, key: str | None
) -> None:
    texts = ["one", "two, longer", "向量"]
    embedder = Embedder(QWEN, base_url=serve(version, key).url, api_key=key)
    assert np.abs(embedder.embed_documents(texts) - vectors_of(texts, 1024)).max() < 1e-6


@every_version
@any_key
def test_its_counters_are_read(serve: Serve, version: str, key: str | None) -> None:
    found = probe.activity(serve(version, key).url, key)
    assert found is not None
    assert found.in_flight == 0
    assert found.requests >= 1
    assert found.tokens >= 1


@every_version
@any_key
def test_a_listed_server_is_found_and_shown_as_ready(
    serve: Serve,
    version: str,
    key: str | None,
    manager: Manager,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(version, key)
    monkeypatch.setenv("EMBERD_DISCOVER", server.url)
    as_list = Manager(home)
    assert as_list.ensure(SPEC, api_key=key).origin == "found"
    assert as_list.ensure(SPEC, api_key=key).endpoint.url == server.url  # from its record
    (own,) = as_list.status()
    assert shown_servers.seen(own, status.is_ready).state is State.READY
    server.die()
    assert shown_servers.seen(own, status.is_ready).state is State.ABSENT


@every_version
def test_a_server_on_the_default_port_is_used_only_if_it_wants_no_key(
    serve: Serve, version: str, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, opened = serve(version, KEY), serve(version, None)
    monkeypatch.setattr(discovery, "DEFAULT_PORT", closed.port)
    with pytest.raises(NoEngineError, match="requires a key"):
        manager.ensure(SPEC)
    monkeypatch.setattr(discovery, "DEFAULT_PORT", opened.port)
    assert manager.ensure(SPEC).endpoint.url == opened.url


@every_version
def test_the_doctor_sees_a_found_server_and_one_that_wants_a_key(
    serve: Serve, version: str, home: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(version, KEY)
    monkeypatch.setenv("EMBERD_DISCOVER", server.url)
    Manager(home).ensure(SPEC, api_key=KEY)

    def look(key: str | None) -> list[Any]:
        wanted = examined.wanted(home, QWEN, discover=(server.url,), api_key=key)
        return list(servers.check_servers(wanted))

    found, remembered = look(KEY)
    assert (found.level, remembered.level) == (Level.OK, Level.OK)
    found, remembered = look(None)
    assert (found.level, remembered.level) == (Level.NOTE, Level.OK)
    assert "EMBERD_API_KEY=KEY" in found.advice


# ---------------------------------------------------------------- the recordings themselves


@every_version
def test_an_unknown_route_is_refused_to_callers_without_the_key(version: str) -> None:
    """SGLang checks the key before the route, so 401 says nothing about the route."""
    unknown = recording(version)["with_key"]["ready"][f"GET {UNKNOWN}"]
    assert [unknown[kind]["status"] for kind in ("none", "right", "wrong")] == [401, 404, 401]


@every_version
def test_embeddings_come_as_base64_and_tokens_as_ids(version: str) -> None:
    ready = recording(version)["without_key"]["ready"]
    [entry] = ready["POST /v1/embeddings"]["any"]["body"]["data"]
    assert (entry["embedding"], entry["index"]) == ("<str>", 0)
    counted = ready["POST /v1/tokenize"]["any"]["body"]
    assert len(tokenizer.read_ids(json.dumps(counted).encode())) == counted["count"]


@every_version
def test_the_stamp_of_a_start_is_echoed(version: str) -> None:
    told = recording(version)["with_key"]["ready"]["GET /model_info"]["right"]["body"]
    assert told["weight_version"] == "recorded-start"
