"""``history``."""

from __future__ import annotations

import json

from command import Command, stub


def test_without_any_server_there_is_no_history(emberd: Command) -> None:
    done = emberd("history")
    assert (done.code, done.out) == (0, "")
    assert done.err


def test_starts_failures_and_stops_are_shown_in_order_with_causes(emberd: Command) -> None:
    emberd("up", *stub())
    emberd("stop")
    emberd("up", *stub("broken", faults="dies-at-start"))
    lines = emberd("history").out.splitlines()
    events = ("start ", "ready", "stop requested", "stopped", "start ", "start failed")
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        assert f"  {event}" in line
    assert "stub/ok" in lines[0]
    assert "started in" in lines[1]
    assert "no memory left for the model" in lines[-1]


def test_lines_and_a_model_can_be_chosen(emberd: Command) -> None:
    emberd("up", *stub())
    emberd("up", *stub("other"))
    assert len(emberd("history").out.splitlines()) == 4
    assert len(emberd("history", "-n", "3").out.splitlines()) == 3
    shown = emberd("history", "stub/other").out.splitlines()
    assert len(shown) == 2
    assert all("stub/other" in line for line in shown)
    assert emberd("history", "--model", "stub/none").out == ""


def test_json_has_all_facts(emberd: Command) -> None:
    emberd("up", *stub())
    begun, ready = emberd("history", "--json").json["events"]
    assert begun["event"] == "start"
    assert begun["by_pid"]
    assert ready["phases"]
    assert begun["start_id"] == ready["start_id"]


def test_what_a_terminal_would_act_on_is_not_printed(emberd: Command) -> None:
    emberd.home.mkdir(mode=0o700)
    line = {"time": "2026-11-29T10:31:02.000Z", "event": "crashed", "cause": "\x1b[2J\nmore"}
    file = emberd.home / "history.jsonl"
    file.write_text(json.dumps(line) + "\n")
    file.chmod(0o600)
    assert "\x1b" not in emberd("history").out
    assert len(emberd("history").out.splitlines()) == 1
