"""The table of supported versions, against what was recorded from the wheel of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from emberd import installs, probe
from emberd.engines.base import Launch
from emberd.engines.model_shape import KNOWN
from emberd.engines.sglang import ENGINE, command, log_reader, support
from emberd.engines.sglang.memory import plan_memory
from emberd.engines.sglang.support import VERSIONS, find_version
from emberd.installs import RECIPES, Interpreter
from emberd.settings import ServerSpec, StartOptions
from memory_cards import card
from real import record_facts

FACTS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "sglang_facts.json").read_text("utf-8")
)
# All that emberd requests of SGLang, except for a fallback to the name that a router has.
ROUTES: Final = (
    *("GET /ready", "GET /health", "GET /server_info", f"GET {probe.MODELS}"),
    *(f"GET {probe.MODEL_INFO}", "POST /v1/embeddings", "POST /v1/tokenize"),
)
every_version = pytest.mark.parametrize("version", VERSIONS)


def names(kind: str, version: str) -> set[str]:
    """Return the names of a kind that a version has."""
    told = FACTS[kind]
    return {*told["all"], *(name for name, having in told["some"].items() if version in having)}


def options_given() -> set[str]:
    """Return every option that emberd can give to SGLang."""
    plan = plan_memory(card(24), KNOWN["Qwen/Qwen3-Embedding-4B"], None)
    launch = Launch(
        31_234, "key", "stamp", "/state", StartOptions(tp_size=2, dp_size=2), home="/home-of-it"
    )
    chosen = [
        flag
        for device in ("cpu", None)
        for flag in command.flags(
            ServerSpec(revision="r", quantization="fp8", device=device, deterministic=True),
            *(launch, plan, "/config"),
        )
    ]
    in_file = {f"--{line.partition(':')[0]}" for line in command.config_text(1, "k").splitlines()}
    return {flag.words[0] for flag in chosen} | in_file


def test_the_table_is_the_recorded_range_up_to_the_version_that_is_installed() -> None:
    assert list(VERSIONS) == FACTS["versions"]
    assert list(VERSIONS)[-1] == RECIPES["sglang"].version


@every_version
def test_a_version_has_every_option_that_emberd_gives(version: str) -> None:
    assert options_given() <= names("options", version)
    assert set(command._RESERVED) <= names("options", version)


@every_version
def test_a_version_has_every_route_that_emberd_requests_or_the_table_says_no(version: str) -> None:
    missing = set(ROUTES) - names("routes", version)
    assert missing == (set() if VERSIONS[version].has_ready else {"GET /ready"})
    # Counters and readiness are read without a key, or the table says that they are not.
    is_open = {"/health", "/metrics", *(["/ready"] if VERSIONS[version].has_ready else [])}
    assert names("open", version) == is_open


@every_version
def test_a_version_reports_its_model_and_the_id_of_the_start(version: str) -> None:
    assert {"model_path", "weight_version"} <= names("model_info", version)


@every_version
def test_a_version_reads_the_variables_that_emberd_sets(version: str) -> None:
    given = command.variables({}, (), "/store", "/home", deterministic=True)
    given |= command.variables({}, (card(24), card(24)), "/store", "/home", msgpack=True)
    assert {name for name in given if name.startswith("SGLANG_")} == set(record_facts.VARIABLES)
    assert set(record_facts.VARIABLES) <= names("variables", version)


@every_version
def test_a_version_writes_the_lines_that_emberd_searches_for(version: str) -> None:
    prepares = {each.prepares for each in VERSIONS.values()}
    missing = set(record_facts.LINES) - names("lines", version)
    assert missing == prepares - {VERSIONS[version].prepares}
    line = f"[2026-11-28 10:00:00] {VERSIONS[version].prepares}."
    assert log_reader.progress(line) == "preparing the device"


@every_version
def test_a_version_has_code_for_the_architectures_of_known_pooling(version: str) -> None:
    missing = set(support._POOLING) - names("architectures", version)
    assert missing == set(VERSIONS[version].lacks)


@every_version
def test_a_version_is_built_for_the_cuda_that_is_required(version: str) -> None:
    assert FACTS["pins"][version]["cuda"] == f"cu{support.NEEDS_CUDA[0]}"


@pytest.mark.parametrize("installed", ["0.5.23.post1", "0.5.23+cu130", "0.5.23.post1+local"])
def test_a_later_build_of_a_release_is_that_release(installed: str) -> None:
    assert find_version(installed) is VERSIONS["0.5.23"]


@pytest.mark.parametrize(
    "installed",
    ["0.5.16", "0.4.10.post2", "0.5.24", "0.6", "1.0.0", "0.5.23rc1", "0.5.20.dev3", ""],
)
def test_a_version_outside_the_range_is_refused_with_the_command_that_installs_one(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Interpreter("/engines/python", installed, "/packages", "a test says so")
    monkeypatch.setattr(installs, "locate", lambda *_: found)
    wanted = ServerSpec(device="cpu")
    refused = ENGINE.why_unavailable(wanted)
    assert refused is not None
    assert "`emberd engine install sglang` installs 0.5.23" in refused
    assert ENGINE.installable_environment(wanted) == "sglang"
    assert "unset" not in refused
    # An interpreter that the user named is used whatever is installed beside it.
    monkeypatch.setenv(RECIPES["sglang"].variable, "/engines/python")
    assert "unset EMBERD_SGLANG_PYTHON" in (ENGINE.why_unavailable(wanted) or "")
    assert ENGINE.installable_environment(wanted) is None


@pytest.mark.parametrize(
    ("installed", "is_newer"),
    [("0.5.16", False), ("", False), ("0.5.23rc1", False), ("0.5.24", True), ("0.5.100", True)],
)
def test_only_a_newer_version_may_be_started_by_hand(installed: str, is_newer: bool) -> None:
    problem = support.why_not_version(installed, ServerSpec(device="cpu")) or ""
    assert ("docs/sglang.md" in problem) == is_newer
