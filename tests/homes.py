"""Fixtures for a temporary home, a manager with short periods, and specs for the stub engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import leftovers
import waiting
from emberd.errors import StartTimeoutError
from emberd.manager import State, Timing
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager

QUICK = Timing(
    poll_s=0.02, tick_s=0.1, look_s=0.2, cool_down_s=30.0, lost_s=0.5, kill_s=5.0, probe_s=0.3
)

Stub = Callable[..., ServerSpec]
Starts = Callable[[], int]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty EMBERD_HOME."""
    return tmp_path / "home"


@pytest.fixture
def manager(home: Path) -> Iterator[Manager]:
    """A manager with short periods; the teardown stops its servers, and no process may remain."""
    manager = Manager(home, timing=QUICK)
    yield manager
    manager.stop()
    left = leftovers.end_all([str(home)])
    assert not left, "processes left behind:\n" + "\n".join(left)


@pytest.fixture
def stub(tmp_path: Path) -> Callable[..., ServerSpec]:
    """Specs for the stub engine, which counts its starts in the file ``starts``."""

    def make(name: str = "ok", **options: object) -> ServerSpec:
        options = {"count": tmp_path / "starts", **options}
        query = "&".join(f"{key}={value}" for key, value in options.items())
        return ServerSpec(model=f"stub/{name}?{query}", engine="stubs.engine")

    return make


@pytest.fixture
def starts(tmp_path: Path) -> Callable[[], int]:
    """Returns how often the stub engine was started."""

    def count() -> int:
        file = tmp_path / "starts"
        return len(file.read_text().splitlines()) if file.exists() else 0

    return count


def begin(manager: Manager, spec: ServerSpec) -> None:
    """Start a server or join its start, without waiting until it is ready."""

    def begun() -> bool:
        # On a loaded machine this timeout may expire before the start begins.
        with suppress(StartTimeoutError):
            manager.ensure(spec, start_timeout=0.01)
        return any(
            server.spec == spec and server.state in {State.STARTING, State.READY}
            for server in manager.status()
        )

    waiting.until(begun)


def server_of(supervisor: psutil.Process) -> psutil.Process | None:
    """Return the server that a supervisor is parent of, once it runs; not the orphan reaper."""
    for child in supervisor.children():
        words = child.cmdline()
        # Between fork and exec a child has the supervisor's command line and may become either.
        if words != supervisor.cmdline() and "orphan_reaper.py" not in " ".join(words):
            return child
    return None
