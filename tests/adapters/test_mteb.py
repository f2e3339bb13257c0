"""The encoder for MTEB."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from mteb.mocks.mock_tasks.classification import MockClassificationTask
from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
from mteb.mocks.mock_tasks.sts import MockSTSTask

import quality
from adapters import page
from agents.recipes import Sent
from emberd import Embedder, SettingError
from emberd.adapters.mteb import EmberdEncoder
from fake_server import QWEN, FakeServer
from managed import MODEL

_WEB = "Instruct: {task}\nQuery:{text}"
_QUERY = "This is a test sentence"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as found:
        yield found


def _run(encoder: EmberdEncoder, *tasks: Any) -> Any:
    return mteb.evaluate(encoder, list(tasks), cache=None, show_progress_bar=False)


def _sent_by(task: Any, server: FakeServer, **settings: Any) -> set[str]:
    """Return what a server of Qwen3-Embedding is sent for a task, without the verification."""
    encoder = EmberdEncoder(QWEN, base_url=server.url, **settings)
    encoder.embedder.ensure()
    before = len(server.embedded)
    _run(encoder, task)
    return {text for texts in server.embedded[before:] for text in texts}


def _instruction(task: Any, role: str | None = None) -> str:
    prompt = task.metadata.prompt or task.abstask_prompt
    return str(prompt[role] if isinstance(prompt, dict) else prompt)


def test_queries_of_a_retrieval_get_its_instruction_and_documents_none(server: FakeServer) -> None:
    task = MockRetrievalTask()
    sent = _sent_by(task, server)
    wanted = _WEB.replace("{task}", _instruction(task, "query")).replace("{text}", _QUERY)
    assert wanted in sent
    assert {text for text in sent if not text.startswith("Instruct: ")} == {
        "Title of d1 This is a positive sentence",
        "Title of d2 This is another positive sentence",
    }


@pytest.mark.parametrize("kind", [MockSTSTask, MockClassificationTask])
def test_all_texts_of_a_task_without_queries_get_its_instruction(
    kind: Any, server: FakeServer
) -> None:
    task = kind()
    head, _ = _WEB.replace("{task}", _instruction(task)).split("{text}")
    sent = _sent_by(task, server)
    assert sent
    assert all(text.startswith(head) for text in sent)


def test_texts_without_a_role_get_the_prompt_of_queries_if_the_task_has_no_other(
    server: FakeServer,
) -> None:
    prompt = {"query": "Find the same"}
    EmberdEncoder(QWEN, base_url=server.url).encode(
        [{"text": ["one"]}],
        task_metadata=MockSTSTask.metadata.model_copy(update={"prompt": prompt}),
        hf_split="test",
        hf_subset="default",
    )
    assert server.embedded[-1] == ["Instruct: Find the same\nQuery:one"]


def test_a_given_instruction_is_that_of_all_queries(server: FakeServer) -> None:
    sent = _sent_by(MockRetrievalTask(), server, query_instruction="facts")
    assert sum("scientific claim" in text for text in sent) == 2


@pytest.mark.parametrize("name", ["MockSTSTask", "STS"])
def test_a_given_prompt_comes_first(name: str, server: FakeServer) -> None:
    sent = _sent_by(MockSTSTask(), server, prompts={name: "Own: "})
    assert all(text.startswith("Own: ") for text in sent)


def test_a_model_that_takes_no_tasks_gets_its_templates(sent: Sent) -> None:
    encoder = EmberdEncoder(MODEL)
    _run(encoder, MockRetrievalTask(), MockSTSTask())
    texts = sent()
    assert f"query: {_QUERY}" in texts
    assert f"passage: {_QUERY}" in texts, "of STS, which has no queries"
    assert "passage: Title of d1 This is a positive sentence" in texts


def test_the_log_shows_the_template(caplog: pytest.LogCaptureFixture, server: FakeServer) -> None:
    with caplog.at_level(logging.INFO, "emberd"):
        _run(EmberdEncoder(QWEN, base_url=server.url), MockSTSTask())
    assert "MockSTSTask, all texts: 'Instruct: " in caplog.text


def test_results_of_other_vectors_are_kept_apart(tmp_path: Path) -> None:
    encoders = [
        EmberdEncoder(MODEL),
        EmberdEncoder(MODEL, dimensions=128),
        EmberdEncoder(MODEL, document_instruction=""),
        EmberdEncoder(MODEL, prompts={"STS": "Own: "}),
    ]
    metas = [encoder.mteb_model_meta for encoder in encoders]
    assert len({meta.revision for meta in metas}) == len(metas)
    assert {meta.name for meta in metas} == {MODEL}
    assert [meta.embed_dim for meta in metas] == [384, 128, 384, 384]
    # The default instruction, if it is given, replaces those of the tasks.
    pair = EmberdEncoder(QWEN), EmberdEncoder(QWEN, query_instruction="web")
    assert pair[0].embedder.identity == pair[1].embedder.identity
    assert pair[0].mteb_model_meta.revision != pair[1].mteb_model_meta.revision
    cache = mteb.ResultCache(tmp_path)
    for encoder in encoders[:2]:
        mteb.evaluate(encoder, [MockSTSTask()], cache=cache, show_progress_bar=False)
    assert len(list(tmp_path.rglob("MockSTSTask.json"))) == 2


def test_it_is_an_encoder_of_mteb_and_takes_an_embedder() -> None:
    encoder = EmberdEncoder(Embedder(MODEL, dimensions=64))
    assert isinstance(encoder, mteb.EncoderProtocol)
    assert encoder.mteb_model_meta.embed_dim == 64
    assert encoder.dimensions == encoder.model_info.dimensions == 64
    assert EmberdEncoder(MODEL).embedder.settings.truncate
    with pytest.raises(SettingError, match="precision"):
        encoder.encode(
            [], task_metadata=MockSTSTask.metadata, hf_split="", hf_subset="", precision="int8"
        )


def test_vectors_are_those_of_emberd() -> None:
    encoder, embedder = EmberdEncoder(MODEL), Embedder(MODEL)
    found = encoder.encode(
        [{"text": ["one"]}, {"text": ["two"]}],
        task_metadata=MockRetrievalTask.metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type="query",
    )
    assert np.allclose(found, embedder.embed_queries(["one", "two"]), atol=1e-6)


@pytest.mark.full  # a minute
@pytest.mark.timeout(600)
def test_a_task_of_the_page_reaches_its_score_and_needs_the_template_of_queries() -> None:
    """The command on docs/quality.md measures all tasks, in minutes."""
    task = quality.MultilingualAnswers
    found, bare = (
        quality.scores(EmberdEncoder(MODEL, query_instruction=given), [task()])[task.__name__]
        for given in (None, "")
    )
    assert found == pytest.approx(0.791, abs=0.01)
    assert bare == pytest.approx(0.739, abs=0.01)


def test_the_code_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = page.run("MTEB", monkeypatch)
    assert made["encoder"].mteb_model_meta.name == MODEL
    assert len(list(made["tasks"])) == 2
