"""``status``, ``stop`` and ``up`` for a server whose record is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

import damage
import leftovers
import waiting
from command import ENGINE, Command, stub
from emberd.catalog import EMBED, MODELS, Model
from emberd.manager import locks, paths
from emberd.settings import ServerSpec
from emberd.system import processes


def record_and_supervisor(
    emberd: Command, asked: Sequence[str] = stub()
) -> tuple[Path, psutil.Process]:
    """Start a server; return the file of its record and its supervisor."""
    folder = emberd("up", *asked, "--json").json["folder"]
    (server,) = emberd("status", "--json").json["servers"]
    return Path(folder) / "record.json", psutil.Process(server["supervisor_pid"])


def lose(file: Path, supervisor: psutil.Process) -> None:
    """Delete a record whose supervisor does not run, so that it is not rewritten."""
    supervisor.suspend()
    # The signal acts on the next return to user space; a write could be under way.
    waiting.until(lambda: supervisor.status() == psutil.STATUS_STOPPED)
    file.unlink()


@pytest.mark.parametrize("kind", ["missing", "null", "directory"])
def test_lost_record_is_rewritten_and_every_command_sees_the_server(
    emberd: Command, kind: str
) -> None:
    file, supervisor = record_and_supervisor(emberd)
    for arguments in (("status",), ("up", *stub(), "--start-timeout", "20"), ("stop",)):
        damage.OF_RECORD[kind](file)
        done = emberd(*arguments)
        assert done.code == 0, done.err
        assert "stub/ok" in done.out
    assert "it was ready" in done.out
    assert processes.identify(supervisor.pid) is None


def test_frozen_supervisor_with_a_lost_record_is_shown_and_stopped(emberd: Command) -> None:
    file, supervisor = record_and_supervisor(emberd)
    lose(file, supervisor)

    shown = emberd("status", "--json")
    (server,) = shown.json["servers"]
    assert (shown.code, server["state"], server["supervisor_pid"]) == (0, "unknown", supervisor.pid)
    assert "unknown" in emberd("status").out

    refused = emberd("up", *stub(), "--start-timeout", "50")
    assert refused.code == 1
    assert str(file.parent) in refused.err
    assert "emberd stop" in refused.err

    stopped = emberd("stop")
    assert (stopped.code, file.parent.name in stopped.out) == (0, True)
    assert leftovers.find([str(emberd.home)]) == []
    assert emberd("up", *stub()).code == 0


def test_stop_of_a_model_finds_its_server_although_no_record_names_the_model(
    emberd: Command,
) -> None:
    file, supervisor = record_and_supervisor(emberd)
    lose(file, supervisor)
    assert emberd("stop", "--model", "stub/other").out.startswith(
        "No server of stub/other is running"
    )
    assert file.parent.name in emberd("stop", "--model", "stub/ok").out
    assert processes.identify(supervisor.pid) is None


def test_stop_of_a_model_finds_its_quantised_server_although_no_record_names_it(
    emberd: Command,
) -> None:
    file, supervisor = record_and_supervisor(emberd, (*stub(), "--quantization", "fp8"))
    lose(file, supervisor)
    assert file.parent.name in emberd("stop", "--model", "stub/ok").out
    assert processes.identify(supervisor.pid) is None


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_known_model_of_a_lost_record_is_shown_and_stopped(emberd: Command, model: Model) -> None:
    """The name of a state folder depends on the task."""
    name, task = model.name, model.task or EMBED
    folder = paths.Home(emberd.home).server_folder(ServerSpec(name, task=task).key)
    folder.mkdir(parents=True, mode=0o700)
    locks.liveness_path(folder).touch(mode=0o600)
    marked = {**os.environ, processes.MARK: f"{folder}:{'0' * 16}"}
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    with subprocess.Popen(command, env=marked) as orphan:
        try:
            # Between fork and exec it has the environment of this process.
            waiting.until(lambda: list(processes.marked(str(folder))))
            (known,) = emberd("status", "--json").json["servers"]
            assert (known["spec"]["model"], known["spec"]["task"]) == (name, task)
            assert folder.name in emberd("stop", name).out
            waiting.until(lambda: orphan.poll() is not None)
        finally:
            orphan.kill()


def test_stop_of_a_folder_finds_its_server_although_no_record_names_the_model(
    emberd: Command, tmp_path: Path
) -> None:
    model = tmp_path / "stub-model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 8, "max_position_embeddings": 64}')
    file, supervisor = record_and_supervisor(emberd, ("--engine", ENGINE, "--model", str(model)))
    lose(file, supervisor)
    assert file.parent.name in emberd("stop", str(model)).out
    assert processes.identify(supervisor.pid) is None


def test_stop_of_a_model_tells_of_servers_whose_model_is_not_known(emberd: Command) -> None:
    file, supervisor = record_and_supervisor(emberd, (*stub(), "--revision", "0" * 40))
    lose(file, supervisor)
    done = emberd("stop", "--model", "stub/ok")
    assert done.out.startswith("No server of stub/ok is running")
    assert file.parent.name in done.err
    assert "emberd stop" in done.err
    assert file.parent.name in emberd("stop").out
