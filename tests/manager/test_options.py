"""How a server is started: on a port, without a key, with notes and private files."""

from __future__ import annotations

import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from emberd.embedder import Embedder
from emberd.errors import AuthenticationError, SettingError, StartError
from emberd.settings import StartOptions
from emberd.verified_manager import Manager
from homes import Starts, Stub
from plain_client import embed
from ports import free_port


@pytest.fixture
def port() -> int:
    """A port that is unused now."""
    return free_port()


def test_a_server_starts_on_the_port_that_was_asked_for(
    manager: Manager, stub: Stub, port: int
) -> None:
    server = manager.ensure(stub(), options=StartOptions(port=port))
    assert server.endpoint.url == f"http://127.0.0.1:{port}"


def test_a_port_that_is_taken_is_an_error_that_names_it(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        with pytest.raises(StartError, match=f"Port {taken} .*in use") as caught:
            manager.ensure(stub(), options=StartOptions(port=taken))
    assert "another port" in caught.value.advice
    assert starts() == 0


def test_a_failed_start_is_not_held_against_one_with_other_options(
    manager: Manager, stub: Stub
) -> None:
    spec = stub()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        options = StartOptions(port=stranger.getsockname()[1])
        for _ in range(2):
            with pytest.raises(StartError, match="in use"):
                manager.ensure(spec, options=options)
        assert manager.ensure(spec).started


def test_a_server_without_a_key_answers_whoever_asks(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub(), options=StartOptions(no_auth=True))
    assert server.endpoint.api_key is None
    assert embed(server, "a").is_success


def test_a_server_asks_for_a_key_unless_told_otherwise(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    assert server.endpoint.api_key is not None
    with pytest.raises(AuthenticationError):
        manager.ensure(stub(), base_url=server.endpoint.url)


def test_key_is_alphanumeric(manager: Manager, stub: Stub) -> None:
    """One that began with a dash was taken for an option by SGLang's parser."""
    key = manager.ensure(stub()).endpoint.api_key
    assert key is not None
    assert key.isalnum()


def test_files_of_a_plan_are_private(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    assert server.folder is not None
    file = Path(server.folder) / "secret.yaml"
    assert file.read_text() == f"key: {server.endpoint.api_key}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_notes_of_a_plan_reach_whoever_uses_the_server(manager: Manager, stub: Stub) -> None:
    spec = stub(note="beware")
    assert manager.ensure(spec).notes == ("beware",)
    assert manager.ensure(spec).notes == ("beware",)


def test_a_folder_that_changed_while_its_server_started_is_not_served_under_its_old_name(
    manager: Manager, stub: Stub
) -> None:
    spec = replace(stub(), content="what it was when it was asked for")
    with pytest.raises(StartError, match="The files of .* changed during the start"):
        manager.ensure(spec)


def test_a_server_that_has_failed_and_lives_on_is_ended_at_once(
    manager: Manager, stub: Stub
) -> None:
    with pytest.raises(StartError, match="silent for too long"):
        manager.ensure(stub(faults="doomed", silence=600))


def test_the_environment_says_how_to_start(
    home: Path, stub: Stub, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_PORT", str(port))
    manager = Manager(home)
    try:
        assert manager.ensure(stub()).endpoint.url.endswith(f":{port}")
    finally:
        manager.stop()


def test_a_variable_that_a_running_server_was_not_started_with_is_a_note(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert manager.ensure(stub()).notes == ()
    monkeypatch.setenv("EMBERD_ENGINE_ARGS", "--api-key s3cret")
    server = manager.ensure(stub())
    (note,) = server.notes
    assert note.startswith("EMBERD_ENGINE_ARGS has no effect")
    assert server.endpoint.url in note
    assert "s3cret" not in note
    (same,) = manager.ensure(
        stub(), base_url=server.endpoint.url, api_key=server.endpoint.api_key
    ).notes
    assert "was given" in same
    assert server.unmet({"tp_size": 2, "port": 1, "no_auth": True}) == [
        "tp_size",
        "port",
        "no_auth",
    ]
    assert server.unmet({"tp_size": 1}) == []


def test_a_python_caller_is_warned_of_such_a_variable(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = stub()
    manager.ensure(spec)
    monkeypatch.setenv("EMBERD_DP_SIZE", "2")
    embedder = Embedder(spec.model, engine=spec.engine, manager=manager)
    with pytest.warns(UserWarning, match="EMBERD_DP_SIZE has no effect"):
        embedder.ensure()


def test_a_start_with_the_variables_has_no_such_note(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_TP_SIZE", "2")
    assert manager.ensure(stub()).notes == ()
    assert manager.ensure(stub()).notes == ()


def test_durations_may_be_texts(manager: Manager, stub: Stub) -> None:
    manager.ensure(stub(), start_timeout="1m", idle_timeout="5m")
    (status,) = manager.status()
    assert status.idle_timeout == 300
    for start, idle in (("soon", None), ("never", None), ("1m", "soon")):
        with pytest.raises(SettingError, match="1h30m"):
            manager.ensure(stub(), start_timeout=start, idle_timeout=idle)


def test_an_engine_keeps_its_files_in_the_home_of_the_manager(
    manager: Manager, stub: Stub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path / "another"))
    assert manager.ensure(stub(shows_home=1)).notes == (str(home),)
