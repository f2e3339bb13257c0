"""``emberd doctor``: what it writes, and its exit codes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from command import Command, stub

MARKS = ("ok", "note", "PROBLEM")


def test_where_a_server_can_be_had_it_is_0_and_says_how(emberd: Command) -> None:
    done = emberd("doctor", "--model", "emberd/demo")
    assert (done.code, done.err) == (0, "")
    *_, blank, verdict = done.out.splitlines()
    assert blank == ""
    assert verdict == (
        "emberd/demo can be served on this machine with the engine demo: "
        "emberd up --model emberd/demo"
    )


def test_where_none_can_be_had_it_is_1_and_ends_with_what_to_type(emberd: Command) -> None:
    done = emberd("doctor", "--model", "./no-such-folder", "--device", "cpu")
    assert (done.code, done.err) == (1, "")
    assert "\n  PROBLEM  folder: the folder " in done.out
    assert "\n           Correct the path: --model PATH, or EMBERD_MODEL=PATH\n" in done.out
    assert done.out.splitlines()[-1].startswith("Next: ")


def test_every_line_is_a_part_a_finding_an_advice_or_the_verdict(emberd: Command) -> None:
    done = emberd("doctor", "--model", "emberd/demo")
    body = done.out.splitlines()[:-2]
    indented = re.compile(rf"  ({'|'.join(MARKS)}) +\S.*: \S|           \S")
    parts = [line for line in body if not line.startswith(" ")]
    assert all(indented.match(line) for line in body if line not in parts)
    assert parts[:3] == ["emberd", "settings", "servers"]


def test_json_holds_all_that_is_printed(emberd: Command) -> None:
    done = emberd("doctor", "--model", "emberd/demo", "--json")
    found = done.json
    assert (done.code, found["ok"], found["next"]) == (0, True, "")
    assert found["wanted"]["model"] == "emberd/demo"
    assert set(found["findings"][0]) == {"part", "name", "level", "fact", "advice"}
    assert {finding["level"] for finding in found["findings"]} <= {"ok", "note", "problem"}
    assert found["seconds"] < 10


def test_a_setting_that_cannot_be_read_is_a_finding_and_not_the_end(emberd: Command) -> None:
    spoilt = replace(emberd, more={"EMBERD_TIMEOUT": "soon"})
    done = spoilt("doctor", "--model", "emberd/demo", "--json")
    assert done.code == 1
    assert "EMBERD_TIMEOUT='soon' cannot be read" in done.json["verdict"]
    assert len(done.json["findings"]) > 10


def test_options_are_spelt_as_the_command_line_has_them(emberd: Command) -> None:
    done = emberd("doctor", "--engine", "steam")
    assert done.code == 1
    assert "--engine 'steam' is not known" in done.out
    assert "engine='steam'" not in done.out


def test_a_running_server_is_used_and_not_touched(running: Command) -> None:
    before = running("status", "--json").json["servers"][0]
    done = running("doctor", *stub())
    assert done.code == 0
    assert f"stub/ok is ready at {before['url']}" in done.out.splitlines()[-1]
    after = running("status", "--json").json["servers"][0]
    assert (after["start_id"], after["state"]) == (before["start_id"], "ready")


def test_no_key_stands_in_what_it_writes(running: Command) -> None:
    keys = re.findall(r'"api_key": "(\w+)"', _records(running.home))
    spoilt = replace(running, more={"EMBERD_API_KEY": "open-sesame", "HF_TOKEN": "open-sesame"})
    for form in ((), ("--json",)):
        done = spoilt("doctor", *stub(), *form)
        assert keys
        assert not [key for key in (*keys, "open-sesame") if key in done.out + done.err]


def test_on_a_terminal_marks_have_colours_unless_unwanted(emberd: Command) -> None:
    shown = emberd.on_terminal("doctor", "--model", "emberd/demo").out
    assert "\x1b[32m  ok" in shown
    plain = replace(emberd, more={"NO_COLOR": "1"})
    assert "\x1b[" not in plain.on_terminal("doctor", "--model", "emberd/demo").out


def test_the_home_is_left_as_it_was(emberd: Command) -> None:
    emberd("doctor", "--model", "emberd/demo")
    assert not emberd.home.exists()


def _records(home: Path) -> str:
    return "".join(json.dumps(json.loads(f.read_text())) for f in home.rglob("record.json"))


def test_of_servers_that_were_named_no_path_stands_in_the_report(emberd: Command) -> None:
    named = {
        "EMBERD_BASE_URL": "http://127.0.0.1:9/hidden-path/v1",
        "EMBERD_DISCOVER": "http://127.0.0.1:9/other-hidden-path",
    }
    done = replace(emberd, more=named)("doctor", "--model", "emberd/demo", "--json")
    assert done.json["wanted"]["base_url"] == "http://127.0.0.1:9"
    assert "hidden-path" not in done.out
