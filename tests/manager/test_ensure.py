"""Finding, joining, starting: the steps of ensure."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import waiting
from emberd import probe
from emberd.catalog import EMBED, RERANK
from emberd.errors import (
    LockTimeoutError,
    NoEngineError,
    SettingError,
    StartError,
    StartTimeoutError,
    StateFolderError,
)
from emberd.manager import Progress, State, locks, state
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from homes import QUICK, Starts, Stub, begin
from plain_client import embed


def test_the_first_call_starts_a_server_and_says_so(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    assert server.started
    assert server.origin == "own"
    assert "started" in server.reason
    assert probe.is_ready(server.endpoint.url)


def test_the_second_call_uses_the_same_server(manager: Manager, stub: Stub, starts: Starts) -> None:
    first, second = manager.ensure(stub()), manager.ensure(stub())
    assert first.endpoint == second.endpoint
    assert not second.started
    assert starts() == 1


def test_constructing_a_manager_touches_no_file(home: Path) -> None:
    Manager(home)
    assert not home.exists()


def test_a_running_server_is_used_without_the_start_lock(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    assert server.folder is not None
    with locks.start_lock(Path(server.folder), timeout_s=1):
        assert manager.ensure(stub()).endpoint == server.endpoint


def test_request_with_other_constraints_gets_the_same_server(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub()
    first = manager.ensure(spec)
    assert manager.ensure(replace(spec, engine=None, device="cpu")).endpoint == first.endpoint
    assert manager.ensure(replace(spec, context_tokens=512)).endpoint == first.endpoint
    assert starts() == 1


def test_server_that_does_not_fit_continues_and_another_is_started(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub()
    first = manager.ensure(spec)
    second = manager.ensure(replace(spec, device="cuda", context_tokens=None))
    assert second.endpoint.url != first.endpoint.url
    assert probe.is_ready(first.endpoint.url)
    assert starts() == 2


def test_two_models_have_two_servers(manager: Manager, stub: Stub) -> None:
    assert manager.ensure(stub("a")).endpoint.url != manager.ensure(stub("b")).endpoint.url


def test_a_start_that_is_under_way_is_joined(manager: Manager, stub: Stub, starts: Starts) -> None:
    spec = stub(start=1)
    begin(manager, spec)
    begin(manager, spec)
    assert manager.find(spec) is None
    server = manager.ensure(spec)
    assert not server.started
    assert starts() == 1


def test_threads_of_one_process_share_one_start(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    urls: list[str] = []

    def ask() -> None:
        urls.append(manager.ensure(stub()).endpoint.url)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(urls) == 8
    assert len(set(urls)) == 1
    assert starts() == 1


def test_progress_has_text_seconds_and_log(manager: Manager, stub: Stub) -> None:
    told: list[Progress] = []
    manager.ensure(stub(start=1.5), on_progress=told.append)
    loading = [progress for progress in told if progress.text == "loading"]
    assert loading[-1].seconds > 0.5
    assert Path(loading[-1].log_path).is_file()


def test_phases_of_a_start_are_recorded_in_their_order(manager: Manager, stub: Stub) -> None:
    told: list[Progress] = []
    began = time.monotonic()
    server = manager.ensure(stub(start=1.5), on_progress=told.append)
    took = time.monotonic() - began
    phases = [name for name in server.phases if name != "starting"]  # it may be too short to see
    assert phases == ["planning", "loading", "verifying"]
    # On a busy machine the supervisor reads late that the stub is loading.
    assert server.phases.get("starting", 0) + server.phases["loading"] > 1
    assert took - 1 < sum(server.phases.values()) < took
    loading = [progress for progress in told if progress.text == "loading"]
    assert loading
    for progress in loading:
        assert progress.phase_seconds is not None
        assert 0 <= progress.phase_seconds < progress.seconds
    (status,) = manager.status()
    assert status.phases == manager.ensure(stub(start=1.5)).phases == server.phases


def test_phases_of_a_failed_start_end_with_it(manager: Manager, stub: Stub) -> None:
    with pytest.raises(StartError):
        manager.ensure(stub(faults="dies-at-start", start=0.5))
    (status,) = manager.status()
    assert next(iter(status.phases)) == "planning"
    assert list(status.phases)[-1] in ("starting", "loading")


def test_start_timeout_ends_the_wait_and_not_the_start(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub(start=1)
    with pytest.raises(StartTimeoutError, match="continues in the background.*server.log"):
        manager.ensure(spec, start_timeout=0.3)
    assert manager.ensure(spec).endpoint.model == spec.model
    assert starts() == 1


def test_find_starts_nothing(manager: Manager, stub: Stub, starts: Starts) -> None:
    assert manager.find(stub()) is None
    assert starts() == 0
    url = manager.ensure(stub()).endpoint.url
    found = manager.find(stub())
    assert found is not None
    assert found.endpoint.url == url


def test_a_server_is_current_until_it_stops_and_its_successor_is_another(
    manager: Manager, stub: Stub
) -> None:
    first = manager.ensure(stub())
    assert manager.is_current(first)
    manager.stop()
    assert not manager.is_current(first)
    second = manager.ensure(stub())
    assert manager.is_current(second)
    assert not manager.is_current(first)


def test_failed_start_has_cause_advice_and_log(manager: Manager, stub: Stub) -> None:
    with pytest.raises(StartError) as caught:
        manager.ensure(stub(faults="dies-at-start"))
    assert "no memory left for the model" in caught.value.cause
    assert caught.value.advice == "Give it more memory."
    assert caught.value.log_path is not None
    assert "no memory left" in Path(caught.value.log_path).read_text()


def test_a_failed_start_is_not_repeated_within_the_cool_down(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    errors = []
    for _ in range(3):
        with pytest.raises(StartError) as caught:
            manager.ensure(stub(faults="dies-at-start"))
        errors.append(str(caught.value))
    assert len(set(errors)) == 1
    assert starts() == 1


def test_retry_failed_overrides_the_cool_down(manager: Manager, stub: Stub, starts: Starts) -> None:
    for _ in range(2):
        with pytest.raises(StartError):
            manager.ensure(stub(faults="dies-at-start"), retry_failed=True)
    assert starts() == 2


def test_after_the_cool_down_the_start_is_tried_again(
    home: Path, stub: Stub, starts: Starts
) -> None:
    manager = Manager(home, timing=replace(QUICK, cool_down_s=0.0))
    for _ in range(2):
        with pytest.raises(StartError):
            manager.ensure(stub(faults="dies-at-start"))
    assert starts() == 2


def test_start_without_progress_fails(manager: Manager, stub: Stub) -> None:
    with pytest.raises(StartError, match="silent for too long"):
        manager.ensure(stub(faults="never-ready", silence=0.5))


def test_a_server_without_a_ready_route_is_started_with_a_key(manager: Manager, stub: Stub) -> None:
    """As SGLang before 0.5.20 is, which answers 401 there to a request without the key."""
    server = manager.ensure(stub(faults="no-ready-route"))
    assert server.endpoint.api_key
    reply = probe.get(server.endpoint.url, "/ready")
    assert reply is not None
    assert reply.status == 401
    assert embed(server, "a").status_code == 200


def test_a_server_without_a_ready_route_that_never_gets_healthy_is_given_up(
    manager: Manager, stub: Stub
) -> None:
    with pytest.raises(StartError, match="silent for too long"):
        manager.ensure(stub(faults="no-ready-route,never-ready", silence=0.5))


def test_a_server_that_proves_to_be_another_is_not_used(manager: Manager, stub: Stub) -> None:
    with pytest.raises(StartError, match="failed verification.*something-else"):
        manager.ensure(stub(serves="something-else"))


def test_a_lost_port_is_tried_again_on_another(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    assert manager.ensure(stub(lose_port=1)).started
    assert starts() == 2


def test_a_port_that_is_always_lost_ends_the_start_after_five_tries(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    with pytest.raises(StartError, match="port was taken"):
        manager.ensure(stub(lose_port=9))
    assert starts() == 5


@pytest.mark.parametrize(
    ("task", "variable"), [(EMBED, "EMBERD_PORT"), (RERANK, "EMBERD_RERANK_PORT")]
)
def test_a_failed_start_names_the_variables_of_the_task(
    manager: Manager, stub: Stub, task: str, variable: str
) -> None:
    with pytest.raises(StartError) as raised:
        manager.ensure(replace(stub(lose_port=9), task=task))
    assert raised.value.advice == f"Change {variable}."
    assert f" {variable}." in str(raised.value)
    (folder,) = manager._home.all_server_folders()
    failed = state.read_record(folder)
    assert failed is not None
    assert failed.failure is not None
    assert failed.failure.advice == f"Change {variable}."


def test_an_engine_that_cannot_serve_says_why(manager: Manager) -> None:
    with pytest.raises(NoEngineError, match=r"stubs\.engine: serves only stub"):
        manager.ensure(ServerSpec(model="other", engine="stubs.engine"))


def test_an_unknown_engine_is_a_setting_error_that_names_the_known_ones(
    manager: Manager,
) -> None:
    with pytest.raises(SettingError, match="sglang, transformers, demo"):
        manager.ensure(ServerSpec(model="m", engine="nonsense"))


def test_a_base_url_is_verified_and_used_and_nothing_is_started(
    manager: Manager, stub: Stub, starts: Starts, tmp_path: Path
) -> None:
    spec = stub()
    kept = manager.ensure(spec)
    other = Manager(tmp_path / "other-home", timing=QUICK)
    server = other.ensure(spec, base_url=kept.endpoint.url, api_key=kept.endpoint.api_key)
    assert server.origin == "given"
    assert server.endpoint.url == kept.endpoint.url
    assert not (tmp_path / "other-home").exists()
    assert starts() == 1


def test_lock_timeout_names_the_holder(home: Path, manager: Manager, stub: Stub) -> None:
    spec = stub()
    manager.ensure(spec)
    manager.stop()
    folder = next(home.glob("*/servers/*"))
    impatient = Manager(home, timing=replace(QUICK, lock_s=0.2))
    with (
        locks.start_lock(folder, timeout_s=1),
        pytest.raises(LockTimeoutError, match=f"held by pid {os.getpid()} since"),
    ):
        impatient.ensure(spec)


def test_a_home_open_to_others_is_refused(home: Path, manager: Manager, stub: Stub) -> None:
    manager.ensure(stub())
    manager.stop()
    folder = next(home.glob("*/servers/*"))
    folder.chmod(0o755)
    with pytest.raises(StateFolderError, match="chmod 700"):
        manager.ensure(stub())
    folder.chmod(0o700)


def test_server_does_not_inherit_the_liveness_lock(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    supervisor = psutil.Process(manager.status()[0].supervisor_pid)
    proof = str(Path(server.folder or "") / "alive")
    held = {p.pid: [f.path for f in p.open_files()] for p in supervisor.children(recursive=True)}
    assert held
    assert all(proof not in files for files in held.values())
    assert locks.is_alive(Path(server.folder or ""))


def test_supervisor_is_detached_and_holds_no_stream_of_the_caller(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    supervisor = psutil.Process(manager.status()[0].supervisor_pid)
    assert supervisor.ppid() != os.getpid()
    assert os.getsid(supervisor.pid) != os.getsid(0)
    streams = {os.readlink(f"/proc/{supervisor.pid}/fd/{number}") for number in range(3)}
    assert streams == {"/dev/null", str(Path(server.folder or "") / "server.log")}


def test_no_secret_is_on_a_command_line_or_in_the_log(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    key = server.endpoint.api_key
    assert key
    supervisor = psutil.Process(manager.status()[0].supervisor_pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        assert key not in " ".join(process.cmdline())
    assert key not in (Path(server.folder or "") / "server.log").read_text()


def test_status_has_state_url_supervisor_and_idle_timeout(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub(), idle_timeout=77)
    assert server.endpoint.api_key
    manager.ensure(stub(), idle_timeout=99)
    (status,) = manager.status()
    assert status.state is State.READY
    assert status.url == server.endpoint.url
    assert status.idle_timeout == 99
    assert status.supervisor_pid is not None
    assert server.endpoint.api_key not in repr(status)


def test_two_servers_with_the_same_gpu_load_one_after_the_other(
    manager: Manager, stub: Stub, tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    first = stub("a", claims="gpu-1", start_when=loaded, silence=60)
    second = stub("b", claims="gpu-1,gpu-0")
    begin(manager, first)
    waiting.until(lambda: any(s.detail == "loading" for s in manager.status()))
    begin(manager, second)
    waiting.until(
        lambda: any("waiting for the GPU (gpu-1, gpu-0)" in s.detail for s in manager.status())
    )
    loaded.touch()
    phases = manager.ensure(second).phases
    assert manager.find(first) is not None, "the second was ready before the first"
    assert list(phases)[:2] == ["planning", "waiting for the GPU"]


def test_a_relative_home_means_the_same_folder_to_supervisor_and_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: Stub
) -> None:
    monkeypatch.chdir(tmp_path)
    manager = Manager("home", timing=QUICK)
    try:
        assert Path(manager.ensure(stub()).folder or "").is_relative_to(tmp_path)
    finally:
        manager.stop()


def test_start_of_another_caller_that_does_not_fit_is_not_used(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub(start=1)
    begin(manager, replace(spec, device="cpu"))
    server = manager.ensure(replace(spec, device="cuda"))
    assert [status.device for status in manager.status()].count("cuda") == 1
    assert server.started
    assert starts() == 2


def test_a_joined_start_that_proves_not_to_fit_is_left_for_another(
    manager: Manager, stub: Stub
) -> None:
    spec = stub(start=1)
    begin(manager, spec)  # for any device; the stub takes the CPU
    server = manager.ensure(replace(spec, device="cuda"))
    assert server.started
    assert len(manager.status()) == 2


def test_an_engine_that_does_not_give_what_was_asked_for_has_failed(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    with pytest.raises(StartError, match="runs on cpu .* device=cuda"):
        manager.ensure(replace(stub(device="cpu"), device="cuda"))
    assert starts() == 1


def test_a_model_whose_files_are_known_only_after_its_download_is_checked_then(
    manager: Manager, stub: Stub, starts: Starts, tmp_path: Path
) -> None:
    # The stub engine refuses once the file is there that its start writes.
    with pytest.raises(StartError, match="pools by mean") as caught:
        manager.ensure(stub(unfit_after=tmp_path / "starts"))
    assert caught.value.advice == "Use another."
    assert starts() == 1


def test_failure_of_one_request_does_not_affect_another(manager: Manager, stub: Stub) -> None:
    spec = stub(device="cpu")
    with pytest.raises(StartError):
        manager.ensure(replace(spec, device="cuda"))
    assert manager.ensure(replace(spec, device="cpu")).started


def test_start_timeout_ends_the_wait_for_the_lock_too(
    manager: Manager, stub: Stub, home: Path
) -> None:
    manager.ensure(stub())
    manager.stop()
    with (
        locks.start_lock(next(home.glob("*/servers/*")), timeout_s=1),
        pytest.raises(LockTimeoutError),
    ):
        manager.ensure(stub(), start_timeout=0.2)


def test_unusable_folder_does_not_affect_other_servers(
    manager: Manager, stub: Stub, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd, server = manager.ensure(stub("a")), manager.ensure(stub("b"))
    Path(odd.folder or "").chmod(0o755)
    assert [status.url for status in manager.status()] == [server.endpoint.url]
    assert "chmod 700" in caplog.text
    with pytest.raises(StateFolderError, match="chmod 700"):
        manager.stop()
    assert not probe.is_ready(server.endpoint.url), "the other one was stopped all the same"
    Path(odd.folder or "").chmod(0o700)


def test_a_home_reached_through_a_link_is_the_same_home(
    manager: Manager, stub: Stub, home: Path, tmp_path: Path
) -> None:
    server = manager.ensure(stub())
    (tmp_path / "link").symlink_to(home)
    assert Manager(tmp_path / "link", timing=QUICK).ensure(stub()).start_id == server.start_id


def test_a_caller_that_blocks_signals_gets_a_supervisor_that_hears_them(
    manager: Manager, stub: Stub
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    try:
        manager.ensure(stub())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
    pid = manager.status()[0].supervisor_pid
    blocked = next(
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigBlk" in line
    )
    assert int(blocked.split()[1], 16) == 0


def test_a_caller_with_a_mark_of_another_server_does_not_pass_it_on(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_MARK", "/another/folder:start_id")
    manager.ensure(stub())
    assert "EMBERD_MARK" not in psutil.Process(manager.status()[0].supervisor_pid).environ()


def test_only_the_end_of_a_long_log_is_read(manager: Manager, stub: Stub) -> None:
    with pytest.raises(StartError, match="no memory left"):
        manager.ensure(stub(faults="dies-at-start,talks-much"))
