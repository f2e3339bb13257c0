"""What the command says of rerankers: their variables, and what their servers were seen to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints_made import write_plain
from command import ENGINE, Command
from emberd.cli import stop
from emberd.cli.up import FAILED
from emberd.manager import ServerStatus, State
from emberd.settings import DEFAULT_RERANKER, ServerSpec
from fake_reranker import FakeReranker
from http_server import Answer, reply
from real import fake_hub
from real.fake_hub import Hub

NAME = "Qwen/Qwen3-Reranker-0.6B"


@pytest.fixture
def server() -> Iterator[FakeReranker]:
    """A server whose scores mean nothing, about which users are warned."""
    with FakeReranker(model=NAME, fault="swapped", api_key="right") as running:
        yield running


@pytest.fixture
def given(emberd: Command, server: FakeReranker) -> Command:
    """The command, where that server is given."""
    names = {"EMBERD_RERANK_BASE_URL": server.url, "EMBERD_RERANK_API_KEY": "right"}
    return replace(emberd, more=names)


def test_up_tells_what_the_verification_of_a_server_showed(given: Command) -> None:
    content = given("up", NAME, "--json").json
    assert (content["task"], content["dimensions"]) == ("rerank", None)
    (note,) = content["notes"]
    assert NAME in note
    said = given("up", NAME).out
    assert said.count(note) == 1
    assert "Set EMBERD_RERANK_API_KEY" in said
    assert "env" not in said


def test_a_found_server_is_told_of_each_time(emberd: Command, server: FakeReranker) -> None:
    found = {"EMBERD_DISCOVER": server.url, "EMBERD_RERANK_API_KEY": "right"}
    for _ in range(2):
        (note,) = replace(emberd, more=found)("up", NAME, "--json").json["notes"]
        assert NAME in note


def test_variables_that_a_reranker_reads_are_named(given: Command, server: FakeReranker) -> None:
    refused = given("up", NAME, "--engine", "demo")
    assert refused.code == 2
    assert refused.err.count("EMBERD_RERANK_BASE_URL") == 2
    told = replace(given, more={**given.more, "EMBERD_DEVICE": "cpu"})
    assert "given by EMBERD_RERANK_BASE_URL" in told("up", NAME).out
    ports = {"EMBERD_PORT": "5001", "EMBERD_RERANK_PORT": "5002"}
    unmet = replace(given, more={**given.more, **ports})("up", NAME).out
    assert "EMBERD_RERANK_PORT has no effect" in unmet
    assert "EMBERD_PORT has" not in unmet
    keyless = replace(given, more={"EMBERD_RERANK_BASE_URL": server.url})
    assert "Set EMBERD_RERANK_API_KEY" in keyless("up", NAME).err


# ---------------------------------------------------------------- which kind of model it is


def test_a_model_whose_files_do_not_say_its_kind_embeds_and_its_user_is_told(
    emberd: Command, tmp_path: Path
) -> None:
    model = write_plain(tmp_path / "stub-plain")
    (note,) = emberd("up", model, "--engine", ENGINE, "--json").json["notes"]
    assert f"emberd up {model}" in note
    assert "--task rerank" in note
    assert emberd("up", model, "--engine", ENGINE, "--task", "embed", "--json").json["notes"] == []


def test_a_task_is_that_of_the_command_line(emberd: Command, tmp_path: Path) -> None:
    model = write_plain(tmp_path / "plain")
    with FakeReranker(model=model) as server:
        given = replace(emberd, more={"EMBERD_RERANK_BASE_URL": server.url})
        said = given("up", model, "--task", "rerank")
        assert "a reranker" in said.out, said.err
        assert f"Reranker(model={model!r}" in said.out
    assert emberd("up", NAME, "--task", "embed").code == 2
    assert "'embed' or 'rerank'" in emberd("up", "--task", "wrong").err


def test_without_a_model_the_task_decides_which_one_is_meant(emberd: Command) -> None:
    plan = emberd("up", "--task", "rerank", "--estimate", "--json").json
    assert plan["model"] == DEFAULT_RERANKER
    chosen = replace(emberd, more={"EMBERD_RERANK_MODEL": NAME})
    assert chosen("up", "--task", "rerank", "--estimate", "--json").json["model"] == NAME


def test_a_reranker_as_the_model_of_embedders_is_refused(emberd: Command) -> None:
    refused = replace(emberd, more={"EMBERD_MODEL": NAME})("up")
    assert refused.code == 2
    assert f"EMBERD_MODEL={NAME!r}" in refused.err
    assert "EMBERD_RERANK_MODEL" in refused.err


def test_the_files_of_a_model_on_the_hub_are_fetched_to_tell_what_it_is(
    emberd: Command, tmp_path: Path
) -> None:
    name = "house/scores-pairs"
    files = {
        "config.json": {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 8},
        "tokenizer.json": {"added_tokens": [], "post_processor": {"type": "ByteLevel"}},
        "config_sentence_transformers.json": {"model_type": "CrossEncoder"},
    }
    made = Hub({name: {file: json.dumps(content).encode() for file, content in files.items()}})
    with fake_hub.serve_models(made) as url, FakeReranker(model=name) as server:
        more = {
            "HF_ENDPOINT": url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "EMBERD_RERANK_BASE_URL": server.url,
        }
        said = replace(emberd, more=more)("up", name)
        assert "a reranker" in said.out, said.err


# ---------------------------------------------------------------- the other subcommands


def test_what_only_embeds_refuses_a_reranker(emberd: Command) -> None:
    for line, told in (
        (("embed", "--text", "a", "-m", NAME), "emberd.Reranker"),
        (("reindex", "store", "rows", "-m", NAME), "emberd.Reranker"),
        (("bench", NAME), "emberd.Reranker"),
        (("verify", NAME), f"emberd up {NAME}"),
        (("env", NAME), "emberd.Reranker"),
    ):
        refused = emberd(*line)
        assert (refused.code, told in refused.err) == (2, True), refused
        assert refused.out == (f"{FAILED}\n" if line[0] == "env" else "")
    assert emberd("status").code == 3


def test_a_model_that_may_be_a_reranker_is_refused_with_that_hint(
    emberd: Command, tmp_path: Path
) -> None:
    refused = emberd("embed", "--text", "a", "-m", write_plain(tmp_path / "plain"))
    assert "emberd.Reranker" in refused.err
    assert "EMBERD_QUERY_INSTRUCTION" in refused.err


class _Healthy(FakeReranker):
    def routes(self) -> dict[str, Answer]:
        return {**super().routes(), "/health": lambda *_: reply(200, {})}


def test_status_tells_a_reranker(emberd: Command) -> None:
    with _Healthy(model=NAME.lower()) as server:
        emberd = replace(emberd, more={"EMBERD_DISCOVER": server.url})
        assert emberd("up", NAME).code == 0
        (known,) = emberd("status", "--json").json["servers"]
        assert known["spec"]["task"] == "rerank"
        assert " rerank " in emberd("status").out
        assert NAME in emberd("stop", NAME).out


@pytest.mark.parametrize(("task", "told"), [("rerank", True), ("embed", False)])
def test_stop_tells_a_reranker(task: str, told: bool) -> None:
    was = ServerStatus(
        key="1",
        spec=ServerSpec(NAME, task=task),
        state=State.READY,
        seconds=1.0,
        url=None,
        engine="sglang",
        device="cpu",
        origin="own",
        supervisor_pid=1,
        idle_timeout=None,
        detail="",
        log_path="",
        start_id="2",
    )
    assert ("the reranker" in stop._line(was)) is told


def test_errors_of_the_work_name_the_variables_of_a_reranker(emberd: Command) -> None:
    nothing = replace(emberd, more={"EMBERD_RERANK_BASE_URL": "http://127.0.0.1:9"})
    refused = nothing("up", NAME)
    assert refused.code == 1
    assert "EMBERD_BASE_URL" not in refused.err
    assert "EMBERD_RERANK_BASE_URL" in refused.err


@pytest.mark.parametrize(
    "line", [("up", "--task", "rerank"), ("up", NAME), ("pull", NAME), ("env", NAME), ("serve",)]
)
def test_errors_of_settings_name_the_variables_of_a_reranker(
    emberd: Command, line: tuple[str, ...]
) -> None:
    wrong = {"EMBERD_RERANK_MODEL": NAME, "EMBERD_RERANK_BASE_URL": "http://user:pass@127.0.0.1:9"}
    refused = replace(emberd, more=wrong)(*line)
    assert refused.code == 2
    assert "EMBERD_RERANK_API_KEY" in refused.err
    assert "EMBERD_API_KEY" not in refused.err


def test_a_machine_that_cannot_serve_it_names_the_variable_of_a_reranker(emberd: Command) -> None:
    refused = emberd("up", NAME, "--engine", "transformers")
    assert "EMBERD_BASE_URL" not in refused.err
