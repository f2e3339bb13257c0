"""What the doctor says where a reranker is wanted, and of the variables of one."""

from __future__ import annotations

from pathlib import Path

import pytest

import checkpoints_made
import examined
from emberd.catalog import RERANK
from emberd.doctor import engines, model, servers, wanted
from emberd.doctor.findings import Level, Part, ok
from emberd.doctor.report import examine
from emberd.settings import DEFAULT_MODEL
from fake_reranker import FakeReranker

NAME = "Qwen/Qwen3-Reranker-0.6B"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path))


def test_a_reranker_is_wanted_if_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_BASE_URL", "http://127.0.0.1:8")
    monkeypatch.setenv("EMBERD_RERANK_BASE_URL", "http://127.0.0.1:9")
    asked = wanted.read({"model": NAME})
    assert (asked.spec.model, asked.spec.task, asked.problems) == (NAME, RERANK, ())
    assert asked.base_url == "http://127.0.0.1:9"
    other = wanted.read({})
    assert (other.spec.model, other.base_url) == (DEFAULT_MODEL, "http://127.0.0.1:8")


@pytest.mark.parametrize("given", [{}, {"model": NAME}])
def test_an_invalid_value_of_a_variable_of_rerankers_is_told(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    monkeypatch.setenv("EMBERD_RERANK_BASE_URL", "ftp://somewhere/hidden-path")
    checks = {Part.SETTINGS: (wanted.check_variables,)}
    [told] = [f for f in examine(given, checks).findings if f.level is Level.PROBLEM]
    assert told.fact.startswith("EMBERD_RERANK_BASE_URL=")
    assert "hidden" not in told.fact


def test_the_given_server_of_a_reranker_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeReranker(model=NAME) as server:
        monkeypatch.setenv("EMBERD_RERANK_BASE_URL", f"{server.url}/v1")
        found = examined.named(servers.check_servers(wanted.read({"model": NAME})), "base_url")
        assert (found.level, "dimensions" in found.fact) == (Level.OK, False)
        server.model = "test/other"
        found = examined.named(servers.check_servers(wanted.read({"model": NAME})), "base_url")
        assert found.level is Level.PROBLEM


def test_the_path_of_the_url_of_a_reranker_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_RERANK_BASE_URL", "http://127.0.0.1:9/hidden-path/v1")
    url = "http://127.0.0.1:9/hidden-path/v1"
    checks = {Part.ENGINE: (lambda _: [ok("engine", f"asked {url}")],)}
    assert "hidden" not in examine({}, checks).findings[0].fact


def test_a_folder_of_a_reranker_needs_no_end_of_text_token(tmp_path: Path) -> None:
    folder = checkpoints_made.write(tmp_path / "Qwen3-Reranker-0.6B", tensors={"a": (0,)})
    post = {"added_tokens": [], "post_processor": {"type": "ByteLevel"}}
    checkpoints_made.write_json(Path(folder) / "tokenizer.json", post)
    found = list(model.check_model(wanted.read({"model": folder})))
    assert [finding.level for finding in found] == [Level.OK], found


def test_advice_names_what_a_reranker_reads() -> None:
    asked = wanted.read({"model": NAME, "engine": "demo"})
    advice = examined.named(engines.check_engine(asked), "engine").advice
    assert "EMBERD_RERANK_BASE_URL" in advice
    assert "emberd/demo" not in advice
