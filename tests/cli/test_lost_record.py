"""``status``, ``stop`` and ``up`` for a server whose record is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

import damage
import leftovers
from command import ENGINE, Command, stub
from emberd.system import processes


def record_and_supervisor(
    emberd: Command, asked: Sequence[str] = stub()
) -> tuple[Path, psutil.Process]:
    """Start a server; return the file of its record and its supervisor."""
    folder = emberd("up", *asked, "--json").json["folder"]
    (server,) = emberd("status", "--json").json["servers"]
    return Path(folder) / "record.json", psutil.Process(server["supervisor_pid"])


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
    supervisor.suspend()
    file.unlink()

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
    supervisor.suspend()
    file.unlink()
    assert emberd("stop", "--model", "stub/other").out.startswith(
        "No server of stub/other is running"
    )
    assert file.parent.name in emberd("stop", "--model", "stub/ok").out
    assert processes.identify(supervisor.pid) is None


def test_stop_of_a_model_finds_its_quantised_server_although_no_record_names_it(
    emberd: Command,
) -> None:
    file, supervisor = record_and_supervisor(emberd, (*stub(), "--quantization", "fp8"))
    supervisor.suspend()
    file.unlink()
    assert file.parent.name in emberd("stop", "--model", "stub/ok").out
    assert processes.identify(supervisor.pid) is None


def test_stop_of_a_folder_finds_its_server_although_no_record_names_the_model(
    emberd: Command, tmp_path: Path
) -> None:
    model = tmp_path / "stub-model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 8, "max_position_embeddings": 64}')
    file, supervisor = record_and_supervisor(emberd, ("--engine", ENGINE, "--model", str(model)))
    supervisor.suspend()
    file.unlink()
    assert file.parent.name in emberd("stop", str(model)).out
    assert processes.identify(supervisor.pid) is None


def test_stop_of_a_model_tells_of_servers_whose_model_is_not_known(emberd: Command) -> None:
    file, supervisor = record_and_supervisor(emberd, (*stub(), "--revision", "0" * 40))
    supervisor.suspend()
    file.unlink()
    done = emberd("stop", "--model", "stub/ok")
    assert done.out.startswith("No server of stub/ok is running")
    assert file.parent.name in done.err
    assert "emberd stop" in done.err
    assert file.parent.name in emberd("stop").out
