"""Environment variables in the report of the doctor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import checkpoints_made
import examined
from emberd.doctor import wanted
from emberd.doctor.findings import Level


@pytest.fixture(autouse=True)
def _only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fixtures of the session may set more: those of tests/sglang name the folder of the engines.
    for name in list(os.environ):
        if name.startswith("EMBERD_") and name != "EMBERD_HOME":
            monkeypatch.delenv(name)


def test_a_misspelt_variable_is_noted_with_the_right_name_and_without_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_APIKEY", "a key in the wrong place")
    found = examined.named(wanted.check_variables(examined.wanted(tmp_path)), "unknown")
    assert found.fact == "EMBERD_APIKEY is set, but emberd reads no such variable"
    assert found.advice == "Did you mean EMBERD_API_KEY? Rename it, or unset it."


def test_a_variable_like_no_other_is_to_be_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_XYZZY_PLUGH_QUUX", "1")
    found = examined.named(wanted.check_variables(examined.wanted(tmp_path)), "unknown")
    assert found.advice == "unset EMBERD_XYZZY_PLUGH_QUUX"


def test_all_variables_that_cannot_be_read_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in {
        "EMBERD_TIMEOUT": "soon",
        "EMBERD_PORT": "http",
        "EMBERD_TRUNCATE": "maybe",
        "EMBERD_DISCOVER": "ftp://somewhere",
        "EMBERD_MODEL": "some/model",
    }.items():
        monkeypatch.setenv(name, text)
    asked = wanted.read({"device": "cpu"})
    found = [f for f in wanted.check_variables(asked) if f.level is Level.PROBLEM]
    words = " ".join(finding.fact for finding in found)
    assert all(f"{name}=" in words for name in ("EMBERD_TIMEOUT", "EMBERD_PORT", "EMBERD_TRUNCATE"))
    assert "EMBERD_DISCOVER='ftp://somewhere'" in words
    assert len(found) == 4
    # The rest is examined for what could be read.
    assert (asked.spec.model, asked.spec.device) == ("some/model", "cpu")


def test_prompts_that_only_an_application_may_give_are_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints_made.write(tmp_path / "plain")
    monkeypatch.setenv("EMBERD_BASE_URL", "http://127.0.0.1:9")
    asked = wanted.read({"model": str(tmp_path / "plain")})
    found = examined.named(wanted.check_variables(asked), "prompts")
    assert (found.level, asked.problems) == (Level.NOTE, ())
    assert "document_instruction=" in f"{found.fact} {found.advice}"
    assert asked.base_url == "http://127.0.0.1:9", "the rest is read all the same"
    monkeypatch.setenv("EMBERD_QUERY_INSTRUCTION", "")
    monkeypatch.setenv("EMBERD_DOCUMENT_INSTRUCTION", "")
    assert not wanted.read({"model": str(tmp_path / "plain")}).unknown_prompts


def test_an_instruction_that_would_be_misread_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_QUERY_INSTRUCTION", "query: ")
    [told] = wanted.read({}).problems
    assert "EMBERD_QUERY_INSTRUCTION" in told


def test_keys_of_openai_are_named_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not ours")
    found = examined.named(wanted.check_variables(examined.wanted(tmp_path)), "openai")
    assert (found.level, found.fact) == (Level.OK, "OPENAI_API_KEY set: emberd reads none of them")


def test_what_is_set_is_shown_and_no_key_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_HOME", "there")
    monkeypatch.setenv("EMBERD_API_KEY", "guess")
    fact = examined.named(wanted.check_variables(examined.wanted(tmp_path)), "variables").fact
    assert fact == "set: EMBERD_API_KEY, EMBERD_HOME=there"


def test_of_given_servers_scheme_host_and_port_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_BASE_URL", "http://me:pass@host:1/secret/v1")
    monkeypatch.setenv("EMBERD_DISCOVER", "http://a:1/secret, http://b/v1")
    fact = examined.named(wanted.check_variables(examined.wanted(tmp_path)), "variables").fact
    assert "EMBERD_BASE_URL=http://host:1, EMBERD_DISCOVER=http://a:1,http://b, " in fact


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EMBERD_TIMEOUT", "open-sesame"),
        ("EMBERD_PORT", "open-sesame"),
        ("EMBERD_ENGINE_ARGS", "--x 'open-sesame"),
        ("EMBERD_ENGINE_ARGS", "--k 'abc"),
        ("EMBERD_DISCOVER", "open-sesame"),
    ],
)
def test_a_value_that_cannot_be_read_and_may_be_a_key_is_not_shown(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    problems = wanted.read({}).problems
    assert problems
    assert all(problem.startswith(name) for problem in problems)
    assert not any("sesame" in problem or "abc" in problem for problem in problems)
