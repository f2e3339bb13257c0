"""What a supervisor does if something fails at the worst moment; each in a forked process."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import forked
import waiting
from emberd import weight_files
from emberd.client.verify import verify
from emberd.engines.base import Plan
from emberd.errors import EmberdError, LockTimeoutError
from emberd.manager import idle, locks, paths, process_tree, state
from emberd.manager import supervisor as supervisor_module
from emberd.manager.state import Record, State
from emberd.manager.supervisor import Supervisor
from emberd.settings import ServerSpec
from emberd.system import background, ownership
from homes import QUICK, Stub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it counts children by /proc")


@pytest.fixture
def supervise(home: Path, stub: Stub) -> Callable[[Callable[[Supervisor], None]], None]:
    """Calls a check with a supervisor that has not started its server yet."""

    def run(check: Callable[[Supervisor], None]) -> None:
        forked.run(lambda: check(_supervisor(home, stub(faults="leaves-files"))))

    return run


def _supervisor(home: Path, spec: ServerSpec) -> Supervisor:
    process_tree.become_subreaper()
    folder = ownership.make_private(home / "machine" / "servers" / "key")
    alive = locks.take_liveness(folder)
    assert alive is not None
    paths.rotate_log(folder, "0123456789abcdef")
    idle.reset(folder, 600.0)
    record = Record(
        state=State.STARTING,
        start_id="0123456789abcdef",
        spec=spec,
        timing=replace(QUICK, tick_s=0.1),
        since_s=time.monotonic(),
        engine=spec.engine,
        log_path=str(folder / paths.LOG_NAME),
    )
    return Supervisor(folder, record, alive, verify)


def _left(supervisor: Supervisor) -> list[object]:
    scratch = supervisor.record.scratch
    return [*psutil.Process().children(recursive=True), *filter(os.path.exists, [scratch])]


def test_waiting_for_the_gpu_and_planning_after_it_are_two_phases(
    supervise: Callable[[Callable[[Supervisor], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(supervisor: Supervisor) -> None:
        kind, held = type(supervisor.engine), ExitStack()
        plan = kind.plan

        def plan_slowly(*given: Any) -> Plan:
            time.sleep(0.5)
            return plan(*given)

        monkeypatch.setattr(kind, "exclusive_resources", lambda *_: ["card-1", "card-0"])
        monkeypatch.setattr(kind, "plan", plan_slowly)
        folder = ownership.make_private(paths.Home.of(supervisor.folder).gpu_locks)
        held.enter_context(locks.gpu_locks(folder, ["card-1"], 0))
        timer = threading.Timer(0.5, held.close)
        timer.start()
        supervisor.run()
        timer.join()
        phases = supervisor.record.phases
        # The record of this test begins without a phase.
        assert list(phases)[:3] == ["", "waiting for the GPU", "planning"]
        assert phases["waiting for the GPU"] > 0.3
        assert phases["planning"] >= 0.5

    monkeypatch.setattr(Supervisor, "_serve", lambda self: self._stop("enough", by_user=True))
    supervise(check)


@pytest.mark.parametrize("ending", ["stop", "unusable", "folder is removed", "no process"])
def test_gpu_is_locked_until_the_server_of_a_start_has_ended(
    supervise: Callable[[Callable[[Supervisor], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    """Until then its memory is in use, and another start would be planned with the rest."""
    locked: list[bool] = []

    def check(supervisor: Supervisor) -> None:
        lock_folder = ownership.make_private(paths.Home.of(supervisor.folder).gpu_locks)
        end = Supervisor._end_server

        def end_and_look(self: Supervisor) -> None:
            try:
                with locks.gpu_locks(lock_folder, ["card"], 0):
                    locked.append(False)
            except LockTimeoutError:
                locked.append(True)
            end(self)

        def go_on(self: Supervisor, start: object) -> None:
            if ending == "stop":
                self._stop_requested = True
            else:
                waiting.remove(self.folder)
                self._wait(0)

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        kind = type(supervisor.engine)
        monkeypatch.setattr(Supervisor, "_end_server", end_and_look)
        monkeypatch.setattr(kind, "exclusive_resources", lambda *_: ["card"])
        if ending == "unusable":
            monkeypatch.setattr(kind, "why_unsupported", lambda *_: "pools by mean. Use another.")
        elif ending == "no process":
            monkeypatch.setattr(process_tree, "ServerProcess", refuse)
        else:
            monkeypatch.setattr(Supervisor, "_await_ready", go_on)
        supervisor.run()
        assert locked
        assert all(locked)
        assert _left(supervisor) == []
        with locks.gpu_locks(lock_folder, ["card"], 0):
            pass

    supervise(check)


def test_weights_are_read_ahead_while_the_server_starts(
    supervise: Callable[[Callable[[Supervisor], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def read(model: str, revision: str | None) -> None:
        asked.append((model, revision))
        threading.Event().wait()  # a slow disk

    def check(supervisor: Supervisor) -> None:
        supervisor.run()
        spec = supervisor.record.spec
        assert asked == [(spec.model, spec.revision)]
        assert (supervisor.record.state, supervisor.record.failure) == (State.ABSENT, None)

    monkeypatch.setattr(weight_files, "read_ahead", read)
    monkeypatch.setattr(Supervisor, "_serve", lambda self: self._stop("enough", by_user=True))
    supervise(check)


def test_weights_that_the_server_does_not_read_are_not_read_ahead(
    supervise: Callable[[Callable[[Supervisor], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang with ``--download-dir`` reads others than those in the hub's cache."""

    def check(supervisor: Supervisor) -> None:
        kind = type(supervisor.engine)
        monkeypatch.setattr(supervisor_module, "EnvironmentEngine", kind)
        monkeypatch.setattr(kind, "uses_hub_cache", lambda *_: False, raising=False)
        supervisor.run()
        assert supervisor.record.failure is None
        assert asked == []

    asked: list[object] = []
    monkeypatch.setattr(weight_files, "read_ahead", lambda *given: asked.append(given))
    monkeypatch.setattr(Supervisor, "_serve", lambda self: self._stop("enough", by_user=True))
    supervise(check)


def test_failure_while_the_folder_is_removed_leaves_nothing(
    supervise: Callable[[Callable[[Supervisor], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Supervisor) -> None:
        waiting.remove(self.folder)
        raise ValueError("any bug")

    def check(supervisor: Supervisor) -> None:
        with pytest.raises(ValueError, match="any bug"):
            supervisor.run()
        assert _left(supervisor) == []

    monkeypatch.setattr(Supervisor, "_serve", fail)
    supervise(check)


def test_progress_that_cannot_be_written_ends_no_start(
    supervise: Callable[[Callable[[Supervisor], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = state.write_record
    refused: list[str] = []

    def write_no_progress(folder: Path, record: Record, *others: Any) -> None:
        if record.progress and not refused:
            refused.append(record.progress)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        write(folder, record, *others)

    def check(supervisor: Supervisor) -> None:
        supervisor.run()
        assert refused
        assert supervisor.record.state is State.READY
        assert _left(supervisor) == []

    monkeypatch.setattr(state, "write_record", write_no_progress)
    monkeypatch.setattr(Supervisor, "_serve", Supervisor._end_server)
    supervise(check)


def test_start_without_a_free_thread_fails_with_its_reason(
    supervise: Callable[[Callable[[Supervisor], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise EmberdError("No thread can be started (tested).")

    def check(supervisor: Supervisor) -> None:
        with pytest.raises(EmberdError):
            supervisor.run()
        assert supervisor.record.state is State.FAILED
        assert supervisor.record.failure is not None
        assert supervisor.record.failure.cause == "No thread can be started (tested)."
        assert _left(supervisor) == []

    monkeypatch.setattr(background, "run", refuse)
    supervise(check)
