"""``env``: two lines for a shell, and nothing in its way."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence

import pytest

from command import TIMEOUT_S, Command, stub

_HEAVY = ("numpy", "openai", "psutil", "rich", "rich.console", "uvicorn")


def _evaluated(emberd: Command) -> list[str]:
    """Return both variables as a shell has them after ``eval "$(emberd env)"``."""
    line = shlex.join(emberd.line("env", *stub()))
    script = f'eval "$({line})"; echo "$OPENAI_BASE_URL"; echo "$OPENAI_API_KEY"'
    done = subprocess.run(
        ["sh", "-c", script],
        env=emberd.environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return done.stdout.splitlines()


def test_a_shell_gets_both_variables_even_when_the_server_is_started(emberd: Command) -> None:
    """A supervisor that held the shell's pipe would keep ``eval`` waiting for half an hour."""
    url, key = _evaluated(emberd)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
    assert len(key) > 20
    assert _evaluated(emberd) == [url, key]


@pytest.mark.parametrize(
    "wrong", [("--idle-timeout", "soon"), ("--wrong",), stub(faults="dies-at-start")]
)
def test_a_failure_fails_the_eval_and_leaves_nothing_old_to_use(
    emberd: Command, wrong: Sequence[str]
) -> None:
    line = shlex.join(emberd.line("env", *wrong))
    script = f'eval "$({line})" || echo "failed $OPENAI_BASE_URL$OPENAI_API_KEY"'
    old = {"OPENAI_BASE_URL": "http://old", "OPENAI_API_KEY": "old"}
    done = subprocess.run(
        ["sh", "-c", script],
        env=emberd.environment | old,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stdout == "failed \n"
    assert "error: " in done.stderr


def test_a_failure_as_json_is_json_alone(emberd: Command) -> None:
    assert emberd("env", "--json", "--idle-timeout", "soon").json["error"]["exit_code"] == 2


def test_its_help_tells_of_failures_and_of_other_ports(emberd: Command) -> None:
    told = " ".join(emberd("env", "--help").out.split())
    assert "the eval fails too" in told
    assert "The port and the key change when the server is restarted" in told


def test_exactly_two_lines_are_printed(running: Command) -> None:
    done = running("env", *stub())
    assert done.err == ""
    assert re.fullmatch(r"export OPENAI_BASE_URL=\S+\nexport OPENAI_API_KEY=\S+\n", done.out), (
        done.out
    )


def test_json_holds_the_same(running: Command) -> None:
    variables = running("env", *stub(), "--json").json
    lines = running("env", *stub()).out.splitlines()
    assert lines == [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def test_it_imports_nothing_heavy_when_the_server_runs(running: Command) -> None:
    command = running.line("env", *stub())
    command[1:1] = ["-X", "importtime"]
    done = subprocess.run(command, env=running.environment, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "emberd.manager.manager" in imported
    assert imported.isdisjoint(_HEAVY)


def test_no_other_verb_prints_the_key(emberd: Command) -> None:
    key = emberd("env", *stub(), "--json").json["OPENAI_API_KEY"]
    for verb in ("up", *stub()), ("status",), ("status", "--json"), ("logs",), ("stop", "--json"):
        done = emberd(*verb)
        assert done.code == 0
        assert key not in done.out + done.err
