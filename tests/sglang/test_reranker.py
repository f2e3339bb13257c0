"""Rerankers for real: their scores beside plain Transformers', on SGLang and on transformers."""

from __future__ import annotations

import asyncio
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest

from command import Command
from emberd import Embedder, Reranker, ServerMismatchError, SettingError, TextTooLongError, probe
from emberd.client import verify
from emberd.client.scores import score_request
from emberd.client.wire import Reply
from emberd.prompts import rerank_frame
from real.engines import EngineSide
from real.rerank_pairs import SPECIAL, pairs, prompt

_FLOAT32_APART: Final = 1e-4
_BFLOAT16_APART: Final = 0.05


@pytest.fixture
def side(transformers_side: EngineSide) -> EngineSide:
    """What computes reference scores by Transformers."""
    return transformers_side


@pytest.fixture
def small(small_reranker: Path) -> Path:
    """A tiny reranker."""
    return small_reranker


@pytest.fixture(params=["transformers", "sglang"])
def engine(request: pytest.FixtureRequest) -> str:
    """The engine that serves it."""
    return str(request.param)


@pytest.fixture
def reranker(engine: str, start_reranker: Callable[[str], Reranker]) -> Reranker:
    """A reranker of ``small``."""
    return start_reranker(engine)


def test_the_scores_of_two_hundred_pairs_and_their_order_are_those_of_transformers(
    reranker: Reranker,
    engine: str,
    side: EngineSide,
    small: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    documents = defaultdict[str, list[str]](list)
    for query, document in pairs(200):
        documents[query].append(document)
    with ThreadPoolExecutor(len(documents)) as pool:
        scores = np.array([*pool.map(reranker.scores, *zip(*documents.items(), strict=True))])
        ranked = [*pool.map(reranker.rerank, *zip(*documents.items(), strict=True))]
    prompts = [prompt(query, each) for query, several in documents.items() for each in several]
    is_float32 = engine == "transformers"
    dtype = "float32" if is_float32 else "bfloat16"
    reference = side.scores(small, prompts, dtype).vectors.reshape(scores.shape)
    order = np.array([[each.index for each in one] for one in ranked])
    in_order = np.take_along_axis(reference, order, axis=1)
    apart = max(
        np.abs(scores - reference).max(),
        np.abs([[each.score for each in one] for one in ranked] - in_order).max(),
    )
    with capsys.disabled():
        print(
            f"\n{engine}: largest difference of {scores.size} scores {apart:.2e}, scores "
            f"from {scores.min():.3f} to {scores.max():.3f}"
        )
    assert scores.dtype == np.float32
    assert scores.size == 200
    assert apart <= (_FLOAT32_APART if is_float32 else _BFLOAT16_APART)
    assert np.ptp(reference, axis=1).min() > 2 * apart
    # By how much the reference puts a document behind another one that is ranked after it.
    behind = max(np.triu(np.subtract.outer(-one, -one)).max() for one in in_order)
    assert behind <= apart


def test_equal_documents_and_beginnings_of_others_have_the_scores_that_they_have_alone(
    reranker: Reranker, engine: str
) -> None:
    documents = ["a lake", "a lake", "a lake with an outlet", "", "a"]
    alone = [reranker.scores("where", [document])[0] for document in documents]
    apart = np.abs(reranker.scores("where", documents) - alone).max()
    assert apart <= (_FLOAT32_APART if engine == "transformers" else _BFLOAT16_APART)


def test_a_ranking_is_the_order_of_the_scores(reranker: Reranker) -> None:
    documents = [document for _, document in pairs(40)[:20]]
    scores = reranker.scores("fox", documents)
    ranked = reranker.rerank("fox", documents, top_n=5)
    assert [each.index for each in ranked] == np.argsort(-scores, kind="stable")[:5].tolist()
    np.testing.assert_allclose([r.score for r in ranked], np.sort(scores)[::-1][:5], atol=0.02)
    again = asyncio.run(reranker.arerank("fox", documents))
    assert {each.index for each in again} == set(range(20))


def test_special_texts_have_the_scores_of_transformers(
    reranker: Reranker, engine: str, side: EngineSide, small: Path
) -> None:
    """A special token in a document is that token, as in Qwen's own code; braces are text."""
    dtype, limit = ("float32", _FLOAT32_APART)
    if engine == "sglang":
        dtype, limit = "bfloat16", _BFLOAT16_APART
    for query in SPECIAL:
        scores = reranker.scores(query, SPECIAL, instruction="judge {text}")
        frame = rerank_frame(query, "judge {text}")
        reference = side.scores(small, [doc.join(frame) for doc in SPECIAL], dtype)
        assert np.abs(scores - reference.vectors).max() <= limit


def test_a_document_that_is_too_long_is_refused_or_cut_before_the_end_of_the_prompt(
    reranker: Reranker, engine: str, side: EngineSide, small: Path
) -> None:
    document = "fox dog " * 10_000
    with pytest.raises(TextTooLongError) as raised:
        reranker.scores("why", ["short", document])
    assert raised.value.index == 1
    limit = raised.value.limit
    assert limit is not None
    cutting = Reranker(
        small,
        engine=engine,
        device="cpu",
        truncate=True,
        manager=reranker._handle.manager,
    )
    scores = cutting.scores("why", ["short", document])
    ids = side.scores(small, [prompt("why", document)], "float32").ids[0]
    tail = reranker.endpoint().tail
    assert tuple(ids[-len(tail) :]) == tail
    dtype = "float32" if engine == "transformers" else "bfloat16"
    kept = [*ids[: limit - len(tail)], *tail]
    expected = side.scores(small, [kept], dtype).vectors
    assert abs(scores[1] - expected[0]) <= _BFLOAT16_APART
    with pytest.raises(TextTooLongError):
        cutting.scores(document, ["short"])


def test_a_batch_of_prompts_that_are_in_the_cache_has_no_more_of_them_than_planned(
    start_reranker: Callable[[str], Reranker], reranker_home: Path
) -> None:
    """Each prompt then has one token in a batch, whose size in tokens would allow thousands."""
    reranker = start_reranker("sglang")
    endpoint = reranker.endpoint()
    request = score_request(endpoint, [prompt("where", f"fox {number}") for number in range(600)])
    for _ in range(2):
        reply = verify.send(endpoint.url, endpoint.api_key, 120, None, request)
        assert isinstance(reply, Reply)
        assert reply.status == HTTPStatus.OK
    manager = reranker._handle.manager
    assert manager is not None
    (server,) = manager.status()
    assert server.supervisor_pid is not None
    option = "--prefill-max-requests"
    processes = psutil.Process(server.supervisor_pid).children(recursive=True)
    commands = [words for process in processes if option in (words := process.cmdline())]
    limits = {int(words[words.index(option) + 1]) for words in commands}
    (log,) = (reranker_home / "sglang").rglob("server.log")
    seen = [int(count) for count in re.findall(r"#new-seq: (\d+)", log.read_text())]
    assert {max(seen)} == limits


def test_its_server_is_no_server_of_embeddings(
    reranker: Reranker, small: Path, side: EngineSide, tmp_path: Path
) -> None:
    endpoint = reranker.endpoint()
    with pytest.raises(SettingError):
        Embedder(small)
    given: dict[str, Any] = {"base_url": endpoint.url, "api_key": endpoint.api_key}
    embedder = Embedder("small-reranker", query_instruction="", document_instruction="", **given)
    with pytest.raises(ServerMismatchError):
        embedder.embed_query("fox")
    info = probe.get(endpoint.url, "/model_info", endpoint.api_key)
    assert info is not None
    assert info.json()["is_generation"] is True


def test_a_killed_server_is_started_again(start_reranker: Callable[[str], Reranker]) -> None:
    reranker = start_reranker("transformers")
    documents = ["the fox", "the dog", ""]
    before = reranker.scores("why", documents)
    manager = reranker._handle.manager
    assert manager is not None
    (status,) = manager.status()
    assert status.supervisor_pid is not None
    children = psutil.Process(status.supervisor_pid).children()
    (server,) = (child for child in children if "--scores" in child.cmdline())
    server.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = reranker.scores("why", documents)
    np.testing.assert_allclose(again, before, atol=_BFLOAT16_APART)
    assert not server.is_running()


def test_the_command_finds_its_server_and_says_what_it_is(
    start_reranker: Callable[[str], Reranker], small: Path, reranker_home: Path
) -> None:
    url = start_reranker("sglang").endpoint().url
    emberd = Command(reranker_home / "sglang")
    asked = ("--task", "rerank", "--engine", "sglang", "--device", "cpu")
    found = emberd("up", str(small), *asked, "--json").json
    assert (found["url"], found["task"], found["dimensions"]) == (url, "rerank", None)
    assert not found["started"]
    assert f"Reranker(model={str(small)!r}" in emberd("up", str(small), *asked).out
    (known,) = emberd("status", "--json").json["servers"]
    assert (known["url"], known["spec"]["task"]) == (url, "rerank")
    assert "Prefill batch" in emberd("logs", str(small)).out
    told = emberd("doctor", str(small), *asked, "--json")
    assert told.code == 0
    assert url in told.json["verdict"]
