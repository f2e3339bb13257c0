"""A new home for each test of the command, which leaves nothing behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import leftovers
import waiting
from command import Command, stub
from emberd import Manager, probe


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty EMBERD_HOME; what was started in it is stopped, and must then be gone."""
    home = tmp_path / "home"
    yield home
    _end(home)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """The command, in a home where ``stub/ok`` runs: for tests that leave it running."""
    command = Command(tmp_path_factory.mktemp("running") / "home")
    assert command("up", *stub()).code == 0
    yield command
    _end(command.home)


@pytest.fixture
def emberd(home: Path) -> Command:
    """The command."""
    return Command(home)


@pytest.fixture
def stranger() -> Iterator[str]:
    """The root of a stub server that no emberd started; it must outlive the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).parents[1] / "stub_server.py"
    command = [sys.executable, str(program), "--port", str(port), "--model", "stub/theirs"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        waiting.until(lambda: probe.is_ready(url))
        yield url
        assert process.poll() is None
        process.terminate()


def _end(home: Path) -> None:
    Manager(home).stop()
    left = leftovers.end_all([str(home)])
    assert not left, "processes left behind:\n" + "\n".join(left)
