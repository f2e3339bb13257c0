"""External servers: found, verified, used, recorded, never stopped."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import leftovers
from emberd import model_files, probe
from emberd.cli import shown_servers, status
from emberd.client.verify import verify
from emberd.errors import NoEngineError, ServerMismatchError, ServerUnavailableError
from emberd.manager import State, discovery
from emberd.settings import ServerSpec
from emberd.system import listeners
from emberd.system.listeners import Listener
from emberd.verified_manager import Manager
from foreign import SPEC, Foreign, Taken
from homes import QUICK, Stub
from other_servers import Tei

pytestmark = pytest.mark.usefixtures("no_default_port")


def test_an_sglang_process_of_this_user_is_found_and_used(
    manager: Manager, foreign: Foreign
) -> None:
    url, process = foreign()
    server = manager.ensure(SPEC)
    assert server.endpoint.url == url
    assert server.origin == "found"
    assert server.engine == "sglang"
    assert f"process {process.pid} is a sglang server" in server.reason


def test_what_was_found_is_remembered_and_not_searched_for_again(
    manager: Manager, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = foreign()
    manager.ensure(SPEC)
    monkeypatch.setattr(discovery, "search", None)
    assert manager.ensure(SPEC).endpoint.url == url
    (status,) = manager.status()
    assert (status.state, status.origin, status.url) == (State.READY, "found", url)


def test_stop_deletes_the_record_of_an_external_server_which_continues_to_run(
    manager: Manager, foreign: Foreign
) -> None:
    url, process = foreign()
    manager.ensure(SPEC)
    (was,) = manager.stop()
    assert was.origin == "found"
    assert manager.status() == []
    assert process.poll() is None
    assert probe.is_ready(url)


def test_a_found_server_that_went_is_not_used_any_more(manager: Manager, foreign: Foreign) -> None:
    _, process = foreign()
    manager.ensure(SPEC)
    process.kill()
    process.wait()
    with pytest.raises(NoEngineError):
        manager.ensure(SPEC)


def test_a_found_server_that_serves_another_model_by_now_is_not_used(
    manager: Manager, foreign: Foreign, home: Path
) -> None:
    foreign()
    manager.ensure(SPEC)
    record = next(home.glob("*/servers/*/record.json"))
    content = json.loads(record.read_text())
    content["endpoint"]["model"] = "what it served before"
    record.write_text(json.dumps(content))
    assert manager.ensure(SPEC).endpoint.model == SPEC.model


def test_a_server_of_another_model_is_refused_and_the_error_says_what_it_serves(
    manager: Manager, foreign: Foreign
) -> None:
    url, _ = foreign(model="stub/other")
    with pytest.raises(NoEngineError, match="Running servers that do not fit") as caught:
        manager.ensure(SPEC)
    assert url in str(caught.value)
    assert "stub/other" in str(caught.value)


def test_server_that_emberd_started_is_not_adopted_from_another_home(
    manager: Manager, stub: Stub, tmp_path: Path
) -> None:
    spec = stub()
    manager.ensure(spec)
    other = Manager(tmp_path / "other", timing=QUICK)
    assert other.find(replace(spec, engine=None)) is None


def test_a_process_that_is_no_embedding_server_is_not_asked(
    manager: Manager, foreign: Foreign
) -> None:
    foreign(module="something")
    with pytest.raises(NoEngineError):
        manager.ensure(SPEC)


def test_the_default_port_is_looked_at_when_its_socket_is_ours(
    manager: Manager, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = foreign(module="something")
    port = int(url.rpartition(":")[2])
    monkeypatch.setattr(discovery, "DEFAULT_PORT", port)
    assert manager.ensure(SPEC).endpoint.url == url


def test_default_port_of_another_user_is_not_contacted(
    manager: Manager, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = foreign(module="something")
    monkeypatch.setattr(discovery, "DEFAULT_PORT", int(url.rpartition(":")[2]))
    monkeypatch.setattr(listeners, "find", lambda url: Listener(os.getuid() + 1, inode=1))
    with pytest.raises(NoEngineError):
        manager.ensure(SPEC)


def test_a_listed_server_is_found_and_may_see_the_users_key(
    home: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = foreign(module="something", key="the user's")
    monkeypatch.setenv("EMBERD_DISCOVER", f"http://127.0.0.1:1/v1, {url}/v1")
    server = Manager(home, timing=QUICK).ensure(SPEC, api_key="the user's")
    assert server.endpoint.url == url
    assert "EMBERD_DISCOVER" in server.reason


def test_only_listed_servers_are_shown_the_users_key(foreign: Foreign) -> None:
    foreign()
    shown = {
        candidate.url: candidate.api_key
        for candidate in discovery.candidates(("http://127.0.0.1:1",), "secret")
    }
    assert shown.pop("http://127.0.0.1:1") == "secret"
    assert set(shown.values()) == {None}


def test_a_listed_server_that_says_what_it_serves_at_info_only_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text Embeddings Inference lists no models; a folder is compared by the path it loaded."""
    monkeypatch.setattr(model_files, "changed_s", lambda name: 0.0)  # before this process started
    (tmp_path / "config.json").write_text('{"hidden_size": 16}')
    folder = os.fspath(tmp_path)
    spec = ServerSpec(folder, content=model_files.content_hash(folder))
    with Tei(model=folder, api_key="the user's") as server:
        found, refusals = discovery.search(spec, (server.url,), "the user's", verify)
    assert found is not None, refusals
    assert (found.endpoint.url, found.endpoint.server) == (server.url, probe.TEI)


def test_a_key_is_not_sent_to_a_listed_server_that_says_at_info_that_it_serves_another_model() -> (
    None
):
    with Tei(model="test/other") as server:
        found, refusals = discovery.search(SPEC, (server.url,), "the user's", verify)
        assert {request.headers.get("authorization") for request in server.requests} == {None}
    assert found is None
    assert "test/other" in refusals[0]


def test_a_pinned_revision_must_match(manager: Manager, foreign: Foreign) -> None:
    url, _ = foreign()  # the stub says revision r1
    assert manager.ensure(replace(SPEC, revision="r1")).endpoint.url == url
    for other in (
        replace(SPEC, revision="r2"),
        replace(SPEC, quantization="fp8"),
    ):
        with pytest.raises(NoEngineError, match="is required, but the server reports"):
            manager.ensure(other)


def test_a_quantised_server_is_used_only_where_that_quantisation_is_requested(
    manager: Manager, foreign: Foreign
) -> None:
    url, _ = foreign(quantization="fp8")
    with pytest.raises(NoEngineError, match=r"quantised \(fp8\), which is not requested"):
        manager.ensure(SPEC)
    assert manager.ensure(replace(SPEC, quantization="fp8")).endpoint.url == url


def test_a_given_url_is_taken_without_seeing_the_pinned_revision(
    manager: Manager, foreign: Foreign
) -> None:
    url, _ = foreign()
    assert manager.ensure(replace(SPEC, revision="r2"), base_url=url).endpoint.url == url


def test_external_server_of_another_engine_does_not_meet_the_request(
    manager: Manager, foreign: Foreign
) -> None:
    foreign()
    with pytest.raises(NoEngineError, match="does not meet engine=demo"):
        manager.ensure(replace(SPEC, engine="demo"))


def test_find_returns_an_external_server_and_writes_no_file(
    manager: Manager, foreign: Foreign, home: Path
) -> None:
    url, _ = foreign()
    found = manager.find(SPEC)
    assert found is not None
    assert found.endpoint.url == url
    assert not home.exists()


def test_a_found_server_gets_no_process_of_ours(
    manager: Manager, foreign: Foreign, home: Path
) -> None:
    foreign()
    manager.ensure(SPEC)
    assert leftovers.find([str(home)]) == []


def test_activity_is_read_from_the_metrics_and_is_none_without_a_server(
    foreign: Foreign,
) -> None:
    url, _ = foreign()
    assert probe.activity(url, None) == probe.Activity(0, 0, 0)
    assert probe.activity("http://127.0.0.1:1", None) is None


@pytest.mark.parametrize(
    ("metrics", "activity"),
    [
        pytest.param(
            "# TYPE sglang:num_requests_total counter\n"
            'sglang:num_requests_total{model="a b}",rank="\\"0"} 3.0\n'
            'sglang:num_requests_total{model="a",rank="1",} 4 1700000000000\n'
            "sglang:num_requests_total_created 1.7e9\n"
            "other_sglang:num_requests_total 100\n"
            "sglang:prompt_tokens_total 1.5e+03\n"
            "sglang:num_running_reqs{}2\nsglang:num_queue_reqs\t1",
            probe.Activity(requests=7, tokens=1500, in_flight=3),
            id="all",
        ),
        pytest.param("sglang:num_queue_reqs 0\n", probe.Activity(0, 0, 0), id="one"),
        pytest.param("sglang:num_queue_reqs many\n", None, id="not-a-number"),
        pytest.param("sglang:prompt_tokens_total 5\n", None, id="no-requests"),
        pytest.param("<html>", None, id="not-metrics"),
    ],
)
def test_activity_is_the_sum_of_the_samples(
    metrics: str, activity: probe.Activity | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = probe.ProbeReply(200, metrics.encode())
    monkeypatch.setattr(probe, "get", lambda *_, **__: reply)
    assert probe.activity("http://127.0.0.1:1", None) == activity


def test_users_key_is_not_stored_in_the_record(
    home: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = foreign(key="the user's")
    monkeypatch.setenv("EMBERD_DISCOVER", url)
    manager = Manager(home, timing=QUICK)
    assert manager.ensure(SPEC, api_key="the user's").endpoint.api_key == "the user's"
    assert "the user's" not in next(home.glob("*/servers/*/record.json")).read_text()
    assert manager.ensure(SPEC, api_key="the user's").endpoint.api_key == "the user's"
    with pytest.raises(NoEngineError, match="401"):
        manager.ensure(SPEC)


def test_recorded_server_whose_socket_belongs_to_another_user_is_not_used(
    manager: Manager, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign()
    manager.ensure(SPEC)
    monkeypatch.setattr(listeners, "find", lambda url: Listener(os.getuid() + 1, inode=1))
    monkeypatch.setattr(discovery, "_processes", lambda: iter(()))
    with pytest.raises(NoEngineError):
        manager.ensure(SPEC)


def test_listed_address_that_went_to_another_user_is_not_contacted(
    home: Path,
    foreign: Foreign,
    taken: Callable[[int], Taken],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, process = foreign(key="the user's")
    monkeypatch.setenv("EMBERD_DISCOVER", url)
    manager = Manager(home, timing=QUICK)
    first = manager.ensure(SPEC, api_key="the user's")
    process.kill()
    process.wait()
    now = taken(int(url.rpartition(":")[2]))
    assert manager.find(SPEC, api_key="the user's") is None
    for lost in (None, first):
        with pytest.raises(NoEngineError, match=str(now.user)):
            manager.ensure(SPEC, api_key="the user's", lost=lost)
    assert not now.was_contacted()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_listed_address_of_another_user_is_not_contacted_without_any_record(
    home: Path, taken: Callable[[int], Taken], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """As when emberd's own server has overwritten the record of the server that was there."""
    now = taken(0)
    monkeypatch.setenv("EMBERD_DISCOVER", f"http://{host}:{now.port}")
    manager = Manager(home, timing=QUICK)
    assert manager.find(SPEC, api_key="the user's") is None
    with pytest.raises(NoEngineError, match="EMBERD_BASE_URL"):
        manager.ensure(SPEC, api_key="the user's")
    assert not now.was_contacted()


def test_listed_address_at_which_nothing_listens_is_not_contacted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user may begin to listen there between the look-up and the request."""
    asked: list[str] = []
    monkeypatch.setattr(probe, "get", lambda url, *_, **__: asked.append(url))
    nowhere = "http://127.0.0.1:1"
    monkeypatch.setenv("EMBERD_DISCOVER", nowhere)
    assert Manager(home, timing=QUICK).find(SPEC, api_key="the user's") is None
    assert nowhere not in asked  # other servers of this machine may be


def test_process_that_listens_in_another_network_is_not_contacted(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container shows its process here, and an address that is not one of this machine."""
    asked: list[str] = []
    monkeypatch.setattr(probe, "get", lambda url, *_, **__: asked.append(url))
    elsewhere = discovery.Candidate("http://192.0.2.1:30000", "process 1 is a sglang server")
    monkeypatch.setattr(discovery, "_processes", lambda: iter([elsewhere]))
    assert manager.find(SPEC) is None
    assert elsewhere.url not in asked


def test_record_of_external_server_is_asked_only_at_a_socket_of_its_users(
    manager: Manager, foreign: Foreign, taken: Callable[[int], Taken]
) -> None:
    url, process = foreign()
    manager.ensure(SPEC)
    (known,) = manager.status()
    assert discovery.listener_to_probe(known) == known.listener
    assert shown_servers.seen(known, status.is_ready).state is State.READY
    process.kill()
    process.wait()
    with pytest.raises(ServerUnavailableError):
        discovery.listener_to_probe(known)
    now = taken(int(url.rpartition(":")[2]))
    with pytest.raises(ServerMismatchError):
        discovery.listener_to_probe(known)
    seen = shown_servers.seen(known, status.is_ready)
    assert (seen.state, seen.url) == (State.ABSENT, None)
    assert str(now.user) in seen.detail
    assert not now.was_contacted()


def test_a_server_whose_listener_cannot_be_read_is_sent_nothing(
    home: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = foreign(key="the user's")
    monkeypatch.setenv("EMBERD_DISCOVER", url)

    def unreadable(_url: str) -> Listener | None:
        raise OSError(errno.EMFILE, "Too many open files")

    asked: list[str | None] = []
    monkeypatch.setattr(listeners, "find", unreadable)
    monkeypatch.setattr(probe, "get", lambda *given, **_: asked.append(given[2]))
    with pytest.raises(NoEngineError, match="Too many open files"):
        Manager(home, timing=QUICK).ensure(SPEC, api_key="the user's")
    assert asked == []


def test_a_remembered_server_must_still_have_what_is_pinned(
    manager: Manager, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = replace(SPEC, revision="r1")
    url, _ = foreign()
    assert manager.ensure(pinned).endpoint.url == url
    monkeypatch.setattr(
        discovery, "pinned_mismatch", lambda *_, **__: "it has another revision now"
    )
    with pytest.raises(NoEngineError, match="another revision now"):
        manager.ensure(pinned)


def test_a_server_that_wants_a_key_is_refused_with_where_to_list_it(
    manager: Manager, foreign: Foreign
) -> None:
    foreign(key="the user's")
    with pytest.raises(NoEngineError, match="requires a key, .* that EMBERD_DISCOVER lists"):
        manager.ensure(SPEC, api_key="the user's")


def test_listed_sglang_server_meets_a_request_for_sglang(
    home: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = foreign(module="something", owner="sglang")
    monkeypatch.setenv("EMBERD_DISCOVER", url)
    server = Manager(home, timing=QUICK).ensure(replace(SPEC, engine="sglang"))
    assert (server.endpoint.url, server.engine) == (url, "sglang")


def test_what_listens_and_speaks_no_http_is_passed_over(
    home: Path, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "_FIRST_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("EMBERD_DISCOVER", f"http://127.0.0.1:{port}")
        url, _ = foreign()
        assert Manager(home, timing=QUICK).ensure(SPEC).endpoint.url == url
