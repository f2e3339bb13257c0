"""``emberd up A B`` on one GPU: an embedding model and a reranker that are planned together.

The GPU, the hub and SGLang are fake (``gpu_machine``).
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

import waiting
from emberd import Manager
from gpu_machine import MODEL, RERANKER, Machine, hub, machine

__all__ = ["hub", "machine"]

BOTH = (MODEL, RERANKER)
PLANNED = ("--max-total-tokens", "--context-length", "--mem-fraction-static")
GIB = 1 << 30


@pytest.fixture
def prepared(machine: Machine) -> Machine:
    """A machine of 24 GB that has the engine and the weights."""
    for model in BOTH:
        done = machine("pull", model)
        assert done.code == 0, done.err
    return machine


def started(machine: Machine, model: str) -> dict[str, str]:
    """Return the options with which a server was started."""
    return dict(pairwise(json.loads(machine.command_of(model).read_text())["command"]))


def longest(command: dict[str, str]) -> int:
    return int(command["--context-length"])


def by_model(machine: Machine) -> dict[str, Any]:
    return {status.spec.model: status for status in Manager(machine.home).status()}


def test_two_models_are_planned_together_started_and_stopped(prepared: Machine) -> None:
    dry = prepared("up", *BOTH, "--dry-run", "--json")
    assert dry.code == 0, dry.err
    planned = dry.json["servers"]
    assert [each["model"] for each in planned] == [*BOTH]
    for each, other in zip(planned, reversed(BOTH), strict=True):
        assert any(other in reason["why"] for reason in each["reasons"])
    text = prepared("up", *BOTH, "--dry-run").out
    assert all(f"{model}:\n" in text for model in BOTH)

    up = prepared("up", *BOTH)
    assert up.code == 0, up.err
    for model in BOTH:
        assert f"{model} is served at http://127.0.0.1:" in up.out
        assert f"{model}: " in up.err  # the progress of each
    for each in planned:
        shown = dict(pairwise(each["command"]))
        command = started(prepared, each["model"])
        assert longest(command) >= longest(shown) >= 5 * 1024
    first = dict(pairwise(planned[0]["command"]))
    assert [started(prepared, MODEL)[name] for name in PLANNED] == [first[name] for name in PLANNED]

    memory = [status.gpu_memory for status in by_model(prepared).values()]
    assert sum(each.planned_bytes for each in memory if each) <= 24 * GIB * 0.93
    seen = prepared("status", "--json").json["servers"]
    assert {each["spec"]["model"] for each in seen} == {*BOTH}
    assert all(each["gpu_memory"]["gpus"] == ["GPU-aaaa"] for each in seen)
    assert "GPU memory" in prepared("status").out
    doctor = prepared("doctor").out
    assert all(f"emberd's server of {model} is planned to take" in doctor for model in BOTH)

    again = prepared("up", *reversed(BOTH), "--json")
    assert again.code == 0, again.err
    assert [each["started"] for each in again.json["servers"]] == [False, False]
    assert prepared("stop").out.count("Stopped ") == 2


def test_the_first_of_two_programs_leaves_memory_for_the_other(prepared: Machine) -> None:
    prepared.more["EMBERD_SHARE_GPU"] = "1"
    assert prepared("up", RERANKER).code == 0
    context = longest(started(prepared, RERANKER))
    second = prepared("up", MODEL)
    assert second.code == 0, second.err
    assert longest(started(prepared, MODEL)) >= context >= 5 * 1024
    assert "EMBERD_SHARE_GPU" not in second.err + second.out


@pytest.mark.parametrize("planned_alone", [False, True])
def test_a_gateway_plans_its_servers_together_unless_the_environment_says_otherwise(
    prepared: Machine, planned_alone: bool
) -> None:
    if planned_alone:
        prepared.more["EMBERD_SHARE_GPU"] = "0"
    log = prepared.home.parent / "gateway.log"
    arguments = ("serve", *BOTH, "--no-tcp", "--preload")
    with log.open("wb") as output, prepared.begin(*arguments, stderr=output) as gateway:
        if planned_alone:
            assert gateway.wait(waiting.DEADLINE_S) == 5
            assert RERANKER in log.read_text()
            return
        waiting.until(
            lambda: log.read_text().count(" is served: ") == 2 or gateway.poll() is not None
        )
        assert gateway.poll() is None, log.read_text()
        gateway.terminate()
        assert gateway.wait(waiting.DEADLINE_S) == 0
    for model in BOTH:
        assert longest(started(prepared, model)) >= 5 * 1024
    memory = [status.gpu_memory for status in by_model(prepared).values()]
    assert len(memory) == 2
    assert sum(each.planned_bytes for each in memory if each) <= 24 * GIB * 0.93


def test_simultaneous_starts_do_not_take_the_same_memory(prepared: Machine) -> None:
    prepared.more["EMBERD_SHARE_GPU"] = ",".join(BOTH)
    with prepared.begin("up", MODEL) as one, prepared.begin("up", RERANKER) as other:
        codes = [one.wait(), other.wait()]
    assert codes == [0, 0]
    memory = [status.gpu_memory for status in by_model(prepared).values()]
    assert sum(each.planned_bytes for each in memory if each) <= 24 * GIB * 0.93


def test_a_refusal_names_the_server_that_holds_the_memory(prepared: Machine) -> None:
    assert prepared("up").code == 0
    refused = prepared("up", *BOTH)
    assert refused.code == 5
    for fact in (
        f"emberd's server of {MODEL} is planned to take",
        f"`emberd stop {MODEL}`",
        f"`emberd up {MODEL} {RERANKER}`",
        f"the error of {RERANKER}",
    ):
        assert fact in refused.err, refused.err
    known = by_model(prepared)
    assert [known[model].state for model in BOTH] == ["ready", "failed"]
    assert f"{MODEL} is served at" in refused.out
    failed = prepared("up", RERANKER, "--json")
    assert failed.json["error"]["kind"] == "StartError"

    assert prepared("stop", MODEL).code == 0
    assert prepared("up", *BOTH).code == 0, "the advice of the refusal"


@pytest.mark.parametrize("machine", [16], indirect=True)
def test_models_that_do_not_fit_together_are_refused_before_the_first_is_loaded(
    prepared: Machine,
) -> None:
    refused = prepared("up", *BOTH)
    assert refused.code == 5
    assert "Qwen/Qwen3-Embedding-0.6B and Qwen/Qwen3-Reranker-0.6B" in refused.err
    assert f"{RERANKER} was not started" in refused.err
    assert not prepared.command_of(MODEL).exists()
    waiting.until(lambda: by_model(prepared)[MODEL].state == "failed")
    assert prepared("up").code == 0, "one of them fits"


def test_a_model_that_no_engine_serves_prevents_the_start_of_the_other(prepared: Machine) -> None:
    refused = prepared("up", MODEL, "/no/such/folder")
    assert refused.code == 4
    assert "No server was started" in refused.err
    assert by_model(prepared) == {}
