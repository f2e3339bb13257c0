"""What the doctor says where a reranker is wanted, and of the variables of one."""

from __future__ import annotations

from pathlib import Path

import pytest

import checkpoints_made
import examined
from emberd.catalog import RERANK
from emberd.cli.doctor import as_content
from emberd.doctor import engines, model, servers, wanted
from emberd.doctor.findings import Level, Part, ok
from emberd.doctor.report import examine
from emberd.settings import DEFAULT_MODEL, DEFAULT_RERANKER
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


def test_a_task_decides_which_model_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_RERANK_MODEL", NAME)
    asked = wanted.read({"task": RERANK})
    assert (asked.spec.model, asked.spec.task, asked.problems) == (NAME, RERANK, ())
    assert "--task rerank" in engines.up_command(asked)
    monkeypatch.delenv("EMBERD_RERANK_MODEL")
    assert wanted.read({"task": RERANK}).spec.model == DEFAULT_RERANKER
    (problem,) = wanted.read({"task": "wrong"}).problems
    assert "'wrong'" in problem


def test_a_report_about_another_model_says_how_the_reranker_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBERD_RERANK_MODEL", NAME)
    told = examined.named(wanted.check_variables(wanted.read({})), "reranker")
    assert "--task rerank" in told.advice
    found = wanted.check_variables(wanted.read({"model": NAME}))
    assert all(finding.name != "reranker" for finding in found)


def test_what_the_verification_of_a_server_showed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeReranker(model=NAME, fault="swapped") as server:
        monkeypatch.setenv("EMBERD_RERANK_BASE_URL", server.url)
        told = examined.named(servers.check_servers(wanted.read({"model": NAME})), "scores")
    assert told.level is Level.NOTE
    assert NAME in told.fact


def test_a_folder_that_does_not_say_its_task_is_told(tmp_path: Path) -> None:
    folder = checkpoints_made.write(tmp_path / "plain", tensors={"a": (0,)})
    post = {"added_tokens": [], "post_processor": {"type": "ByteLevel"}}
    checkpoints_made.write_json(Path(folder) / "tokenizer.json", post)
    told = examined.named(model.check_model(wanted.read({"model": folder})), "task")
    assert "--task rerank" in told.advice
    given = {"model": folder, "task": RERANK}
    assert all(finding.name != "task" for finding in model.check_model(wanted.read(given)))


def test_a_missing_folder_names_the_variable_of_a_reranker(tmp_path: Path) -> None:
    given = {"model": str(tmp_path / "gone"), "task": RERANK}
    assert (
        "EMBERD_RERANK_MODEL"
        in examined.named(model.check_model(wanted.read(given)), "folder").advice
    )


def test_variables_of_an_embedder_keep_their_names_in_a_report_about_a_reranker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBERD_PORT", "many")
    checks = {Part.SETTINGS: (wanted.check_variables,)}
    content = as_content(examine({"model": NAME}, checks))
    [told] = [each for each in content["findings"] if each["level"] == "problem"]
    assert told["fact"].startswith("EMBERD_PORT=")
