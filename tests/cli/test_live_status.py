"""``status --watch``."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import waiting
from command import Child, Command, stub
from emberd import Embedder, Manager, server_load
from emberd.cli import live_status, shown_servers
from emberd.cli.shown_servers import GIB
from emberd.engines import gpus
from emberd.engines.gpu_usage import GpuMemory
from emberd.manager import ServerStatus, State, gpu_servers
from emberd.server_load import Reading
from emberd.settings import ServerSpec
from emberd.system import processes
from emberd.system.listeners import Listener
from emberd.system.processes import ProcessIdentity
from foreign import SPEC, Foreign, foreign, no_default_port

__all__ = ["foreign", "no_default_port"]


@contextmanager
def _watching(emberd: Command, *arguments: str) -> Iterator[Child]:
    with emberd.begin("status", "--watch", "--interval", "0.3s", *arguments) as process:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stdout is not None
        process.stdout.close()


def _views(process: Child) -> Iterator[list[dict[str, Any]]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)["servers"]


def test_in_a_pipe_each_view_is_printed_below_the_last(running: Command) -> None:
    with _watching(running) as process:
        assert process.stdout is not None
        first, second = ([process.stdout.readline().decode() for _ in range(4)] for _ in range(2))
    for title, names, row, end in (first, second):
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, every 0.3 s$", title.rstrip())
        assert names.split()[:2] == ["model", "state"]
        assert row.split()[:2] == ["stub/ok", "ready"]
        assert end == "\n"
    assert first[0] <= second[0]


def test_a_server_that_starts_appears_with_its_phase_and_one_that_stops_goes(
    emberd: Command,
) -> None:
    with _watching(emberd, "--json") as process:
        views = _views(process)
        assert next(views) == []
        with emberd.begin("up", *stub(start=4)) as starting:
            phase = next(view for view in views if view and "loading" in view[0]["detail"])
            assert (phase[0]["state"], phase[0]["load"]) == ("starting", None)
            ready = next(view for view in views if view and view[0]["state"] == "ready")
            assert 1700 < ready[0]["idle_left_s"] <= 1800
            assert "api_key" not in ready[0]
            starting.communicate()
        emberd("stop")
        assert any(view == [] for view in views)


def test_without_a_server_it_says_the_same_as_status_and_waits(emberd: Command) -> None:
    given = Command(emberd.home, {"EMBERD_BASE_URL": "http://127.0.0.1:9/v1"})
    for command, advice in ((emberd, "emberd up"), (given, "emberd doctor")):
        with _watching(command) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline().decode() for _ in range(3)]
        assert advice in lines[1]
        assert lines[1].strip() in command("status").err


def test_the_gateway_is_shown_without_a_server_too(emberd: Command) -> None:
    assert emberd("serve", "--background", "--no-tcp", "emberd/demo").code == 0
    try:
        with _watching(emberd) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline().decode() for _ in range(3)]
        with _watching(emberd, "--json") as process:
            assert process.stdout is not None
            view = json.loads(process.stdout.readline())
        told = emberd("status").out.splitlines()
    finally:
        emberd("stop", "gateway")
    assert lines[1].startswith("gateway: ready")
    assert lines[2].rstrip() == told[1]
    assert (view["servers"], view["gateway"]["state"]) == ([], "ready")
    assert view["gateway"].keys() == emberd("status", "--json", "--all").json["gateway"].keys()


def test_looking_is_no_use(emberd: Command) -> None:
    with _watching(emberd, "--json") as process:
        views = _views(process)
        assert next(views) == []
        assert emberd("up", *stub(), "--idle-timeout", "6s").code == 0
        left: list[float] = []
        for view in views:
            if left and not view:
                break
            left += [own["idle_left_s"] for own in view if own["state"] == "ready"]
    assert left[0] <= 6
    assert left[-1] < left[0]


def test_the_numbers_of_a_real_server_are_those_of_what_it_did(emberd: Command) -> None:
    embedder = Embedder(model="emberd/demo", manager=Manager(emberd.home))
    embedder.embed_documents(["first"])
    texts = [f"passage number {number}" for number in range(40)]
    with _watching(emberd, "--json", "--interval", "1s") as process:
        views = _views(process)
        next(views)
        began_s = time.monotonic()
        embedder.embed_documents(texts)
        took_s = time.monotonic() - began_s
        embedded = tokens = 0.0
        p95_s: list[float] = []
        while round(embedded) < len(texts):
            load = next(views)[0]["load"]
            if load is None:
                continue  # a busy machine: the next one includes it
            embedded += load["texts_per_s"] * load["seconds"]
            tokens += load["tokens_per_s"] * load["seconds"]
            p95_s += [load["p95"]["seconds"]] if load["p95"] else []
            assert time.monotonic() - began_s < 50
    assert round(embedded) == len(texts)
    assert 4 < tokens / embedded < 12  # "passage: passage number 12" and its special tokens
    assert p95_s
    # The bounds of the histogram are at most 2.5 times as far as the value.
    assert max(p95_s) < took_s * 2.5 + 0.01


def test_rates_after_a_missed_reading_include_it(
    running: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(at_s: float) -> Reading:
        return Reading(at_s, texts=10 * at_s, tokens=0.0, running=0, queued=0, latencies={})

    readings = iter([reading(1.0), None, reading(3.0)])
    monkeypatch.setattr(server_load, "read", lambda *_, **__: next(readings))
    monkeypatch.setenv("EMBERD_HOME", str(running.home))
    views = live_status._views(0.0, show_all=False)
    loads = [next(views)[0][0].load for _ in range(3)]
    assert loads[1] is None
    assert loads[2] is not None
    assert (loads[2].seconds, loads[2].texts_per_s) == (2.0, 10.0)


@pytest.mark.usefixtures("no_default_port")
def test_an_external_server_that_was_restarted_is_read_at_its_new_socket(
    foreign: Foreign, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign()
    manager = Manager(home)
    manager.ensure(SPEC)
    [own] = manager.status()
    assert own.listener is not None
    old = replace(own, listener=replace(own.listener, inode=own.listener.inode + 1))
    asked: list[Listener | None] = []

    def read(_url: str, *, listener: Listener | None) -> None:
        asked.append(listener)

    monkeypatch.setattr(server_load, "read", read)
    assert live_status._reading(old, old.url or "") is None
    assert asked == [own.listener]


def test_a_terminal_is_drawn_in_place_and_keeps_the_last_view(running: Command) -> None:
    narrow = Command(running.home, {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm-256color"})
    shown, code = _on_terminal(narrow, 3)
    assert code == 130
    assert shown.count("stub/ok") >= 3
    assert "\x1b[2K" in shown  # lines are erased and drawn again
    assert "\x1b[?25h" in shown.rpartition("\x1b[?25l")[2]  # the cursor is shown again
    assert not re.search(r"\x1b\[[\d;]*m", shown)
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown).replace("\r", "\n")
    assert all(len(line) <= 80 for line in plain.splitlines())


def test_a_dumb_terminal_gets_no_control_sequences(running: Command) -> None:
    dumb = Command(running.home, {"COLUMNS": "80", "TERM": "dumb"})
    shown, code = _on_terminal(dumb, 2)
    assert code == 130
    assert "\x1b" not in shown


def _on_terminal(emberd: Command, views: int) -> tuple[str, int]:
    """Run it on a terminal until so many views were drawn; return what was shown, and the code."""
    parent_end, child_end = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), child_end)
    shown, ended = b"", False
    with emberd.begin("status", "--watch", "-n", "0.2", **streams) as process:
        os.close(child_end)
        # The read fails with EIO once all descriptors of the other end are closed.
        with suppress(OSError):
            while piece := os.read(parent_end, 65536):
                shown += piece
                if shown.count(b"stub/ok") >= views and not ended:
                    process.send_signal(signal.SIGINT)
                    ended = True
        os.close(parent_end)
    return shown.decode(), process.returncode


@pytest.mark.parametrize(
    "arguments", [("--interval", "5s"), ("--watch", "-n", "soon"), ("--watch", "-n", "0")]
)
def test_an_interval_without_watch_or_none_at_all_is_a_usage_error(
    emberd: Command, arguments: tuple[str, ...]
) -> None:
    done = emberd("status", *arguments)
    assert (done.code, done.out) == (2, "")
    assert "--interval" in done.err


def test_ps_is_the_same_command(running: Command) -> None:
    (own,) = running("ps", "--json").json["servers"]
    assert own["spec"]["model"] == "stub/ok"
    with running.begin("ps", "-w") as process:
        assert process.stdout is not None
        assert b", every 2 s" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate()


def test_a_row_fits_into_80_columns_for_a_model_with_a_usual_name() -> None:
    own = ServerStatus("k", ServerSpec("Qwen/Qwen3-Embedding-4B"), State.READY, 5)
    row = live_status._row(live_status._Shown(own, None, None, None))
    assert not isinstance(shown_servers.arranged([row], 80), list)


def test_gpu_memory_is_what_the_processes_of_the_server_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: True)
    monkeypatch.setattr(gpus, "processes_on", lambda uuid: [(7, 3 * GIB), (8, GIB), (9, 50 * GIB)])
    marks = [
        (ProcessIdentity(pid, "0", "boot"), "/folder", start_id)
        for pid, start_id in ((7, "this"), (8, "this"), (9, "another"))
    ]
    memory = GpuMemory(("GPU-1",), planned_bytes=10 * GIB, loaded_bytes=GIB)
    spec = ServerSpec("Qwen/Qwen3-Embedding-4B")
    own = ServerStatus("k", spec, State.READY, 5, start_id="this", gpu_memory=memory)
    used = gpu_servers.used_bytes(own, lambda: marks)
    row = live_status._row(live_status._Shown(own, None, None, used["GPU-1"]))
    assert row["GPU memory"].plain == "4.0 of 10.0 GiB"
    assert gpu_servers.used_bytes(replace(own, gpu_memory=None), lambda: marks) == {}
    # In a container, NVML has other pids.
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: False)
    assert gpu_servers.used_bytes(own, lambda: marks) == {}
    row = live_status._row(live_status._Shown(own, None, None, None))
    assert row["GPU memory"].plain == "10.0 GiB"


def test_following_a_view_is_ended_by_a_reader_that_leaves(running: Command) -> None:
    with running.begin("status", "--watch", "-n", "0.1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        waiting.until(lambda: process.poll() is not None)
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (1, b"")


def test_a_detail_is_wrapped_between_words_and_a_path_stays_whole() -> None:
    path = "/a/very/long/path/of/a/log/file/that/is/longer/than/a/line/server.log"
    detail = f"started in 101.2 s: planning 0.3, loading the weights 60.4, see {path} for more"
    own = ServerStatus("k", ServerSpec("Qwen/Qwen3-Embedding-4B"), State.READY, 5, detail=detail)
    row = live_status._row(live_status._Shown(own, None, None, None))
    arranged = shown_servers.arranged([row], 60)
    assert isinstance(arranged, list)
    lines = [line.plain for line in arranged]
    begin = next(number for number, line in enumerate(lines) if line.startswith("  detail"))
    parts = [line[19:] for line in lines[begin:]]
    assert " ".join(parts) == detail
    assert all(line[:19].strip() in ("detail", "") for line in lines[begin:])
    assert [line for line in lines if len(line) > 60 and path not in line] == []
    assert any(path in part.split() for part in parts)
