"""``up``, ``status`` and ``stop``, as transcripts."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import waiting
from command import Command, stub
from emberd import Manager, probe
from emberd.cli import output, status, up
from emberd.settings import Settings


def test_a_server_is_started_seen_used_again_and_stopped(emberd: Command) -> None:
    first = emberd("up", *stub())
    assert first.code == 0
    assert first.out.startswith("stub/ok is served at http://127.0.0.1:")
    assert "emberd just started it with the engine stubs.engine." in first.out
    assert "It stops 30 min after its last use, or by `emberd stop`." in first.out
    assert "NOT Qwen3" not in first.out

    again = emberd("up", *stub())
    assert again.out.splitlines()[0] == first.out.splitlines()[0]
    assert "emberd is already running it with the engine stubs.engine." in again.out

    shown = emberd("status")
    assert shown.code == 0
    assert shown.out.splitlines()[0].split()[:2] == ["model", "state"]
    assert shown.out.splitlines()[1].split()[:2] == ["stub/ok", "ready"]

    stopped = emberd("stop")
    url = first.out.split()[4].removesuffix("/v1")
    assert (stopped.code, stopped.out) == (0, f"Stopped stub/ok at {url} (it was ready).\n")
    assert not probe.is_ready(url)
    assert emberd("status").code == 3
    assert emberd("stop").out == "No server is running.\n"


def test_status_without_a_server_suggests_up_only_if_that_starts_one(
    emberd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "`emberd up`" in emberd("status").err
    monkeypatch.setenv("EMBERD_BASE_URL", "http://127.0.0.1:9/v1")
    done = emberd("status")
    assert done.code == 3
    assert "`emberd doctor`" in done.err
    assert "`emberd up`" not in done.err


def test_what_up_says_to_use_is_true(emberd: Command) -> None:
    said = emberd("up", *stub())
    line = next(line for line in said.out.splitlines() if "emberd.Embedder" in line)
    program = f"import emberd; print({line.split(maxsplit=1)[1]}.endpoint().base_url)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=emberd.environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == said.out.split()[4], done.stderr


def test_up_says_how_far_a_start_is_on_stderr(emberd: Command) -> None:
    done = emberd("up", *stub(start=1.5))
    assert "stub/ok?start=1.5: loading (" in done.err
    assert "loading (" not in done.out


def test_up_and_status_say_how_long_each_phase_of_the_start_took(emberd: Command) -> None:
    done = emberd("up", *stub(start=1.5))
    assert re.search(r"loading \(\d s; \d s in all\)", done.err)
    words = re.search(r"started in \d+\.\d s: planning \d\.\d.*, loading [12]\.\d", done.out)
    assert words is not None
    assert words[0] in emberd("status").out
    (known,) = emberd("status", "--json").json["servers"]
    again = emberd("up", *stub(start=1.5), "--json").json
    assert again["phases"] == known["phases"]
    assert next(iter(known["phases"])) == "planning"
    assert words[0] not in emberd("up", *stub(start=1.5)).out, "this call started nothing"


def test_status_says_how_long_a_start_is_in_its_phase(emberd: Command) -> None:
    with emberd.begin("up", *stub(start=60)) as starting:
        waiting.until(lambda: re.search(r"loading \(\d+ s\)", emberd("status").out) is not None)
        emberd("stop")
        starting.communicate()


def test_a_terminal_shows_a_progress_line_and_removes_it(emberd: Command) -> None:
    done = Command(emberd.home, {"TERM": "xterm-256color"}).on_terminal("up", *stub(start=1.2))
    assert done.code == 0
    # Drawn again and again on one line, which is erased at the end.
    assert done.out.count("loading (") > 3
    assert "\x1b[2K" in done.out.partition("is served at")[0]


def test_up_as_json_is_the_server_without_its_key(emberd: Command) -> None:
    server = emberd("up", *stub(), "--json").json
    key = emberd("env", *stub(), "--json").json["OPENAI_API_KEY"]
    assert (server["model"], server["dimensions"], server["started"]) == ("stub/ok", 8, True)
    assert server["base_url"] == server["url"] + "/v1"
    assert len(key) > 20
    assert key not in str(server)


def test_status_as_json_is_a_list_of_servers(emberd: Command) -> None:
    nothing = emberd("status", "--json")
    assert (nothing.code, nothing.json) == (3, {"servers": [], "gateway": None})
    start_id = emberd("up", *stub(), "--json").json["start_id"]
    (server,) = emberd("status", "--json").json["servers"]
    assert (server["state"], server["start_id"], server["spec"]["model"]) == (
        "ready",
        start_id,
        "stub/ok",
    )
    assert "api_key" not in server


@pytest.mark.parametrize("name", ["ok", "of-six-more", "of-a-name-as-long-as-many-models-have"])
def test_on_a_narrow_terminal_names_and_urls_are_whole(emberd: Command, name: str) -> None:
    url = emberd("up", *stub(name), "--json").json["url"]
    narrow = Command(emberd.home, {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"})
    shown = narrow.on_terminal("status").out
    assert re.search(rf"(?<!\S){url}(?!\S)", shown)
    assert re.search(rf"(?<!\S)stub/{name}(?!\S)", shown)
    table = [line for line in shown.splitlines() if "started in" not in line]
    assert all(len(line) <= 80 for line in table)


def test_a_url_wider_than_the_terminal_is_whole_too(
    emberd: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    emberd("up", *stub())
    (own,) = Manager(emberd.home).status()
    narrow = output.console(piped_columns=40)
    monkeypatch.setattr(output, "console", lambda: narrow)
    far = replace(own, url=f"http://{'a' * 60}:30000")
    status._print([far])
    assert f" {far.url}\n" in capsys.readouterr().out


def test_servers_that_have_stopped_show_no_idle_timeout(emberd: Command) -> None:
    emberd("up", *stub())
    emberd("stop")
    shown = emberd("status", "--all").out
    assert "absent" in shown
    assert "30 min" not in shown


def test_status_shows_that_a_server_never_stops(emberd: Command) -> None:
    said = emberd("up", *stub(), "--idle-timeout", "never")
    assert "It runs until `emberd stop`." in said.out
    assert "never" in emberd("status").out


def test_stop_with_a_model_ends_only_its_servers(emberd: Command) -> None:
    for name in ("one", "two"):
        assert emberd("up", *stub(name)).code == 0
    stopped = emberd("stop", "--model", "stub/one", "--json").json["stopped"]
    assert [was["spec"]["model"] for was in stopped] == ["stub/one"]
    left = emberd("status", "--json").json["servers"]
    assert [server["spec"]["model"] for server in left] == ["stub/two"]
    assert emberd("stop", "-m", "stub/one").out == "No server of stub/one is running.\n"


def test_an_external_server_is_adopted_and_still_runs_after_stop(
    emberd: Command, stranger: str
) -> None:
    theirs = replace(emberd, more={"EMBERD_DISCOVER": stranger})
    said = theirs("up", "--model", "stub/theirs")
    assert f"{stranger} was found (EMBERD_DISCOVER lists it) and verified" in said.out
    assert "emberd did not start it and will not stop it." in said.out
    assert "external" in emberd("status").out

    stopped = emberd("stop")
    assert stopped.out.startswith(f"Removed the record of stub/theirs at {stranger}. ")
    assert probe.is_ready(stranger)
    assert emberd("status").code == 3


def test_a_given_server_is_named_in_what_up_says_to_use(emberd: Command, stranger: str) -> None:
    given = replace(emberd, more={"EMBERD_BASE_URL": stranger})
    said = given("up", "--model", "stub/theirs")
    assert said.out.startswith(f"stub/theirs is served at {stranger}/v1 (8 dimensions")
    assert said.out.count(f"base_url='{stranger}/v1'") == 3
    assert "EMBERD_API_KEY" not in said.out
    with_key = replace(given, more=given.more | {"EMBERD_API_KEY": "made-up"})
    assert "Set EMBERD_API_KEY" in with_key("up", "--model", "stub/theirs").out

    # Another shell, without the variable.
    line = next(line for line in said.out.splitlines() if "emberd env" in line)
    command = line.split(maxsplit=2)[2].replace("emberd env", shlex.join(emberd.line("env")))
    done = subprocess.run(
        ["sh", "-c", f"{command} && echo $OPENAI_BASE_URL"],
        env=emberd.environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{stranger}/v1\n", done.stderr
    assert emberd("status").code == 3


def test_a_failed_start_is_shown_and_only_up_repeats_it(emberd: Command, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    failing = stub(faults="dies-at-start", count=starts)
    first = emberd("up", *failing)
    assert first.code == 5
    assert first.err.splitlines()[-1].startswith("error: The stub ended with 1 ")
    assert "no memory left for the model" in first.err
    assert "Traceback" not in first.err

    # A program that asks now gets the same error at once.
    assert emberd("env", *failing).code == 5
    assert len(starts.read_text().splitlines()) == 1
    shown = emberd("status")
    assert (shown.code, shown.out.splitlines()[1].split()[1]) == (3, "failed")

    as_json = emberd("up", *failing, "--json")
    assert len(starts.read_text().splitlines()) == 2
    assert as_json.code == 5
    error = as_json.json["error"]
    assert (error["kind"], error["exit_code"]) == ("StartError", 5)
    assert "no memory left" in error["message"]


def test_start_timeout_ends_the_wait_and_not_the_start(emberd: Command) -> None:
    slow = stub(start=3)
    done = emberd("up", *slow, "--start-timeout", "0.5")
    assert done.code == 5
    assert "Startup continues in the background" in done.err
    shown = emberd("status")
    assert (shown.code, shown.out.splitlines()[1].split()[1]) == (0, "starting")
    assert emberd("up", *slow).code == 0


def test_an_interrupt_before_the_first_output_mentions_the_start_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Manager, "ensure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        up.ensure(Settings.resolve(model="emberd/demo"))
    assert capsys.readouterr().err.startswith("A running start continues: `emberd status`")


def test_an_interrupt_ends_the_wait_and_not_the_start(emberd: Command) -> None:
    with emberd.begin("up", *stub(start=60)) as process:
        assert process.stderr is not None
        assert b"stub/ok" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.decode().splitlines()[-2:] == [
        "A running start continues: `emberd status` shows it, `emberd stop` stops it.",
        "interrupted",
    ]
    assert emberd("status").out.splitlines()[1].split()[1] == "starting"
    assert "(it was starting)" in emberd("stop").out
