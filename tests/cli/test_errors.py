"""Exit codes, and how errors look."""

from __future__ import annotations

import pytest

from command import Command, stub
from emberd import errors
from emberd.cli import codes
from emberd.cli.codes import Code


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("fly",), 2, "No such command 'fly'"),
        (("up", "--model"), 2, "--model"),
        (("up", "--idle-timeout", "soon"), 2, "--idle-timeout 'soon' cannot be read"),
        (("up", "--start-timeout", "0"), 2, "start_timeout=0.0 must be a number greater than 0"),
        (("up", "--engine", "steam"), 2, "engine='steam' is not known"),
        (("env", "--engine", "demo", "--model", "x/y"), 4, "demo: serves only emberd/demo"),
        (("embed", "no-such-file"), 2, "no-such-file is no file"),
        (("embed", "-o", "no-such-folder/x.npy", "-t", "x"), 1, "No such file or directory"),
        (("demo", "--docs", "no-such-folder", "-m", "emberd/demo"), 2, "is no folder"),
    ],
)
def test_an_error_is_a_line_on_stderr_and_a_code(
    emberd: Command, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = emberd(*arguments)
    assert done.code == code
    assert f"error: {says}" in done.err or (done.err.startswith("error: ") and says in done.err)
    assert "Traceback" not in done.err


def test_with_json_an_error_is_json_too(emberd: Command) -> None:
    usage = emberd("up", "--wrong", "--json")
    assert (usage.code, usage.json["error"]["kind"]) == (2, "UsageError")
    setting = emberd("env", "--json", "--idle-timeout", "soon")
    assert (setting.code, setting.json["error"]["kind"]) == (2, "SettingError")
    assert setting.json["error"]["message"] in setting.err


def test_a_reader_that_left_before_an_error_gets_no_traceback(emberd: Command) -> None:
    with emberd.begin("up", "--wrong", "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_variable_that_cannot_be_read_is_wrong_usage(emberd: Command) -> None:
    wrong = Command(emberd.home, {"EMBERD_START_TIMEOUT": "soon"})
    done = wrong("up", *stub())
    assert done.code == 2
    assert done.err.startswith("error: EMBERD_START_TIMEOUT='soon' cannot be read")


def test_the_traceback_is_there_for_whoever_asks(emberd: Command) -> None:
    asked = Command(emberd.home, {"EMBERD_DEBUG": "1"})
    done = asked("up", "--engine", "steam")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1].startswith("error: ")


def test_help_tells_every_exit_code(emberd: Command) -> None:
    shown = emberd("--help")
    assert shown.code == 0
    assert codes.table() in shown.out.replace("\n  ", "\n")
    assert emberd("-h").out == shown.out
    assert [int(line.split()[0]) for line in codes.table().splitlines()] == [0, 1, 2, 3, 4, 5, 130]


def test_the_version_is_the_packages(emberd: Command) -> None:
    from emberd import __version__

    assert emberd("--version").out == f"emberd {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InstructionError("x"), Code.USAGE),
        (errors.NoEngineError("x"), Code.NO_ENGINE),
        (errors.StartError("x"), Code.START_FAILED),
        (errors.StartTimeoutError("x"), Code.START_FAILED),
        (errors.LockTimeoutError("x"), Code.START_FAILED),
        (errors.ServerMismatchError("x"), Code.ERROR),
        (KeyError("x"), Code.ERROR),
    ],
)
def test_errors_have_their_code(error: Exception, code: Code) -> None:
    assert codes.of(error) is code


def test_colour_is_for_terminals_and_no_color_is_obeyed(running: Command) -> None:
    assert "\x1b" not in running("status").out
    # NO_COLOR is about colours: bold may stay.
    terminal = Command(running.home, {"TERM": "xterm-256color"})
    plain = Command(running.home, {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert "\x1b[32m" in terminal.on_terminal("status").out
    assert "\x1b[32m" not in plain.on_terminal("status").out
