"""Options that say how to start a server, where one runs already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from command import Command, stub
from emberd import Manager, ServerStatus

OTHER_PORT = "1"


def _error(command: Command, *words: str) -> str:
    done = command("up", *words, "--json") if "--" not in words else command("up", "--json", *words)
    assert done.code == 2
    assert done.json["error"]["kind"] == "SettingError"
    return str(done.json["error"]["message"])


def _status(command: Command) -> ServerStatus:
    return next(s for s in Manager(command.home).status() if s.spec.model == "stub/ok")


@pytest.mark.parametrize(
    "asked",
    [
        ("--tp-size", "2"),
        ("--dp-size", "2"),
        ("--port", OTHER_PORT),
        ("--no-auth",),
        ("--", "--flag", "value"),
    ],
    ids=" ".join,
)
def test_an_option_that_a_running_server_lacks_is_an_error(
    running: Command, asked: tuple[str, ...]
) -> None:
    before = _status(running)
    message = _error(running, *stub(), *asked)
    assert " ".join(asked) in message
    assert str(before.url) in message
    assert "emberd stop" in message
    assert _status(running).start_id == before.start_id


def test_several_options_are_named_together(running: Command) -> None:
    message = _error(running, *stub(), "--tp-size", "2", "--dp-size", "3", "--", "--flag")
    assert "--tp-size 2, --dp-size 3, -- --flag" in message


def test_arguments_named_like_secrets_are_not_repeated(running: Command) -> None:
    message = _error(running, *stub(), "--", "--admin-api-key", "s3cret-word")
    assert "--admin-api-key" in message
    assert "s3cret-word" not in message


def test_options_that_a_running_server_has_are_fine(running: Command) -> None:
    port = str(urlsplit(str(_status(running).url)).port)
    done = running("up", *stub(), "--tp-size", "1", "--port", port, "--json")
    assert (done.code, done.json["started"], done.json["notes"]) == (0, False, [])


def test_the_options_of_its_start_are_those_that_count(emberd: Command) -> None:
    how = ("--no-auth", "--tp-size", "2", "--", "--flag")
    assert emberd("up", *stub(), *how).code == 0
    assert emberd("up", *stub(), *how).code == 0
    assert emberd("up", *stub()).code == 0
    assert "--tp-size 1" in _error(emberd, *stub(), "--tp-size", "1")


VARIABLES = {
    "EMBERD_TP_SIZE": "2",
    "EMBERD_DP_SIZE": "2",
    "EMBERD_PORT": OTHER_PORT,
    "EMBERD_ENGINE_ARGS": "--api-key s3cret-word",
}


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_variable_that_a_running_server_lacks_is_a_note(running: Command, variable: str) -> None:
    told = replace(running, more={variable: VARIABLES[variable]})
    done = told("up", *stub(), "--json")
    (note,) = done.json["notes"]
    assert done.code == 0
    assert note.startswith(f"{variable} has no effect")
    assert "emberd stop" in note
    assert "s3cret" not in done.out + done.err
    assert f"Note: {note}" in told("up", *stub()).out


def test_env_notes_it_on_stderr(running: Command) -> None:
    told = replace(running, more={"EMBERD_TP_SIZE": "2"})
    done = told("env", *stub())
    assert done.code == 0
    assert "EMBERD_TP_SIZE has no effect" in done.err
    assert "no effect" not in done.out


def test_an_option_overrides_the_variable_without_a_note(running: Command) -> None:
    told = replace(running, more={"EMBERD_TP_SIZE": "2"})
    done = told("up", *stub(), "--tp-size", "1", "--json")
    assert (done.code, done.json["notes"]) == (0, [])


def test_a_server_that_this_call_starts_has_no_such_note(emberd: Command) -> None:
    told = replace(emberd, more={"EMBERD_TP_SIZE": "2", "EMBERD_ENGINE_ARGS": "--flag"})
    done = told("up", *stub(), "--json")
    assert (done.code, done.json["notes"]) == (0, [])


def test_a_start_that_another_call_began_with_other_options_is_an_error(emberd: Command) -> None:
    slow = stub(start=600)
    with emberd.begin("up", *slow) as first:
        assert first.stderr is not None
        first.stderr.readline()  # it says how far its start is
        assert "--tp-size 2" in _error(emberd, *slow, "--tp-size", "2")
        assert first.poll() is None, "it did not wait for the start"
        assert _status_of_all(emberd) == ["starting"]
        emberd("stop")
        first.communicate(timeout=60)


def _status_of_all(command: Command) -> list[str]:
    return [status.state for status in Manager(command.home).status()]


def test_an_external_server_was_not_started_with_any_option(emberd: Command, stranger: str) -> None:
    theirs = replace(emberd, more={"EMBERD_DISCOVER": stranger})
    assert stranger in _error(theirs, "stub/theirs", "--", "--flag")
    assert stranger in _error(theirs, "stub/theirs", "--tp-size", "2")
    more = replace(theirs, more={**theirs.more, "EMBERD_DP_SIZE": "2"})
    (note,) = more("up", "stub/theirs", "--json").json["notes"]
    assert "EMBERD_DP_SIZE has no effect" in note
    assert stranger in note


def test_start_options_beside_a_given_server(emberd: Command, stranger: str) -> None:
    given = replace(emberd, more={"EMBERD_BASE_URL": stranger})
    asked: list[tuple[str, ...]] = [("--port", "1"), ("--no-auth",), ("--tp-size", "2")]
    for words in (*asked, ("--dp-size", "2"), ("--", "--flag")):
        message = _error(given, "stub/theirs", *words)
        assert "EMBERD_BASE_URL" in message
        assert " ".join(words) in message
    for variable, value in VARIABLES.items():
        told = replace(given, more={**given.more, variable: value})
        (note,) = told("up", "stub/theirs", "--json").json["notes"]
        assert f"{variable} has no effect" in note
        assert "was given" in note


@pytest.mark.parametrize(
    "asked",
    [("--engine", "demo"), ("--device", "cpu"), ("--context-tokens", "64")],
    ids=" ".join,
)
def test_option_that_chooses_a_server_beside_a_given_one_is_an_error(
    emberd: Command, stranger: str, asked: tuple[str, ...]
) -> None:
    given = replace(emberd, more={"EMBERD_BASE_URL": stranger})
    message = _error(given, "stub/theirs", *asked)
    assert "EMBERD_BASE_URL" in message
    assert " ".join(asked) in message


def test_settings_that_choose_a_server_beside_a_given_one_are_notes(
    emberd: Command, stranger: str
) -> None:
    variables = {
        "EMBERD_ENGINE": "demo",
        "EMBERD_DEVICE": "cpu",
        "EMBERD_CONTEXT_TOKENS": "64",
        "EMBERD_IDLE_TIMEOUT": "5m",
    }
    given = replace(emberd, more={"EMBERD_BASE_URL": stranger})
    for variable, value in variables.items():
        told = replace(given, more={**given.more, variable: value})
        (note,) = told("up", "stub/theirs", "--json").json["notes"]
        assert note.startswith(f"{variable} has no effect")
        assert f"{variable} has no effect" in told("env", "stub/theirs").err
    for words in (("--revision", "f" * 40), ("--quantization", "fp8")):
        (note,) = given("up", "stub/theirs", *words, "--json").json["notes"]
        assert "is not checked" in note
        assert words[-1] in note


def test_a_quantised_model_has_a_server_of_its_own(emberd: Command) -> None:
    assert emberd("up", *stub(), "--json").json["started"]
    quantised = emberd("up", *stub(), "--quantization", "fp8", "--json").json
    assert quantised["started"]
    words = ("--quantization", "fp8")
    assert "--quantization fp8" in emberd("up", *stub(), *words).out
    assert "quantization='fp8'" in emberd("up", *stub(), *words).out
    again = replace(emberd, more={"EMBERD_QUANTIZATION": "fp8"})
    assert again("env", *stub(), "--json").json["OPENAI_BASE_URL"] == quantised["base_url"]
    servers = emberd("status", "--json").json["servers"]
    assert sorted(str(each["spec"]["quantization"]) for each in servers) == ["None", "fp8"]
    assert len(emberd("stop", "stub/ok", "--json").json["stopped"]) == 2


def test_a_quantisation_that_is_not_supported_is_an_error_on_the_command_line(
    emberd: Command,
) -> None:
    message = _error(emberd, *stub(), "--quantization", "int4")
    assert "--quantization 'int4' must be 'fp8'" in message


# ---- the idle timeout: the longest that any client asked for counts


def _idle_notes(command: Command, *words: str, verb: str = "up") -> Any:
    done = command(verb, *stub(), *words, "--json")
    assert done.code == 0
    return done.json["notes"] if verb == "up" else done.err.splitlines()


def test_a_shorter_idle_timeout_is_a_note_and_a_longer_one_is_honoured(emberd: Command) -> None:
    assert _idle_notes(emberd, "--idle-timeout", "1h") == []
    assert _idle_notes(emberd) == []
    (note,) = _idle_notes(emberd, "--idle-timeout", "5m")
    assert note.startswith("--idle-timeout 5m has no effect")
    assert "1 h" in note
    (line,) = _idle_notes(emberd, "--idle-timeout", "5m", verb="env")
    assert "--idle-timeout 5m has no effect" in line
    told = replace(emberd, more={"EMBERD_IDLE_TIMEOUT": "90s"})
    (note,) = _idle_notes(told)
    assert note.startswith("EMBERD_IDLE_TIMEOUT has no effect")

    assert _idle_notes(emberd, "--idle-timeout", "1h30m") == []
    assert _status(emberd).idle_timeout == 5400
    assert _idle_notes(emberd, "--idle-timeout", "never") == []
    assert _status(emberd).idle_timeout is None
    assert "never" in _idle_notes(emberd, "--idle-timeout", "2d")[0]


def test_a_refused_command_leaves_the_idle_timeout_as_it_is(emberd: Command) -> None:
    assert _idle_notes(emberd, "--idle-timeout", "1h") == []
    _error(emberd, *stub(), "--idle-timeout", "never", "--tp-size", "2")
    assert _status(emberd).idle_timeout == 3600


def test_the_idle_timeout_of_an_external_server_is_a_note(emberd: Command, stranger: str) -> None:
    given = replace(emberd, more={"EMBERD_BASE_URL": stranger})
    (note,) = given("up", "stub/theirs", "--idle-timeout", "5m", "--json").json["notes"]
    assert note.startswith("--idle-timeout 5m has no effect")


def test_start_timeout_takes_units(emberd: Command) -> None:
    done = emberd("up", *stub(start=60), "--start-timeout", "1s")
    assert done.code == 5
    assert "Startup continues in the background" in done.err
    assert emberd("stop").code == 0
