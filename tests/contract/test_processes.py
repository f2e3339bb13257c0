"""Constructing has no side effects, and a fork after the first use works."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import managed
from command import run_program
from fake_reranker import MODEL, FakeReranker

_LANGCHAIN = "from langchain_emberd import EmberdEmbeddings as Class; named = {'model': NAME}"
_LLAMA_INDEX = (
    "from llama_index.embeddings.emberd import EmberdEmbedding as Class; "
    "named = {'model_name': NAME}"
)

_RERANKERS = [
    f"from {module} import {name} as Class; named = {{'model': 'Qwen/Qwen3-Reranker-0.6B'}}"
    for module, name in (
        ("langchain_emberd", "EmberdReranker"),
        ("llama_index.postprocessor.emberd", "EmberdRerank"),
    )
]
both = pytest.mark.parametrize(
    "imports", [_LANGCHAIN, _LLAMA_INDEX], ids=["LangChain", "LlamaIndex"]
)


def _program(imports: str, code: str) -> str:
    return f"NAME = {managed.MODEL!r}\n{imports}\n{textwrap.dedent(code)}"


def _run(imports: str, code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _program(imports, code)],
        capture_output=True,
        text=True,
        env=managed.environment(**environment),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "imports",
    [_LANGCHAIN, _LLAMA_INDEX, *_RERANKERS],
    ids=["EmberdEmbeddings", "EmberdEmbedding", "EmberdReranker", "EmberdRerank"],
)
def test_constructing_copying_and_pickling_have_no_side_effects(
    imports: str, tmp_path: Path
) -> None:
    """Modules that handle servers and vectors are imported at the first use."""
    home = tmp_path / "home"
    code = """
        import copy, pickle, sys
        events = []
        STARTS = ("_thread.start_new_thread", "os.fork", "os.mkdir", "os.posix_spawn",
                  "socket.__new__", "socket.connect", "subprocess.Popen")
        sys.addaudithook(lambda event, _: events.append(event) if event in STARTS else None)
        before = set(sys.modules)
        made = Class(**named, max_concurrency=3, api_key="made-up-key")
        copy.deepcopy(made), pickle.loads(pickle.dumps(made)), repr(made)
        made.model_copy(update={"truncate": True}).model_dump()
        late = {"emberd.client.clients", "emberd.manager", "filelock", "httpx", "httpx2", "numpy",
                "openai", "psutil", "rich", "sglang", "torch"}
        print(sorted(late & (set(sys.modules) - before)), events)
    """
    assert _run(imports, code, EMBERD_HOME=str(home)) == "[] []\n"
    assert not home.exists()


@both
def test_fork_after_first_use_gets_its_own_results(imports: str) -> None:
    """As with gunicorn's preload: the parent has embedded before it forks its workers."""
    code = """
        import multiprocessing, sys
        import numpy as np
        made = Class(**named)
        embed = getattr(made, "embed_query", None) or made.get_query_embedding
        texts = [f"text {number}" for number in range(6)]
        expected = [embed(text) for text in texts]
        def work(numbers, answers):
            answers.put([(number, embed(texts[number])) for number in numbers])
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        workers = [context.Process(target=work, args=(part, answers)) for part in
                   ([0, 1, 2], [3, 4, 5])]
        for worker in workers:
            worker.start()
        own = [embed(text) for text in texts]
        got = dict(sum((answers.get() for _ in workers), []))
        for worker in workers:
            worker.join()
        off = np.abs(np.array([own, [got[number] for number in range(6)]]) - expected).max()
        print([worker.exitcode for worker in workers], bool(off < 1e-6))
    """
    # The parent of this process has imported the framework already.
    done = run_program("-c", _program(imports, code), environment=managed.environment())
    assert (done.out, done.code) == ("[0, 0] True\n", 0), done.err


_DOCUMENTS = """
    def order(query):
        from langchain_core.documents import Document
        found = made.compress_documents([Document(text) for text in texts], query)
        return [(each.page_content, each.metadata["relevance_score"]) for each in found]
"""
_NODES = """
    def order(query):
        from llama_index.core.schema import NodeWithScore, TextNode
        nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        return [(each.text, each.score) for each in made.postprocess_nodes(nodes, query_str=query)]
"""


@pytest.mark.parametrize(
    ("imports", "order"),
    [*zip(_RERANKERS, (_DOCUMENTS, _NODES), strict=True)],
    ids=["EmberdReranker", "EmberdRerank"],
)
def test_fork_after_first_reranking_gets_its_own_results(imports: str, order: str) -> None:
    code = """
        import multiprocessing
        numbers = range(40)
        expected = [order(f"query {number}") for number in numbers]
        def work(part, answers):
            answers.put([(number, order(f"query {number}")) for number in part])
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        workers = [context.Process(target=work, args=(part, answers)) for part in
                   (numbers[:20], numbers[20:])]
        for worker in workers:
            worker.start()
        own = [order(f"query {number}") for number in numbers]
        got = dict(sum((answers.get() for _ in workers), []))
        for worker in workers:
            worker.join()
        print([worker.exitcode for worker in workers], own == expected,
              [got[number] for number in numbers] == expected, len(set(map(str, expected))))
    """
    with FakeReranker() as server:
        made = "made = Class(model=NAME, base_url=URL)\ntexts = [f'text {n}' for n in range(9)]"
        named = f"NAME, URL = {MODEL!r}, {server.url!r}"
        program = "\n".join((imports, named, made, textwrap.dedent(order), textwrap.dedent(code)))
        done = run_program("-c", program, environment=managed.environment())
    assert (done.out, done.code) == ("[0, 0] True True 40\n", 0), done.err
