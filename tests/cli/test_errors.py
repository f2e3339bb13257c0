"""Exit codes, and how errors look."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

import checkpoints_made
from command import Command, stub
from emberd import errors
from emberd.cli import app, options, output
from emberd.cli.output import ExitCode


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("fly",), 2, "No such command 'fly'"),
        (("up", "--model"), 2, "--model"),
        (("up", "--idle-timeout", "soon"), 2, "--idle-timeout 'soon' must be a duration"),
        (("up", "--start-timeout", "0"), 2, "--start-timeout '0' must be a duration"),
        (("up", "--start-timeout", "x"), 2, "--start-timeout 'x' must be a duration"),
        (("up", "--tp-size", "x"), 2, "Invalid value 'x' for '--tp-size'"),
        (("embed", "--save-every", "x", "-t", "x"), 2, "--save-every 'x' must be a duration"),
        (("up", "--engine", "steam"), 2, "--engine 'steam' is not known"),
        (("env", "--device", "cuda", "-m", "emberd/demo"), 4, "omit --device 'cuda'"),
        (("embed", "--dimensions", "9", "-t", "x"), 2, "--dimensions 9 does not suit"),
        (("embed", "--dimensions", "abc", "-t", "x"), 2, "Invalid value 'abc' for '--dimensions'"),
        (("embed", "-o", "out.xyz", "-t", "x"), 2, "Endings are .jsonl, .npy, .parquet; for"),
        (("env", "--engine", "demo", "--model", "x/y"), 4, "demo: serves only emberd/demo"),
        (("embed", "no-such-file"), 2, "The file no-such-file does not exist"),
        (("embed", "-o", "no-such-folder/x.npy", "-t", "x"), 2, "Create it: mkdir -p"),
    ],
)
def test_an_error_is_a_line_on_stderr_and_a_code(
    emberd: Command, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = emberd(*arguments)
    assert done.code == code
    assert f"error: {says}" in done.err or (done.err.startswith("error: ") and says in done.err)
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("Give api_key=, or set EMBERD_API_KEY.", "Set EMBERD_API_KEY."),
        ("(x). Give base_url= or EMBERD_BASE_URL of", "(x). Give EMBERD_BASE_URL of"),
        ("Omit tp_size and dp_size.", "Omit --tp-size and --dp-size."),
        ("tp_size=0 must be at least 1.", "--tp-size 0 must be at least 1."),
        ("base_url='x' is not an http(s) URL.", "EMBERD_BASE_URL='x' is not an http(s) URL."),
        ("base_url= has a user name, and give api_key=,", None),
        ("Split it, or set truncate=True to cut it.", "Split it, or set --truncate to cut it."),
        ("It is overloaded: lower max_concurrency, or", None),
        ("timeout=-1.0 must be", "EMBERD_TIMEOUT=-1.0 must be"),
        ("no answer before the timeout", "no answer before the timeout"),
        ("`run --model=x`, stub/ok?engine=x", "`run --model=x`, stub/ok?engine=x"),
        ("ask for model='emberd/demo'", "ask for --model 'emberd/demo'"),
    ],
)
def test_advice_names_options_and_variables(python: str, command: str | None) -> None:
    if command is None:
        assert "EMBERD_" in options.to_cli_names(python)
        assert "=" not in options.to_cli_names(python)
    else:
        assert options.to_cli_names(python) == command


def test_text_that_cannot_be_decoded_is_not_shown() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"my-secret-key \xe9".decode()
    assert "secret" not in app._message(caught.value)


def test_what_a_server_said_is_left_as_it_is() -> None:
    error = errors.StartError("its last line: Args(device='cuda')")
    assert app._message(error) == str(error)


# Each kind of message that the library of the command composes.
@pytest.mark.parametrize(
    "arguments",
    [
        *(("fly",), ("statsu",), ("sto",), ("engine", "instal"), ("engine", "fly")),
        *(("--wrong",), ("status", "--jsno"), ("up", "--devcie", "cpu"), ("up", "-x")),
        *(("status", "--json=x"), ("up", "--model"), ("logs", "-n"), ("engine", "install")),
        *(("up", "--tp-size", "x"), ("logs", "-n", "-1"), ("status", "a"), ("env", "a", "b")),
    ],
    ids=" ".join,
)
def test_a_usage_error_ends_its_sentence_before_the_hint(
    emberd: Command, arguments: tuple[str, ...]
) -> None:
    done = emberd(*arguments)
    assert done.code == 2
    # The library does not know of all which subcommand they concern.
    assert re.fullmatch(
        r"error: [^\n]*[^.?!:,\s](\.|\?)( Try: emberd [\w ]*--help)?", done.err.strip()
    )


def test_no_verb_at_all_gets_the_help(emberd: Command) -> None:
    done = emberd()
    assert (done.code, done.err) == (0, "")
    assert done.out == emberd("--help").out


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
    assert output.exit_code_table() in shown.out.replace("\n  ", "\n")
    assert "pipe was closed" in output.MEANINGS[ExitCode.ERROR]
    assert emberd("-h").out == shown.out
    assert [int(line.split()[0]) for line in output.exit_code_table().splitlines()] == [
        code.value for code in ExitCode
    ]


def test_the_version_is_the_packages(emberd: Command) -> None:
    from emberd import __version__

    assert emberd("--version").out == f"emberd {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InstructionError("x"), ExitCode.USAGE),
        (errors.NoEngineError("x"), ExitCode.NO_ENGINE),
        (errors.StartError("x"), ExitCode.START_FAILED),
        (errors.StartTimeoutError("x"), ExitCode.START_FAILED),
        (errors.LockTimeoutError("x"), ExitCode.START_FAILED),
        (errors.ServerMismatchError("x"), ExitCode.ERROR),
        (KeyError("x"), ExitCode.ERROR),
    ],
)
def test_errors_have_their_code(error: Exception, code: ExitCode) -> None:
    assert output.exit_code(error) is code


def test_colour_is_for_terminals_and_no_color_is_obeyed(running: Command) -> None:
    assert "\x1b" not in running("status").out
    terminal = Command(running.home, {"TERM": "xterm-256color"})
    plain = Command(running.home, {"TERM": "xterm-256color", "NO_COLOR": "1"})
    assert "\x1b[32m" in terminal.on_terminal("status").out
    assert "\x1b[" not in plain.on_terminal("status").out


def test_a_model_whose_prompts_are_not_known_is_refused_where_texts_are_embedded(
    emberd: Command, tmp_path: Path
) -> None:
    folder = checkpoints_made.write(tmp_path / "m")
    prompts = {"prompts": {"query": "q: ", "passage": "p: "}}
    checkpoints_made.write_json(tmp_path / "m" / "config_sentence_transformers.json", prompts)
    refused = emberd("embed", "--model", folder, stdin="a text\n")
    assert refused.code == 2
    assert "EMBERD_DOCUMENT_INSTRUCTION=" in refused.err
    # It goes on to look for an engine, which refuses any model but its own.
    started = emberd("up", "--model", folder, "--engine", "stubs.engine")
    assert "_INSTRUCTION" not in started.err
    assert "No engine can serve" in started.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_valid_whatever_the_encoding_of_the_stream(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    content = {"model": "é 模 \U0001f600"}
    output.write_json(content)
    stream.flush()
    assert json.loads(written.getvalue().decode(encoding)) == content
