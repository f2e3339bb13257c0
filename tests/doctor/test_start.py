"""Which engine would serve, what is missing for it, and what to type."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import examined
from emberd import installs
from emberd.doctor import engines
from emberd.doctor.findings import Level
from emberd.installs import Interpreter
from emberd.settings import DEFAULT_MODEL
from fake_nvml import GIB, Card, Nvml


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """A card that SGLang can use, and no SGLang."""
    made = Nvml([Card(free=23 * GIB)])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(installs, "locate", lambda *_: None)
    return made


def test_an_engine_that_can_serve_is_named_with_the_command(tmp_path: Path) -> None:
    asked = examined.wanted(
        tmp_path, "stub/a b", engine="stubs.engine", given={"model": "stub/a b"}
    )
    [found] = engines.check_engine(asked)
    assert (found.name, found.level) == ("stubs.engine", Level.OK)
    assert found.fact == f"{sys.executable} would serve stub/a b on cpu"
    assert found.gives.endswith("with the engine stubs.engine: emberd up --model 'stub/a b'")


def test_without_any_engine_there_is_one_problem_and_each_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Nvml(init_error=12)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    first, *reasons = engines.check_engine(examined.wanted(tmp_path, DEFAULT_MODEL))
    assert (first.level, first.fact) == (
        Level.PROBLEM,
        "no engine can serve the model on this machine",
    )
    assert "EMBERD_BASE_URL=http://HOST:30000/v1" in first.advice
    assert [reason.level for reason in reasons] == [Level.NOTE] * len(reasons)
    assert {"sglang", "demo"} <= {reason.name for reason in reasons}


def test_where_the_engine_alone_is_missing_its_installation_is_advised(
    card: Nvml, tmp_path: Path
) -> None:
    wanted = examined.wanted(tmp_path, DEFAULT_MODEL)
    first, *_ = engines.check_engine(wanted)
    assert first.level is Level.PROBLEM
    assert first.fact == "sglang can serve the model on this machine, but is not installed"
    assert first.advice.startswith(f"{engines.up_command(wanted)} (")
    assert first.advice.endswith("emberd engine install sglang")


def test_an_engine_that_is_installed_when_needed_is_as_good_as_there(
    card: Nvml, tmp_path: Path
) -> None:
    first, *_ = engines.check_engine(examined.wanted(tmp_path, DEFAULT_MODEL, auto_install=True))
    assert first.level is Level.OK
    assert "after the engine sglang is installed automatically: emberd up" in first.gives


def test_the_plan_for_memory_is_shown(
    card: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = Interpreter("some/python", "0.5.23", "packages", "the test says so")
    monkeypatch.setattr(installs, "locate", lambda *_: python)
    first, *more = engines.check_engine(examined.wanted(tmp_path, DEFAULT_MODEL))
    assert first.fact == f"some/python would serve {DEFAULT_MODEL} on cuda"
    quantities = [finding.fact.partition(" ")[0] for finding in more if finding.name == "plan"]
    assert {"weights", "KV", "activations", "memory"} <= set(quantities)


def test_memory_that_does_not_suffice_is_a_problem_with_the_engines_advice(
    card: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = Interpreter("some/python", "0.5.23", "packages", "the test says so")
    monkeypatch.setattr(installs, "locate", lambda *_: python)
    card.cards = [Card(free=5 * GIB)]
    [found] = engines.check_engine(examined.wanted(tmp_path, DEFAULT_MODEL))
    assert found.level is Level.PROBLEM
    assert "5.0 GiB of 24.0 GiB is free" in found.fact
    assert found.advice


def test_an_engine_that_nobody_knows_is_a_problem(tmp_path: Path) -> None:
    [found] = engines.check_engine(examined.wanted(tmp_path, engine="steam"))
    assert found.fact == "engine='steam' is not known"
    assert "sglang" in found.advice
