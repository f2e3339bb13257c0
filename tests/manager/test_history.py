"""What is kept of the servers of a home after their records and logs were replaced."""

from __future__ import annotations

import json
import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import damage
import waiting
from emberd.errors import StartError, StateFolderError
from emberd.manager import State, history, orphan_reaper, paths
from emberd.manager.gateway_facts import GatewayFacts
from emberd.manager.history import Counted, Event
from emberd.manager.paths import Home
from emberd.manager.state import Record
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from foreign import SPEC, Foreign
from homes import QUICK, Stub, server_of
from plain_client import embed
from small_disk import Disk, disk

__all__ = ["disk"]

SOME = 300  # events that fit into one file


def kinds(manager: Manager, start_id: str | None = None) -> list[str]:
    return [each.event for each in manager.history() if start_id in (None, each.start_id)]


def last(manager: Manager, event: str) -> Event:
    return next(each for each in reversed(manager.history()) if each.event == event)


def supervisor_of(manager: Manager) -> psutil.Process:
    return psutil.Process(manager.status()[0].supervisor_pid)


def folder_in(home: Path) -> Path:
    """Make the folder of a server."""
    folder = home / "machine" / "servers" / "key"
    folder.mkdir(parents=True, mode=0o700)
    return folder


def record(stub: Stub, **fields: Any) -> Record:
    common = {"spec": stub(), "timing": QUICK, "since_s": 0.0, "engine": "stubs.engine"}
    return Record(**{"state": State.READY, "start_id": "0123abcd", **common, **fields})


# ---------------------------------------------------------------- the events of a server


def test_a_start_and_a_stop_are_kept_with_phases_and_who_asked(
    manager: Manager, stub: Stub, home: Path
) -> None:
    server = manager.ensure(stub())
    manager.stop()
    assert kinds(manager) == ["start", "ready", "stop_requested", "stopped"]
    assert {each.start_id for each in manager.history()} == {server.start_id}
    assert {each.model for each in manager.history()} == {stub().model}
    begun, ready = manager.history()[:2]
    assert begun.facts["by_pid"] == os.getpid()
    assert ready.facts["phases"].keys() == server.phases.keys()
    assert ready.facts["seconds"] == pytest.approx(sum(server.phases.values()), abs=0.5)
    assert stat.S_IMODE((home / history.NAME).stat().st_mode) == 0o600


def test_a_failed_start_is_kept_with_its_cause_and_phase(manager: Manager, stub: Stub) -> None:
    with pytest.raises(StartError) as raised:
        manager.ensure(stub(faults="dies-at-start"))
    assert kinds(manager) == ["start", "start_failed"]
    failed = last(manager, "start_failed")
    assert failed.facts["cause"] in str(raised.value)
    assert failed.facts["phase"] in failed.facts["phases"]


def test_a_crash_is_kept_after_the_next_server_has_replaced_record_and_log(
    manager: Manager, stub: Stub
) -> None:
    first = manager.ensure(stub())
    engine = server_of(supervisor_of(manager))
    assert engine is not None
    engine.kill()
    waiting.until(lambda: not manager.is_current(first))
    second = manager.ensure(stub(), lost=first)
    assert kinds(manager, first.start_id) == ["start", "ready", "crashed"]
    crash = last(manager, "crashed")
    assert "killed" in crash.facts["cause"]
    assert crash.facts["seconds"] >= 0
    assert last(manager, "start").facts["lost"] == first.start_id
    assert kinds(manager, second.start_id) == ["start", "ready"]


def test_an_idle_stop_and_a_hang_are_kept(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub(), idle_timeout=0.5)
    waiting.until(lambda: "idle_stop" in kinds(manager, server.start_id), 60)
    waiting.until(lambda: not manager.is_current(server))  # the event comes before the state
    hung = manager.ensure(stub())
    with ThreadPoolExecutor() as pool:
        pool.submit(embed, hung, "WEDGE")
        waiting.until(lambda: _reported(manager, hung), 60)
    assert kinds(manager, hung.start_id) == ["start", "ready", "hung"]


def _reported(manager: Manager, server: Any) -> bool:
    manager.report_unresponsive(server)
    return "hung" in kinds(manager, server.start_id)


def test_the_orphan_reaper_notes_a_killed_supervisor_at_once(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    supervisor_of(manager).kill()
    waiting.until(lambda: "supervisor_killed" in kinds(manager))
    found = last(manager, "supervisor_killed")
    assert (found.start_id, found.model) == (server.start_id, stub().model)
    manager.ensure(stub())
    assert kinds(manager).count("supervisor_killed") == 1


def test_the_next_start_notes_a_killed_supervisor_whose_orphan_reaper_was_killed_too(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    supervisor = supervisor_of(manager)
    supervisor.suspend()  # otherwise it replaces the orphan reaper
    for child in supervisor.children():
        child.kill()
    supervisor.kill()
    supervisor.wait(10)
    assert kinds(manager) == ["start", "ready"]
    again = manager.ensure(stub())
    assert kinds(manager, server.start_id) == ["start", "ready", "supervisor_killed"]
    assert kinds(manager, again.start_id) == ["start", "ready"]
    manager.stop()
    assert kinds(manager).count("supervisor_killed") == 1


@pytest.mark.usefixtures("no_default_port")
def test_an_adopted_server_is_kept(manager: Manager, foreign: Foreign) -> None:
    url, _ = foreign()
    manager.ensure(SPEC)
    manager.ensure(SPEC)
    assert kinds(manager) == ["adopted"]
    assert last(manager, "adopted").facts["url"] == url


def test_a_lost_folder_is_kept(manager: Manager, stub: Stub, home: Path) -> None:
    server = manager.ensure(stub())
    assert server.folder is not None
    waiting.remove(Path(server.folder))
    waiting.until(lambda: "folder_gone" in kinds(manager))
    assert "supervisor_killed" not in kinds(manager)


# ---------------------------------------------------------------- faults of the file


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "socket", "dangling"])
def test_what_has_the_name_of_the_history_makes_no_start_or_stop_fail(
    manager: Manager, stub: Stub, home: Path, kind: str
) -> None:
    home.mkdir(mode=0o700)
    file = home / history.NAME
    if kind == "dangling":
        file.symlink_to(home / "elsewhere")
    else:
        file.touch()
        damage.OF_ANY_FILE[kind](file)
    assert manager.ensure(stub()).started
    manager.stop()
    assert manager.history() == []
    assert not (home / "elsewhere").exists()


def test_a_full_disk_leaves_events_out_and_the_next_line_is_intact(disk: Disk, stub: Stub) -> None:
    folder = folder_in(disk.folder)
    home = Home.of(folder)
    own = record(stub)
    history.note(folder, history.READY, own)
    disk.fill()
    for _ in range(100):  # until the last block is full, in the middle of a line
        history.note(folder, history.CRASHED, own, cause="x" * 900)
    torn = (disk.folder / history.NAME).read_bytes()
    assert not torn.endswith(b"\n")
    disk.free()
    history.note(folder, history.STOPPED, own)
    assert [each.event for each in history.read(home)][-1] == "stopped"


def test_lines_that_are_torn_or_foreign_are_skipped(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    history.note(folder, history.READY, record(stub))
    file = home / history.NAME
    with file.open("ab") as opened:
        opened.write(b'{"event": "crashed", "start_id": "0123ab')  # killed while it wrote
    history.note(folder, history.STOPPED, record(stub))
    with file.open("ab") as opened:
        opened.write(b'[1]\n{"event": 7}\n\xff\xfe\n{"event": "idle_stop", "model": 3}\n')
        opened.write(b"[" * 100_000 + b"\n")
    events = history.read(Home.of(folder))
    assert [each.event for each in events] == ["ready", "stopped", "idle_stop"]
    assert events[-1].model == ""


def test_the_note_of_the_orphan_reaper_is_intact_behind_a_torn_line(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    history.note(folder, history.READY, record(stub))
    with (home / history.NAME).open("ab") as opened:
        opened.write(b'{"event": "stop_re')
    orphan_reaper.note_kill(f"MARK={folder}:0123abcd")
    events = [each.event for each in history.read(Home.of(folder))]
    assert events == ["ready", "supervisor_killed"]


def test_a_history_that_cannot_be_renamed_is_bounded_and_read(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    (home / f"{history.NAME}.1").mkdir()
    for _ in range(3 * SOME):
        history.note(folder, history.CRASHED, record(stub), cause="x" * 900)
    assert 250_000 < (home / history.NAME).stat().st_size < 270_000
    counts = history.count(Home.of(folder))
    assert 200 < counts.times.total() < SOME


def test_a_history_of_another_user_is_neither_read_nor_written(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    file = home / history.NAME
    file.write_text('{"event": "crashed"}\n')
    file.chmod(0o666)
    history.note(folder, history.READY, record(stub))
    assert history.read(Home.of(folder)) == []
    assert len(file.read_text().splitlines()) == 1


def test_a_home_that_was_removed_is_not_made_again(stub: Stub, home: Path) -> None:
    history.note(home / "machine" / "servers" / "key", history.CRASHED, record(stub))
    assert not home.exists()


# ---------------------------------------------------------------- size and counts


def test_the_history_is_bounded_and_its_counts_never_fall(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    where = Home.of(folder)
    own = record(stub)
    crashed = Counted("crashed", own.spec.model, own.spec.task, "stubs.engine")
    for made in range(1, 4 * SOME):
        history.note(folder, history.CRASHED, own, cause="x" * 900, seconds=2.0)
        if made % 50 == 0:
            assert history.count(where).times[crashed] == made
    assert history.count(where).seconds[crashed] == 2.0 * made
    sizes = [file.stat().st_size for file in home.glob("history*")]
    assert len(sizes) == 2
    assert sum(sizes) < 600_000
    assert len(history.read(where)) < made


def test_the_rarest_counts_are_kept_together(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    where = Home.of(folder)
    common = record(stub)
    made = 0

    def rotate() -> None:
        """Write until the file is renamed."""
        nonlocal made
        while (home / history.NAME).exists():
            history.note(folder, history.CRASHED, common, cause="x" * 900, seconds=1.0)
            made += 1

    for turn in range(3):
        for number in range(600):
            model = replace(stub(), model=f"stub/{turn}-{number}")
            history.note(folder, history.IDLE_STOP, record(stub, spec=model), seconds=2.0)
        rotate()
    counts = history.count(where)
    of = (common.spec.model, common.spec.task, "stubs.engine")
    assert counts.times[Counted("crashed", *of)] == made
    assert counts.seconds[Counted("crashed", *of)] == made
    stops = {what: times for what, times in counts.times.items() if what.event == "idle_stop"}
    assert sum(stops.values()) == 3 * 600
    assert sum(counts.seconds[what] for what in stops) == 2.0 * 3 * 600
    assert stops[Counted("idle_stop", history.OTHER)] > 600
    (last,) = (home / f"{history.NAME}.1").read_text().splitlines()[-1:]
    assert len(json.loads(last)["counts"]) < 520


def test_a_rotation_changes_no_count_of_events_that_refer_to_earlier_ones(
    stub: Stub, home: Path
) -> None:
    folder = folder_in(home)
    where = Home.of(folder)
    killed, ended = record(stub, start_id="killed"), record(stub, start_id="ended")
    filler = record(stub, start_id="filler")

    def fill() -> None:
        """Write until the file is renamed."""
        for _ in range(2 * SOME):
            history.note(folder, history.PORT_TAKEN, filler, cause="x" * 900)
            if not (home / history.NAME).exists():
                return
        raise AssertionError

    for own in (killed, ended):
        history.note(folder, history.START, own)
        history.note(folder, history.READY, own, seconds=0.1, phases={"planning": 0.1})
    history.note(folder, history.STOPPED, ended, seconds=0.2)
    fill()
    for own in (killed, ended):
        mark = f"EMBERD_MARK={folder}:{own.start_id}"
        history.note(folder, history.PORT_TAKEN, filler)  # the reaper makes no file
        orphan_reaper.note_kill(mark)
    expected = Counted("supervisor_killed", killed.spec.model, killed.spec.task, "stubs.engine")
    for _ in range(3):
        counts = history.count(where)
        kills = {what: n for what, n in counts.times.items() if what.event == "supervisor_killed"}
        assert kills == {expected: 1}
        stopped = expected._replace(event="stopped")
        assert (counts.times[stopped], counts.seconds[stopped]) == (1, 0.2)
        fill()


def test_sums_of_seconds_do_not_fall_by_the_order_of_addition(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    own = record(stub)
    stopped = Counted("stopped", own.spec.model, own.spec.task, "stubs.engine")
    for _ in range(3):
        history.note(folder, history.STOPPED, own, seconds=0.1)
    for made in range(3 * SOME):
        history.note(folder, history.PORT_TAKEN, own, cause="x" * 900)
        if made % 20 == 0:
            assert history.count(Home.of(folder)).seconds[stopped] == 0.3


def test_a_kill_between_the_steps_of_a_rotation_changes_no_count(
    stub: Stub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_in(home)
    own = record(stub)

    def killed(*_: object) -> None:
        raise OSError

    made = 0
    for round_of in range(3):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", killed)
            for _ in range(SOME + 10 * round_of):
                history.note(folder, history.CRASHED, own, cause="x" * 900)
                made += 1
        assert history.count(Home.of(folder)).times.total() == made
        history.note(folder, history.CRASHED, own)
        made += 1
        assert history.count(Home.of(folder)).times.total() == made


def test_writers_at_the_same_time_lose_nothing(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    own = record(stub)

    def write(_: int) -> None:
        for _ in range(SOME // 2):
            history.note(folder, history.CRASHED, own, cause="x" * 900)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert history.count(Home.of(folder)).times.total() == 4 * (SOME // 2)


def test_phases_and_outcomes_are_counted(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    own = record(stub)
    of = (own.spec.model, own.spec.task, "stubs.engine")
    history.note(folder, history.READY, own, seconds=3.5, phases={"planning": 0.5, "loading": 3})
    history.note(folder, history.START_FAILED, own, phase="loading", seconds=1.0)
    counts = history.count(Home.of(folder))
    assert counts.times[Counted("phase", *of, "loading")] == 1
    assert counts.seconds[Counted("phase", *of, "loading")] == 3.0
    assert counts.seconds[Counted("ready", *of)] == 3.5
    assert counts.times[Counted("start_failed", *of, "loading")] == 1


def test_events_of_the_gateway_are_kept_and_not_counted_as_those_of_a_server(
    stub: Stub, home: Path
) -> None:
    servers = folder_in(home)
    folder = Home.of(servers).gateway
    folder.mkdir(parents=True, mode=0o700)
    facts = GatewayFacts("request", (), ("emberd/demo",))
    own = record(stub, spec=ServerSpec("gateway"), gateway=facts, start_id="gate")
    history.note(folder, history.START, own)
    history.note(folder, history.READY, own)
    history.note(servers, history.CRASHED, record(stub))
    # The orphan reaper knows no more.
    line = {"event": "supervisor_killed", "server": folder.name, "start_id": "gate"}
    with (home / history.NAME).open("a") as file:
        file.write(json.dumps(line) + "\n")
    kept = history.read(Home.of(servers))
    assert [each.task for each in kept] == ["gateway", "gateway", "embed", "gateway"]
    assert {each.model for each in history.count(Home.of(servers)).times} == {stub().model}


def test_the_end_of_a_start_that_was_over_is_no_kill(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    history.note(folder, history.CRASHED, record(stub))
    history.note(folder, history.SUPERVISOR_KILLED, record(stub))
    assert [each.event for each in history.read(Home.of(folder))] == ["crashed"]


def test_a_kill_during_a_start_is_none_of_a_ready_server(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    starting, ready = record(stub, start_id="starting"), record(stub, start_id="ready")
    history.note(folder, history.START, starting)
    history.note(folder, history.START, ready)
    history.note(folder, history.READY, ready)
    for own in (starting, ready):
        orphan_reaper.note_kill(f"EMBERD_MARK={folder}:{own.start_id}")
    times = history.count(Home.of(folder)).times
    killed = Counted("supervisor_killed", ready.spec.model, ready.spec.task, "stubs.engine")
    assert times[killed] == 1
    assert times[killed._replace(phase=history.UNKNOWN)] == 1


def test_a_kill_after_a_crash_and_another_ready_is_noted(stub: Stub, home: Path) -> None:
    folder = folder_in(home)
    for event in (history.READY, history.CRASHED, history.READY):
        history.note(folder, event, record(stub))
    history.note_killed(folder, record(stub))
    history.note_killed(folder, record(stub))
    events = [each.event for each in history.read(Home.of(folder))]
    assert events == ["ready", "crashed", "ready", "supervisor_killed"]


def test_a_history_that_cannot_be_read_makes_no_start_or_stop_fail(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.ensure(stub())
    supervisor = supervisor_of(manager)
    read_file = paths.read_file

    def fail(path: Path, *, truncate: bool = False) -> bytes | None:
        if path.name.startswith(history.NAME):
            raise StateFolderError("Input/output error")
        return read_file(path, truncate=truncate)

    monkeypatch.setattr(paths, "read_file", fail)
    supervisor.kill()
    supervisor.wait(60)
    assert manager.ensure(stub()).started
    assert manager.stop()


def test_a_key_is_never_part_of_it(manager: Manager, stub: Stub, home: Path) -> None:
    server = manager.ensure(stub())
    assert server.endpoint.api_key
    manager.stop()
    assert server.endpoint.api_key not in (home / history.NAME).read_text()


def test_all_lines_are_json_with_a_known_event(manager: Manager, stub: Stub, home: Path) -> None:
    manager.ensure(stub())
    supervisor_of(manager).send_signal(signal.SIGKILL)
    waiting.until(lambda: "supervisor_killed" in kinds(manager))
    lines = [json.loads(line) for line in (home / history.NAME).read_text().splitlines()]
    assert {line["event"] for line in lines} <= set(history.EVENTS)
    assert {line["server"] for line in lines} == {stub().key}
    assert len({line["machine"] for line in lines}) == 1
