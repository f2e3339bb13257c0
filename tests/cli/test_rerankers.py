"""What the command says of rerankers: their variables, and what their servers were seen to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from command import Command
from fake_reranker import FakeReranker

NAME = "Qwen/Qwen3-Reranker-0.6B"


@pytest.fixture
def server() -> Iterator[FakeReranker]:
    """A server whose scores mean nothing, which its users are told of."""
    with FakeReranker(model=NAME, fault="swapped", api_key="right") as running:
        yield running


@pytest.fixture
def given(emberd: Command, server: FakeReranker) -> Command:
    """The command, where that server is given."""
    names = {"EMBERD_RERANK_BASE_URL": server.url, "EMBERD_RERANK_API_KEY": "right"}
    return replace(emberd, more=names)


def test_up_and_env_tell_what_the_verification_of_a_server_showed(given: Command) -> None:
    (note,) = given("up", NAME, "--json").json["notes"]
    assert NAME in note
    said = given("up", NAME).out
    assert said.count(note) == 1
    assert "Set EMBERD_RERANK_API_KEY" in said
    assert given("env", NAME).err.count(note) == 1


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
