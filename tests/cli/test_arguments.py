"""Positional arguments: the model, and what goes to the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import Command, stub
from emberd.manager import state

ENGINE = ("--engine", "stubs.engine")


def test_the_argument_of_up_is_the_model(emberd: Command) -> None:
    server = emberd("up", "stub/ok", *ENGINE, "--json").json
    assert server["model"] == "stub/ok"


def test_the_argument_may_follow_the_options(emberd: Command) -> None:
    done = emberd("up", "--dry-run", "--json", "emberd/demo")
    assert done.json["command"][-3] == "emberd/demo"


def test_an_argument_wins_over_the_environment(emberd: Command) -> None:
    other = Command(emberd.home, {"EMBERD_MODEL": "stub/other"})
    assert other("up", "stub/ok", *ENGINE, "--json").json["model"] == "stub/ok"


def test_arguments_after_the_dashes_go_to_the_engine(emberd: Command) -> None:
    dry = ("--dry-run", "--json")
    for words in (("emberd/demo",), ("-m", "emberd/demo")):
        done = emberd("up", *words, *dry, "--", "--drain", "5", "--", "positional")
        assert done.json["command"][-4:] == ["--drain", "5", "--", "positional"]
    assert emberd("up", "emberd/demo", *dry, "--").json["command"][-1] != "--"


def test_arguments_after_the_dashes_are_no_model(emberd: Command) -> None:
    only = Command(emberd.home, {"EMBERD_MODEL": "emberd/demo"})
    command = only("up", "--dry-run", "--json", "--", "some/model").json["command"]
    assert command[-1] == "some/model"
    assert "emberd/demo" in command


def test_arguments_of_the_engine_still_come_from_the_environment(emberd: Command) -> None:
    more = Command(emberd.home, {"EMBERD_ENGINE_ARGS": "--drain 7"})
    command = more("up", "emberd/demo", "--dry-run", "--json").json["command"]
    assert command[-2:] == ["--drain", "7"]


def test_the_arguments_of_a_start_are_kept_with_the_server(emberd: Command) -> None:
    folder = emberd("up", *stub(), "--json", "--", "--flag", "value").json["folder"]
    record = state.snapshot(Path(folder)).record
    assert record is not None
    assert record.options.arguments == ("--flag", "value")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("up", "a/model", "a/model"), "twice"),
        (("up", "a/model", "b/model", "--model", "c/model"), "c/model"),
        (("up", "a/model", "b/model", "--port", "5001"), "--port 5001"),
        (("up", "a/model", "b/model", "--revision", "main"), "--revision main"),
        (("up", "a/model", "--flag", "--", "--flag"), "--flag"),
        (("up", "a/model", "--model", "b/model"), "a/model"),
        (("up", ""), "blank"),
        (("up", "--model", "--json"), "not the name of a model"),
        (("env", "a/model", "--model", "b/model"), "a/model"),
        (("env", "--", "--flag"), "not the name of a model"),
        (("env", "a/model", "more"), "unexpected"),
        (("stop", "a/model", "--model", "b/model"), "a/model"),
        (("stop", ""), "blank"),
        (("stop", "a/model", "b/model"), "unexpected"),
        (("logs", "a/model", "--model", "b/model"), "a/model"),
        (("logs", "--", "--flag"), "not the name of a model"),
        (("doctor", "a/model", "--model", "b/model"), "a/model"),
        (("doctor", "a/model", "more"), "unexpected"),
        (("status", "a/model"), "unexpected"),
        (("engine", "list", "sglang"), "unexpected"),
        (("engine", "remove", "demo", "more"), "unexpected"),
        (("engine", "install", "no-such-engine"), "no-such-engine"),
        (("engine", "remove", "no-such-engine"), "no-such-engine"),
        (("embed", "emberd/demo"), "emberd/demo does not exist"),
    ],
)
def test_an_argument_that_cannot_be_used_is_wrong_usage(
    emberd: Command, words: tuple[str, ...], says: str
) -> None:
    done = emberd(*words)
    assert done.code == 2
    assert says in done.err
    assert emberd("status").code == 3


def test_the_same_model_may_be_named_twice(emberd: Command, tmp_path: Path) -> None:
    twice = emberd("up", "emberd/demo", "-m", "emberd/demo", "--dry-run")
    assert twice.code == 0
    # Two spellings of one folder.
    folder = tmp_path / "model"
    folder.mkdir()
    spelt = emberd("stop", str(folder), "-m", str(folder / ".." / "model"))
    assert (spelt.code, spelt.out) == (0, f"No server of {folder} is running.\n")


def test_the_argument_of_env_stop_and_logs_is_the_model(emberd: Command) -> None:
    for name in ("stub/one", "stub/two"):
        assert emberd("up", name, *ENGINE).code == 0
    variables = emberd("env", "stub/one", *ENGINE, "--json").json
    (one,) = (s for s in emberd("status", "--json").json["servers"] if "one" in s["spec"]["model"])
    assert variables["OPENAI_BASE_URL"] == f"{one['url']}/v1"
    assert emberd("logs", "stub/one", "--path").out.strip() == one["log_path"]
    assert emberd("logs", "stub/three").code == 3

    stopped = emberd("stop", "stub/one", "--json").json["stopped"]
    assert [was["spec"]["model"] for was in stopped] == ["stub/one"]
    (left,) = emberd("status", "--json").json["servers"]
    assert left["spec"]["model"] == "stub/two"


def test_the_argument_of_doctor_is_the_model(emberd: Command) -> None:
    report = emberd("doctor", "emberd/demo", "--json").json
    assert report["wanted"]["model"] == "emberd/demo"
