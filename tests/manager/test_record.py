"""The record of a server."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from emberd.endpoint import Endpoint
from emberd.errors import StartError, StateFolderError
from emberd.manager import state
from emberd.manager.state import Record, State, Timing
from emberd.settings import ServerSpec
from emberd.system import atomic_file, processes
from emberd.system.listeners import Listener
from emberd.system.log_rules import Diagnosis

FULL = Record(
    state=State.FAILED,
    start_id="abc",
    spec=ServerSpec(model="m", revision="r", engine="demo"),
    timing=Timing(tick_s=1.5),
    since_s=12.5,
    attempts=2,
    supervisor=processes.ProcessIdentity(1, "2", "3"),
    engine="demo",
    device="cpu",
    endpoint=Endpoint(
        "http://127.0.0.1:1", "m", 8, 512, "secret", "demo", listener=Listener(1000, inode=7)
    ),
    failure=Diagnosis("It broke", "Fix it."),
    log_path="/x/server.log",
    phases={"planning": 0.4, "loading": 1.5},
)


def test_a_phase_that_comes_again_is_continued() -> None:
    own = replace(FULL, since_s=10.0, progress="capturing graphs 3/58", phases={"a": 1.0})
    own = replace(own, phases=own.completed_phases(14.0), progress="compiling kernels")
    assert own.phases == {"a": 1.0, "capturing graphs": 3.0}
    assert own.phase_seconds(15.0) == 1.0
    own = replace(own, phases=own.completed_phases(15.0), progress="capturing graphs 4/58")
    assert own.completed_phases(17.0) == {
        "a": 1.0,
        "capturing graphs": 5.0,
        "compiling kernels": 1.0,
    }


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    state.write_record(tmp_path, FULL)
    assert state.read_record(tmp_path) == FULL


_THREADS_READ = """
import sys, threading
from pathlib import Path
from emberd.manager import state
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)
found = []
def read():
    barrier.wait()
    found.append(state.read_record(Path(sys.argv[1])))
threads = [threading.Thread(target=read) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert len(found) == 8 and None not in found
"""


def test_threads_may_read_the_first_record_of_a_process_at_once(tmp_path: Path) -> None:
    """msgspec 0.22 crashes if two threads use a class for the first time: in a quarter of runs."""
    state.write_record(tmp_path, FULL)
    command = [sys.executable, "-c", _THREADS_READ, str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait(60) for process in running] == [0] * len(running)


def test_record_is_private(tmp_path: Path) -> None:
    state.write_record(tmp_path, FULL)
    assert stat.S_IMODE((tmp_path / state.RECORD_NAME).stat().st_mode) == 0o600


def test_the_key_is_in_the_file_and_not_in_the_text_of_the_record(tmp_path: Path) -> None:
    state.write_record(tmp_path, FULL)
    assert "secret" in (tmp_path / state.RECORD_NAME).read_text()
    assert "secret" not in repr(FULL)


def test_there_is_no_record_where_none_was_written(tmp_path: Path) -> None:
    assert state.read_record(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 4}', '{"schema": 4, "state": "x"}'])
def test_a_record_that_cannot_be_understood_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / state.RECORD_NAME).write_text(content)
    assert state.read_record(tmp_path) is None


def test_a_record_of_another_schema_is_left_to_the_version_that_wrote_it(tmp_path: Path) -> None:
    state.write_record(tmp_path, replace(FULL, schema=99))
    with pytest.raises(StateFolderError, match="schema 99.*emberd stop"):
        state.read_record(tmp_path)


def test_a_field_that_a_later_version_added_does_no_harm(tmp_path: Path) -> None:
    state.write_record(tmp_path, FULL)
    content = json.loads((tmp_path / state.RECORD_NAME).read_text())
    content["timing"]["colour"] = content["spec"]["colour"] = content["endpoint"]["colour"] = "red"
    (tmp_path / state.RECORD_NAME).write_text(json.dumps({**content, "colour": "red"}))
    assert state.read_record(tmp_path) == FULL


def test_unfinished_file_of_a_killed_writer_is_ignored(tmp_path: Path) -> None:
    state.write_record(tmp_path, FULL)
    (tmp_path / f".{state.RECORD_NAME}.0{atomic_file.UNFINISHED}").write_text('{"schema": 4, "sta')
    assert state.read_record(tmp_path) == FULL
    state.write_record(tmp_path, replace(FULL, attempts=7))
    assert state.read_record(tmp_path) == replace(FULL, attempts=7)


def test_link_with_the_name_of_a_record_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / state.RECORD_NAME).symlink_to("elsewhere")
    state.write_record(tmp_path, FULL)
    assert state.read_record(tmp_path) == FULL
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_a_recorded_failure_is_the_same_error_for_everybody(tmp_path: Path) -> None:
    state.write_record(tmp_path, FULL)
    read = state.read_record(tmp_path)
    assert read is not None
    error = read.start_error()
    assert isinstance(error, StartError)
    assert str(error) == "It broke. Fix it. Log: /x/server.log"
