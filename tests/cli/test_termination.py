"""SIGTERM during a start: to the command, to the supervisor, to the server, and to all of them."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import leftovers
import waiting
from command import Child, Command, stub
from emberd import Manager
from emberd.manager import ServerStatus, State, cleanup


@pytest.fixture
def pending(emberd: Command) -> Callable[[], ServerStatus]:
    """Return the status of the only start, once its server runs."""

    def find() -> ServerStatus:
        manager = Manager(emberd.home)
        [started] = waiting.until(lambda: [s for s in manager.status() if s.detail == "loading"])
        assert started.state is State.STARTING
        assert started.supervisor_pid is not None
        return started

    return find


def server_of(status: ServerStatus) -> psutil.Process:
    children = psutil.Process(status.supervisor_pid).children(recursive=True)
    return next(child for child in children if any("stub/" in word for word in child.cmdline()))


def nothing_is_left(home: Path, status: ServerStatus) -> bool:
    return not leftovers.find([str(home)]) and not os.path.exists(
        cleanup.scratch_path(status.start_id)
    )


def result(process: Child) -> tuple[int, str]:
    _, err = process.communicate(timeout=30)
    return process.returncode, err.decode()


def test_sigterm_ends_the_command_and_not_the_start(
    emberd: Command, pending: Callable[[], ServerStatus], home: Path
) -> None:
    with emberd.begin("up", *stub(start=60)) as process:
        before = pending()
        process.send_signal(signal.SIGTERM)
        code, err = result(process)
    # A shell reports it as 143.
    assert (code, "Traceback" in err) == (-signal.SIGTERM, False)
    assert pending().start_id == before.start_id
    assert "(it was starting)" in emberd("stop").out
    waiting.until(lambda: nothing_is_left(home, before))


def test_sigterm_while_the_command_holds_the_start_lock_prevents_no_later_start(
    emberd: Command, home: Path
) -> None:
    with emberd.begin("up", *stub()) as process:
        waiting.until(lambda: next(home.rglob("lock"), None), poll_s=0.001)
        process.send_signal(signal.SIGTERM)
        code, _ = result(process)
    assert code == -signal.SIGTERM
    assert emberd("up", *stub()).code == 0


def test_sigterm_to_the_supervisor_during_a_start_ends_the_start(
    emberd: Command, pending: Callable[[], ServerStatus], home: Path
) -> None:
    with emberd.begin("up", *stub(start=60)) as process:
        before = pending()
        psutil.Process(before.supervisor_pid or 0).terminate()
        code, err = result(process)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ")
    assert "stopped" in err.splitlines()[-1]
    waiting.until(lambda: nothing_is_left(home, before))
    assert emberd("status").code == 3
    assert emberd("up", *stub()).code == 0


def test_sigterm_to_the_server_during_a_start_is_a_failed_start(
    emberd: Command, pending: Callable[[], ServerStatus], home: Path
) -> None:
    with emberd.begin("up", *stub(start=60)) as process:
        before = pending()
        server_of(before).send_signal(signal.SIGTERM)
        code, err = result(process)
    assert code == 5
    assert err.splitlines()[-1].startswith("error: ")
    waiting.until(lambda: nothing_is_left(home, before))


def test_sigterm_to_all_processes_as_at_a_shutdown_leaves_nothing(
    emberd: Command, pending: Callable[[], ServerStatus], home: Path
) -> None:
    with emberd.begin("up", *stub(start=60)) as process:
        before = pending()
        for each in leftovers.find([str(home)]):
            with suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGTERM)
        code, _ = result(process)
    assert code == -signal.SIGTERM
    waiting.until(lambda: nothing_is_left(home, before))
    assert emberd("up", *stub()).code == 0


def test_sigterm_leaves_the_cursor_of_the_terminal_visible(emberd: Command) -> None:
    screen, terminal = pty.openpty()
    shown = b""
    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    with emberd.begin("up", *stub(start=60), **streams) as process:
        os.close(terminal)
        while b"\x1b[?25l" not in shown:
            shown += os.read(screen, 4096)
        process.send_signal(signal.SIGTERM)
        with suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(screen, 4096):
                shown += piece
    os.close(screen)
    assert process.returncode == -signal.SIGTERM
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
